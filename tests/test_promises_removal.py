"""What a remove or a clear named stays gone, whatever kills the store; the rest stays warm.

Method: an owner in a process of its own kills itself right after the call has returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crash.owners import expected, keys, open_store, read_each, run_until_killed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

OPEN = """
store = open_store(sys.argv[1])
assert store.put(keys(0, 64), rows(0, 64)) == 64
assert store.flush() == 0
"""


@pytest.mark.parametrize("flushed", [True, False])
def test_a_removed_block_stays_gone(tmp_path: Path, flushed: bool) -> None:  # noqa: FBT001
    code = OPEN + "assert store.remove(keys(20, 10)) == 10\n"
    code += "store.flush()\n" * flushed
    run_until_killed(code + "die()", tmp_path)
    with open_store(tmp_path) as store:
        left = expected(0, 20) | expected(30, 34)
        assert read_each(store, 0, 64) == left
        assert store.match_prefix(keys(0, 64)) == 20


def test_only_the_newest_version_of_a_removed_key_comes_back(tmp_path: Path) -> None:
    """Old copies stand in slots that were given back, in pages that nobody wrote since."""
    code = """
store = open_store(sys.argv[1])
for version in range(1, 6):
    assert store.put(keys(0, 64), rows(0, 64, version)) == 64
    assert store.flush() == 0
    assert store.remove(keys(0, 64)) == 64
assert store.put(keys(0, 64), rows(0, 64, 6)) == 64
die()
"""
    run_until_killed(code, tmp_path)
    with open_store(tmp_path) as store:
        found = read_each(store, 0, 64)
        assert found.items() <= expected(0, 64, 6).items()


def test_nothing_from_before_a_clear_comes_back(tmp_path: Path) -> None:
    code = OPEN + "store.clear()\nassert store.put(keys(5, 3), rows(5, 3, 2)) == 3\n"
    for end, left in [("", 0), ("store.flush()\n", 3)]:
        root = tmp_path / str(left)
        run_until_killed(code + end + "die()", root)
        with open_store(root) as store:
            found = read_each(store, 0, 64)
            assert found.items() <= expected(5, 3, 2).items()
            assert len(found) >= left


def test_a_store_removed_in_mid_chain_refills(tmp_path: Path) -> None:
    run_until_killed(OPEN + "store.remove(keys(30, 1))\ndie()", tmp_path)
    code = """
store = open_store(sys.argv[1])
assert store.match_prefix(keys(0, 64)) == 30
assert store.put(keys(30, 1), rows(30, 1, 2), parent=keys(29, 1)) == 1
assert store.match_prefix(keys(0, 64)) == 64
assert store.flush() == 0
die()
"""
    run_until_killed(code, tmp_path)
    with open_store(tmp_path) as store:
        assert store.match_prefix(keys(0, 64)) == 64
        assert read_each(store, 0, 64) == expected(0, 64) | expected(30, 1, 2)
