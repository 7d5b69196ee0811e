"""Engines of others as columns of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvlm_trt.bench.peers.engines import PEERS, PeerName, check_installed
from nvlm_trt.bench.subjects import OpenedEngine, PeerSubject, checkpoint_of
from nvlm_trt.errors import UserError


def choose_peers(
    names: Sequence[PeerName], folder: Path, engines: Sequence[OpenedEngine], checkpoint: Path | None
) -> tuple[PeerSubject, ...]:
    """The columns of some peers.

    Args:
        names: Which.
        folder: Where their environments lie.
        engines: Engine directories that they are measured beside.
        checkpoint: What they read; None for what the first engine was built from.

    Raises:
        UserError: one is not installed, or there is no engine of the cpu target to stand beside, or no checkpoint.
    """
    if not names:
        return ()
    check_installed(names, folder)
    if not engines or engines[0].device != "cpu":
        raise UserError("peers are measured beside engine directories of the cpu target", fix="give one")
    read = checkpoint_of(engines[0], checkpoint, "peers read", "leave them out")
    return tuple(
        PeerSubject(
            name=PEERS[name].title,
            peer=name,
            folder=folder.resolve(),
            checkpoint=read.resolve(),
            engine=engines[0].directory,
        )
        for name in names
    )
