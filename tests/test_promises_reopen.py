"""Other settings at reopen: nothing that still fits is lost, and the disk holds what was asked.

Method: a directory filled by one store is opened by others with another capacity, RAM, policy or
layout; kept blocks must be those put, and the files may take no more than the capacity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import keystow
from crash.owners import (
    BLOCK_BYTES,
    CAPACITY,
    MIB,
    expected,
    keys,
    open_store,
    read_each,
    rows,
    run_until_killed,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

COUNT = 512
FILL = f"""
store = open_store(sys.argv[1])
assert store.put(keys(0, {COUNT}), rows(0, {COUNT})) == {COUNT}
assert store.flush() == 0
die()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run_until_killed(FILL, tmp_path)
    return tmp_path


def bytes_on_disk(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_larger_keeps_all_and_uses_the_room(root: Path) -> None:
    with open_store(root, capacity=3 * CAPACITY) as store:
        assert read_each(store, 0, COUNT) == expected(0, COUNT)
        assert store.stats().ssd_slots_total > 2 * CAPACITY // BLOCK_BYTES
        for first in range(COUNT, 4 * COUNT, 64):
            assert store.put(keys(first, 64), rows(first, 64)) == 64
    assert CAPACITY < bytes_on_disk(root) <= 3 * CAPACITY
    with open_store(root, capacity=3 * CAPACITY) as store:
        assert read_each(store, 0, 4 * COUNT) == expected(0, 4 * COUNT)


@pytest.mark.parametrize("killed", [True, False])
def test_smaller_keeps_what_fits(root: Path, killed: bool) -> None:  # noqa: FBT001
    capacity = 4 * MIB
    if killed:
        code = f"store = open_store(sys.argv[1], capacity={capacity})\ndie()"
        run_until_killed(code, root)
    with open_store(root, capacity=capacity) as store:
        assert bytes_on_disk(root) <= capacity
        found = read_each(store, 0, COUNT)
        assert found.items() <= expected(0, COUNT).items()
        assert len(found) > capacity // BLOCK_BYTES // 2
        assert store.put(keys(COUNT, 64), rows(COUNT, 64)) == 64
    with open_store(root, capacity=CAPACITY) as store:
        found = read_each(store, 0, COUNT)
        assert found.items() <= expected(0, COUNT).items()


@pytest.mark.parametrize("ram", [1 * MIB, 32 * MIB, 0])
def test_other_ram_finds_all(root: Path, ram: int) -> None:
    with open_store(root, ram=ram) as store:
        assert store.match_prefix(keys(0, COUNT)) == COUNT
        assert read_each(store, 0, COUNT) == expected(0, COUNT)


@pytest.mark.parametrize("policy", keystow._core.POLICIES)
def test_other_policy_finds_all(root: Path, policy: str) -> None:
    ssd = keystow.Ssd(root, CAPACITY)
    with keystow.Store(block_bytes=BLOCK_BYTES, ram=MIB, ssd=ssd, policy=policy) as store:
        assert read_each(store, 0, COUNT) == expected(0, COUNT)


def test_another_layout_lives_beside(root: Path) -> None:
    others = [{"block_bytes": 2 * BLOCK_BYTES}, {"namespace": "b"}, {"salt": "c"}]
    for change in others:
        ssd = keystow.Ssd(root, CAPACITY)
        settings = {"block_bytes": BLOCK_BYTES, **change}
        with keystow.Store(ram=MIB, ssd=ssd, **settings) as other:
            assert not any(other.contains(keys(0, COUNT)))
            other.put(keys(0, 8), rows(0, 8, 9))
    with open_store(root) as store:
        assert read_each(store, 0, COUNT) == expected(0, COUNT)
