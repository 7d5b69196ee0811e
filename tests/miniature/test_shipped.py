"""What ships with the project is named in recipes, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvlm_trt.errors import RecipeError
from nvlm_trt.miniature.shipped import FOLDER, resolve


def test_the_miniature_is_found_by_name_and_paths_stay_paths() -> None:
    assert resolve("shipped:nvlm-d-mini", FOLDER) == FOLDER
    assert resolve("some/where", FOLDER) == Path("some/where")


def test_another_name_is_refused_with_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"shipped:nvlm-d-72b.*shipped:nvlm-d-mini"):
        resolve("shipped:nvlm-d-72b", FOLDER)
