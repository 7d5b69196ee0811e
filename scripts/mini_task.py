#!/usr/bin/env python
"""Write the questions of a split of the miniature's data as a task for `nvlm-trt eval`.

python scripts/mini_task.py --output DIR                                    # the sealed test split, 1,100 questions
python scripts/mini_task.py --output DIR --split validation --seed 7 --per-category 20
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from nvlm_trt.errors import UserError
from nvlm_trt.miniature.tasks import ASKED, SEALED_SEED, write_task

TILE = 112


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option: a whole number that is not below `least`."""

    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number of at least {least}")
        return int(text)

    return parse


def main() -> int:
    """Write the task; 2 when something is wrong with what was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--seed", type=at_least(0), help="default: the test split's own; needed for validation")
    parser.add_argument(
        "--per-category", type=at_least(1), default=100, help=f"questions of each of {len(ASKED)} categories"
    )
    options = parser.parse_args()
    if options.split == "validation" and options.seed is None:
        parser.error("--split validation needs a --seed")
    seed = SEALED_SEED if options.seed is None else options.seed

    def progress(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            print(f"{done} of {total} questions", file=sys.stderr)

    try:
        file = write_task(
            options.output, options.split, seed=seed, per_category=options.per_category, tile=TILE, progress=progress
        )
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
