"""The machines that a decoder's ranks run on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvlm_trt.errors import EngineError, UserError

COMMENT: Final = re.compile("#|//")
SLOTS: Final = re.compile(r"\sslots\s*=\s*(\d+)(?!\S)")
"""Both as in open-mpi/ompi, orte/util/hostfile/hostfile_lex.l."""


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
    def of_file(cls, hostfile: Path, world_size: int, gpus_per_node: int) -> Nodes:
        """The machines of an OpenMPI hostfile, each of which says how many ranks it takes.

        mpirun fills one node after the other, and one that says nothing with as many ranks as it has cores (mpirun(1),
        "DEFINITION OF 'SLOT'"); but rank r computes on GPU r modulo `gpus_per_node`.

        Args:
            hostfile: The file; mpirun reads it.
            world_size: Ranks that run on them.
            gpus_per_node: GPUs of each node, as the engines were built for.

        Raises:
            UserError: there is no such file, it has too few nodes or nodes of another size, or a single rank, which
                mpirun does not start.
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
        lines = hostfile.read_text(errors="replace").splitlines()
        nodes = [node for line in lines if (node := COMMENT.split(line)[0].strip())]
        for node in nodes:
            slots = SLOTS.search(node)
            if slots is None or int(slots[1]) != gpus_per_node:
                raise UserError(
                    "a node of the hostfile has other slots than the engines were built for",
                    seen=node,
                    expected=f"HOST slots={gpus_per_node}, the recipe's gpus_per_node",
                    fix="name the slots, or build again for nodes of another size",
                )
        if len(nodes) * gpus_per_node < world_size:
            raise UserError(
                "the hostfile has fewer slots than the decoder has ranks",
                seen=f"{len(nodes)} nodes of {gpus_per_node} slots",
                expected=f"{world_size} slots or more",
            )
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
