"""A directory has one owner, as long as that lives and no longer.

Method: openers in this process and in others; owners that are killed, also with a forked child that
lives on with all their descriptors.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

import keystow
from crash.owners import expected, keys, open_store, read_each, rows, run_until_killed, start

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

OWN = """
store = open_store(sys.argv[1])
assert store.put(keys(0, 64), rows(0, 64)) == 64
assert store.flush() == 0
"""


def test_a_second_opener_in_the_process_is_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for _ in range(3):
            with pytest.raises(keystow.StoreLockedError):
                open_store(tmp_path)
        store.put(keys(0, 4), rows(0, 4))
        with open_store(tmp_path, member="1") as other:
            assert read_each(other, 0, 4) == {}
    with open_store(tmp_path) as store:
        assert read_each(store, 0, 4) == expected(0, 4)


def test_a_second_opener_in_another_process_is_refused(tmp_path: Path) -> None:
    with start(OWN + "print('ready', flush=True)\nsys.stdin.readline()\ndie()", tmp_path) as owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        assert owner.stdout.readline() == "ready\n"
        for _ in range(3):
            with pytest.raises(keystow.StoreLockedError):
                open_store(tmp_path)
        owner.stdin.write("die\n")
    assert owner.returncode == -signal.SIGKILL
    with open_store(tmp_path) as store:
        assert read_each(store, 0, 64) == expected(0, 64)


def test_a_child_of_a_killed_owner_keeps_nobody_out(tmp_path: Path) -> None:
    """The child has the owner's descriptors, and is alive while the directory is opened again."""
    code = """
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    os._exit(0)
time.sleep(0.2)
die()
"""
    with start(OWN + code, tmp_path) as owner:
        assert owner.stdout is not None
        assert owner.stdin is not None
        child = int(owner.stdout.readline())
        owner.wait(60)
        assert owner.returncode == -signal.SIGKILL
        assert _alive(child), "the child has ended too early: nothing is tested"
        with open_store(tmp_path) as store:
            assert read_each(store, 0, 64) == expected(0, 64)
            store.remove(keys(0, 8))
        assert _alive(child)
        owner.stdin.write("end\n")
    with open_store(tmp_path) as store:
        assert read_each(store, 0, 64) == expected(8, 56)


def _alive(process: int) -> bool:
    status = f"/proc/{process}/stat"
    try:
        with open(status, encoding="ascii") as file:  # noqa: PTH123 - a path of the kernel's
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_owner_that_is_killed_again_and_again_comes_back_warm(tmp_path: Path) -> None:
    for number in range(5):
        code = OWN.replace("keys(0,", f"keys({number * 64},").replace(
            "rows(0,", f"rows({number * 64},"
        )
        run_until_killed(code + "die()", tmp_path)
    with open_store(tmp_path) as store:
        assert store.stats().recovered == 5 * 64
        assert read_each(store, 0, 5 * 64) == expected(0, 5 * 64)
