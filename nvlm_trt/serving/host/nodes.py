"""The machines that a decoder's ranks run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nvlm_trt.errors import EngineError, UserError


@dataclass(frozen=True, slots=True)
class Nodes:
    """The machines, this one first.

    Attributes:
        hosts: Their names; none for this machine alone.
        hostfile: An OpenMPI hostfile instead of `hosts`.
    """

    hosts: tuple[str, ...] = ()
    hostfile: Path | None = None

    @property
    def are_several(self) -> bool:
        """Whether there are several."""
        return len(self.hosts) > 1 or self.hostfile is not None

    @classmethod
    def of_file(cls, hostfile: Path, world_size: int) -> Nodes:
        """The machines of an OpenMPI hostfile.

        Args:
            hostfile: The file; mpirun reads it.
            world_size: Ranks that run on them.

        Raises:
            UserError: there is no such file, or a single rank, which mpirun does not start.
        """
        if world_size == 1:
            raise UserError(
                "a hostfile deals out the ranks of a decoder, and this engine has one",
                seen=f"--hostfile {hostfile}",
                expected="an engine of the gpu target with tp * pp above 1",
                fix="leave it out",
            )
        if not hostfile.is_file():
            raise UserError("there is no such hostfile", seen=hostfile, expected="a file of OpenMPI, one host a line")
        return cls(hostfile=hostfile.resolve())

    @classmethod
    def of_group(cls, environment: Mapping[str, str]) -> Nodes:
        """The pods of a Kubernetes LeaderWorkerSet group, or this machine where there is none.

        The controller tells a pod the leader's address and the group's size (kubernetes-sigs/lws,
        pkg/utils/pod/pod_utils.go, AddLWSVariables); worker i of leader ``name.service.namespace`` is
        ``name-i.service.namespace``.

        Args:
            environment: Environment variables.

        Raises:
            EngineError: this pod is a worker, or the variables are not the controller's.
        """
        leader = environment.get("LWS_LEADER_ADDRESS")
        if leader is None:
            return cls()
        size, index = environment.get("LWS_GROUP_SIZE", ""), environment.get("LWS_WORKER_INDEX", "")
        if not (size.isdecimal() and index.isdecimal()):
            raise EngineError(
                "LWS_LEADER_ADDRESS is set, but not the other variables of a LeaderWorkerSet",
                seen=f"LWS_GROUP_SIZE={size!r}, LWS_WORKER_INDEX={index!r}",
            )
        if int(index) != 0:
            raise EngineError("a worker does not serve", seen=f"LWS_WORKER_INDEX={index}", fix="serve on the leader")
        name, _, domain = leader.partition(".")
        workers = (f"{name}-{number}.{domain}" for number in range(1, int(size)))
        return cls(hosts=(leader, *workers))
