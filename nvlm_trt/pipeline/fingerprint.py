"""Fingerprints: what a checkpoint is, and all that the result of a stage depends on."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from nvlm_trt.errors import CheckpointError
from nvlm_trt.pipeline.code_digest import CodeDigests
from nvlm_trt.pipeline.digest import DigestCache, FileDigest, combined, digest_json
from nvlm_trt.pipeline.stage import Stage
from nvlm_trt.progress import Progress

CHECKPOINT_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja")
"""Weights with their index, configuration, tokenizer (vocab.json, merges.txt): all that any stage reads."""


@dataclass(frozen=True, slots=True)
class CheckpointIdentity:
    """A checkpoint by content: the digest of every file that a stage may read, and one fingerprint over them."""

    files: tuple[FileDigest, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over names, sizes and digests."""
        return combined(self.files)


def checkpoint_files(directory: Path) -> list[str]:
    """Names of the files of a checkpoint directory that its identity covers, sorted.

    Raises:
        CheckpointError: there is no such directory.
    """
    try:
        files = [path for path in directory.iterdir() if path.suffix in CHECKPOINT_SUFFIXES and path.is_file()]
    except OSError as error:
        seen = f"{directory} ({error.strerror})"
        raise CheckpointError("the checkpoint directory cannot be read", seen=seen) from None
    return sorted(path.name for path in files)


def identify(directory: Path, cache: DigestCache, progress: Progress | None = None) -> CheckpointIdentity:
    """Digest a checkpoint; files whose digest is already known are not read."""
    return CheckpointIdentity(cache.digest_all(directory, checkpoint_files(directory), progress))


def peek_identity(directory: Path, cache: DigestCache) -> CheckpointIdentity | None:
    """The identity of a checkpoint as far as it is known without reading weights, else None."""
    files = []
    for name in checkpoint_files(directory):
        value = cache.peek(directory / name)
        if value is None:
            return None
        files.append(FileDigest(name, (directory / name).stat().st_size, value))
    return CheckpointIdentity(tuple(files))


def tool_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions; "absent" for one that is not installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def stage_basis(
    stage: Stage, inputs: Mapping[str, str], checkpoint: str | None, code: CodeDigests
) -> dict[str, object]:
    """All that the result of `stage` depends on, as a JSON object; its digest is the fingerprint.

    Args:
        stage: The stage.
        inputs: For each stage that it reads, the combined digest of that stage's outputs.
        checkpoint: The checkpoint's fingerprint, for a stage that reads it.
        code: Digests of the code.
    """
    return {
        "parts": dict(stage.parts),
        "inputs": dict(inputs),
        "checkpoint": checkpoint if stage.reads_checkpoint else None,
        "code": code.digest(stage.modules),
        "files": {f"{path.parent.name}/{path.name}": sha256(path.read_bytes()).hexdigest() for path in stage.files},
        "tools": tool_versions(stage.tools),
        "machine": platform.machine(),
    }


def fingerprint(basis: Mapping[str, object]) -> str:
    """SHA-256 (hex) of a basis."""
    return digest_json(basis)


def first_difference(old: Mapping[str, object], new: Mapping[str, object], prefix: str = "") -> str | None:
    """In words, the first thing in which two bases differ ("parts.vision_precision: fp32 -> bf16"); None if nothing."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            return first_difference(before, after, f"{prefix}{key}.")
        if prefix + key == "code":
            return "the code that writes it changed"
        return f"{prefix}{key}: {_short(before)} -> {_short(after)}"
    return None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
