"""The command line: ``scripts/soak.sh --help``. Exits with 0 if the soak passed, 1 if not, 2 for a wrong call."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shlex
import sys
from pathlib import Path

from nvlm_trt.engine_files import RECIPE
from nvlm_trt.errors import NvlmTrtError, UserError
from scripts.durations import duration

from .report import Soaked, markdown, plot, summary
from .run import Plan, soak


def share(text: str) -> float:
    """A share of the capacity, above 0 and up to 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no share above 0 and up to 1")


def main() -> int:
    """Soak, write the report, tell the verdict."""
    parser = argparse.ArgumentParser("scripts/soak.sh", description=soak.__doc__)
    parser.add_argument(
        "--duration", type=duration(20), default="1h", help="how long, such as 5m, 1h, 24h (default 1h)"
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="DIR", help="the engine directory that is served")
    parser.add_argument("--http", metavar="HOST:PORT", help="soak the server that runs here, of the same engine")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="its gRPC")
    parser.add_argument("--load", type=share, default=0.7, help="share of the capacity that is sent (default 0.7)")
    parser.add_argument("--rate", type=float, help="requests a second instead of a share of the capacity")
    parser.add_argument("--seed", type=int, default=1, help="of cases, order and times (default 1)")
    parser.add_argument("--cases", type=int, default=96, help="different requests (default 96)")
    parser.add_argument(
        "--patience", type=duration(20), default="5m", help="until an answer counts as lost (default 5m)"
    )
    parser.add_argument("--out", type=Path, default=Path("soak"), metavar="DIR", help="for the report (default soak/)")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    asked = parser.parse_args()
    if not (asked.engine / RECIPE).is_file():
        parser.error(f"--engine is {asked.engine}; expected: an engine directory, as nvlm-trt build makes it")
    if (asked.http is None) != (asked.grpc is None):
        parser.error("--http and --grpc go together")
    if asked.rate is not None and asked.rate <= 0:
        parser.error(f"--rate is {asked.rate}; expected: above 0")
    if asked.cases < 8:
        parser.error(f"--cases is {asked.cases}; expected: 8 or more")
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
        plan = Plan(
            engine_dir=asked.engine,
            out=asked.out,
            duration=asked.duration,
            http=asked.http,
            grpc=asked.grpc,
            load=asked.load,
            rate=asked.rate,
            seed=asked.seed,
            cases=asked.cases,
            patience=asked.patience,
            quiet=asked.quiet or asked.json,
            command=shlex.join(["scripts/soak.sh", *_shown(sys.argv[1:])]),
        )
        return _report(asyncio.run(soak(plan)), asked.out, as_json=asked.json)
    except KeyboardInterrupt:
        print("interrupted: no verdict", file=sys.stderr)
        return 130
    except (NvlmTrtError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


def _shown(words: list[str]) -> list[str]:
    """The arguments without directories, which say nothing to others."""
    return [Path(word).name if "/" in word else word for word in words]


def _report(soaked: Soaked, out: Path, *, as_json: bool) -> int:
    facts = summary(soaked)
    (out / "summary.json").write_text(json.dumps(facts, indent=1) + "\n")
    (out / "summary.md").write_text(markdown(facts))
    try:
        plot(soaked, out / "soak.png")
    except ModuleNotFoundError:
        print("no plot: that needs matplotlib, the extra `plots`", file=sys.stderr)
    if as_json:
        print(json.dumps(facts))
    else:
        for check in soaked.checks:
            mark = "ok  " if check.passed else "FAIL"
            print(f"{mark} {check.name}: {check.seen:.4g} {check.unit} (at most {check.most:g})")
        print(f"{'passed' if soaked.passed else 'FAILED'}; see {out / 'summary.md'}")
    return 0 if soaked.passed else 1


if __name__ == "__main__":
    sys.exit(main())
