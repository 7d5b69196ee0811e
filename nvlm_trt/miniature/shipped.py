"""Where checkpoint and task that ship with the project lie: ``shipped:nvlm-d-mini`` in a recipe or as a task."""

from __future__ import annotations

from pathlib import Path

from nvlm_trt.errors import RecipeError

SHIPPED_PREFIX = "shipped:"
NAME = "nvlm-d-mini"
FOLDER = Path(__file__).parent / NAME
GATE_TASK = Path(__file__).parent / "gate" / "task.jsonl"


def resolve(named: str, file: Path) -> Path:
    """The path that a field of a recipe or an option names: `file` for ``shipped:nvlm-d-mini``, else the path itself.

    Args:
        named: The field or option.
        file: What the miniature has for it.

    Raises:
        RecipeError: something else is said to be shipped.
    """
    if not named.startswith(SHIPPED_PREFIX):
        return Path(named)
    if named != SHIPPED_PREFIX + NAME:
        raise RecipeError("nothing of this name ships with the project", seen=named, expected=SHIPPED_PREFIX + NAME)
    return file
