"""Memory of the machine, or of the container or service around a process."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from nvlm_trt.environment.memory import Memory, memory

BOUND, USED, CACHED = 64 << 20, 40 << 20, 8 << 20


def bounded(group: Path, bound: int | str = BOUND) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{bound}\n")
    (group / "memory.current").write_text(f"{USED}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {CACHED}\n")


def own(tmp_path: Path, name: str) -> Path:
    (tmp_path / "own").write_text(f"4:memory:/elsewhere\n0::{name}\n")
    return tmp_path / "own"


@pytest.mark.parametrize("place", ["", "system.slice", "system.slice/nvlm.service"])
def test_the_narrowest_group_around_a_process_decides(tmp_path: Path, place: str) -> None:
    bounded(tmp_path / "groups" / place)
    if place:
        bounded(tmp_path / "groups" / "other.slice", 1 << 20)
    seen = memory(tmp_path / "groups", own(tmp_path, "/system.slice/nvlm.service"))
    assert seen == Memory(BOUND, BOUND - USED + CACHED)


def test_a_container_that_does_not_see_the_groups_outside_has_its_own_bound(tmp_path: Path) -> None:
    bounded(tmp_path / "groups")
    assert memory(tmp_path / "groups", own(tmp_path, "/../../elsewhere")).total == BOUND
    assert memory(tmp_path / "groups", tmp_path / "none").total == BOUND


def test_nothing_is_left_where_more_is_used_than_the_bound(tmp_path: Path) -> None:
    bounded(tmp_path / "groups", 1 << 20)
    assert memory(tmp_path / "groups", own(tmp_path, "/")).available == 0


def test_without_a_bound_it_is_the_machines(tmp_path: Path) -> None:
    bounded(tmp_path / "groups", "max")
    for groups in (tmp_path / "groups", tmp_path / "none"):
        assert memory(groups, own(tmp_path, "/")).total == psutil.virtual_memory().total
