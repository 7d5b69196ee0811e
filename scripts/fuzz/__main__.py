"""Fuzz one target for a while: ``scripts/fuzz.sh --help``. Exits with 0 without a finding, 1 with one."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from scripts.durations import duration

TARGETS = ("gateway", "image", "prompt")
LENGTHS = {"image": 8192, "prompt": 2048}
"""Bytes of an input at most: longer ones find little more, and fewer of them are tried."""
WORDS = Path(__file__).parent / "words.dict"


def main() -> int:
    """Fuzz."""
    parser = argparse.ArgumentParser("scripts/fuzz.sh", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--time", type=duration(1), default="1h", help="how long, such as 5m or 1h (default 1h)")
    parser.add_argument("--engine", type=Path, metavar="DIR", help="gateway: the engine directory that is served")
    parser.add_argument("--out", type=Path, default=Path("fuzz"), metavar="DIR", help="for findings (default fuzz/)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default 1)")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.target != "gateway":
        return _with_atheris(asked.target, asked.time, asked.out, asked.seed)
    if asked.engine is None:
        parser.error("the gateway needs --engine DIR")
    from . import gateway

    return gateway.fuzz(asked.engine, asked.time, asked.out, asked.seed)


def _with_atheris(target: str, limit: int, out: Path, seed: int) -> int:
    """Runs libFuzzer in a child, for it ends its process itself; what it grows stays in `out`/corpus-`target`."""
    import atheris

    with atheris.instrument_imports(include=["nvlm_trt", "PIL"]):  # nothing of them was imported before
        from tests.fuzz import corpus

        check = import_module(f"tests.fuzz.{target}").check
    grown = out / f"corpus-{target}"
    grown.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as begun:
        for name, data in (*corpus.seeds(target), *corpus.findings(target)):
            (Path(begun) / name).write_bytes(data)
        child = os.fork()
        if not child:
            options = [
                *(f"-max_total_time={limit}", f"-seed={seed}", f"-dict={WORDS}", "-print_final_stats=1"),
                *("-timeout=300", "-report_slow_units=300"),  # by the clock: the checks themselves count the work
                *("-rss_limit_mb=2048", f"-max_len={LENGTHS[target]}", "-len_control=20"),
                f"-artifact_prefix={out}/finding-{target}-",
            ]
            atheris.Setup([sys.argv[0], *options, str(grown), begun], check)
            atheris.Fuzz()
            os._exit(0)
        _, status = os.waitpid(child, 0)
    found = sorted(out.glob(f"finding-{target}-*"))
    print(f"{len(found)} findings" + "".join(f"\n  {file}" for file in found))
    return 1 if found or os.waitstatus_to_exitcode(status) else 0


if __name__ == "__main__":
    sys.exit(main())
