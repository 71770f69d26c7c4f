"""`Store(copy_threads=)`: large copies by several threads leave the bytes of one.

Method: batches of many MiB whose every byte is known, by one thread and by several, alone and with
other callers at once, on RAM and with an SSD below; threads are counted in /proc.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import keystow

if TYPE_CHECKING:
    from typing import Any

MIB = 1 << 20
BLOCKS = 8
JOIN_S = 60


def keys(first: int, count: int = BLOCKS) -> bytes:
    """Packed keys of a range of numbers."""
    return b"".join(number.to_bytes(16, "little") for number in range(first, first + count))


def blocks(first: int, count: int = BLOCKS, size: int = MIB) -> np.ndarray[Any, Any]:
    """The bytes of those keys: no two alike, and no row a rotation of itself."""
    rows = np.arange(first, first + count, dtype=np.uint64)[:, None] * np.uint64(2654435761)
    words = np.arange(size // 8, dtype=np.uint64)[None, :] * np.uint64(0x9E3779B97F4A7C15)
    return (rows ^ words).view(np.uint8)


def open_store(**options: Any) -> keystow.Store:
    return keystow.Store(**{"block_bytes": MIB, "ram": 64 * MIB, **options})


def copy_threads() -> int:
    """Threads of our copy teams that are there now."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        try:
            found += (task / "comm").read_text().strip() == "keystow-copy"
        except FileNotFoundError:
            continue  # It ended meanwhile.
    return found


def reached(wanted: int) -> bool:
    """Whether there come to be so many: a thread names itself when it first runs."""
    deadline = time.monotonic() + JOIN_S
    while copy_threads() != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return copy_threads() == wanted


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bytes_are_those_of_one_thread(threads: int) -> None:
    with open_store(copy_threads=threads) as store:
        # Rows of different lengths, over frames that were full of something else.
        for first in (0, 1000, 2000, 3000, 4000, 5000, 6000, 7000):
            assert store.put(keys(first), blocks(first)) == BLOCKS
        lengths = [MIB, 0, 1, MIB - 1, 700_001, MIB, 4096, 5]
        rows = [row[:length] for row, length in zip(blocks(9000), lengths, strict=True)]
        assert store.put(keys(9000), rows) == BLOCKS
        for _ in range(3):
            out = np.full((BLOCKS, MIB), 0xEE, np.uint8)
            assert store.get(keys(7000), out) == BLOCKS
            assert (out == blocks(7000)).all()
            out[:] = 0xEE
            assert store.get_each(keys(7000), out) == [True] * BLOCKS
            assert (out == blocks(7000)).all()
        out[:] = 0xEE
        assert store.get(keys(9000), out) == BLOCKS
        for row, got in zip(rows, out, strict=True):
            assert (got[: len(row)] == row).all()
            assert (got[len(row) :] == 0xEE).all()
        stats = store.stats()
        assert stats.copy_threads == threads
        assert (stats.copies_shared > 0) == (threads > 1)


def test_one_large_block_is_shared_too() -> None:
    size = 24 * MIB
    data, out = blocks(1, 1, size), np.zeros((1, size), np.uint8)
    with open_store(block_bytes=size, ram=4 * size, copy_threads=3) as store:
        for number in (1, 2, 3):
            assert store.put(keys(number, 1), data) == 1
            assert store.get(keys(number, 1), out) == 1
            assert (out == data).all()
            out[:] = 0
        assert store.stats().copies_shared >= 2


def test_threads_come_with_the_first_large_copy_and_go_with_the_store() -> None:
    before = copy_threads()
    store = open_store(copy_threads=3)
    assert store.put(keys(0, 3), blocks(0, 3)) == 3
    assert copy_threads() == before
    for first in (100, 200):
        assert store.put(keys(first), blocks(first)) == BLOCKS
    assert reached(before + 2)
    store.close()
    del store
    assert reached(before)


def test_the_default_is_the_cores_and_at_most_four() -> None:
    script = """
import os, sys, keystow
cores = set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
os.sched_setaffinity(0, cores)
with keystow.Store(block_bytes=4096, ram="1MiB") as store:
    print(store.stats().copy_threads)
"""
    most = min(4, len(os.sched_getaffinity(0)))
    for cores in (1, 2, 64):
        done = subprocess.run(
            [sys.executable, "-c", script, str(cores)], capture_output=True, text=True, check=True
        )
        # A cgroup may give less than the affinity.
        assert 1 <= int(done.stdout) <= min(cores, most)
        assert cores > 1 or int(done.stdout) == 1
    with open_store() as store:
        assert store.stats().copy_threads == min(4, keystow._core._cores())
    with open_store(copy_threads=5, deterministic=True) as store:
        assert store.stats().copy_threads == 1


@pytest.mark.parametrize("value", [0, -1, 65, 1.5, "2", True])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(keystow.ConfigError) as caught:
        open_store(copy_threads=value)
    assert caught.value.code == "KS-CFG-221"
    assert "1 to 64" in caught.value.hint


def test_callers_at_once_on_both_tiers(tmp_path: Path) -> None:
    wrong: list[str] = []
    with open_store(ram=24 * MIB, ssd=f"{tmp_path}:72MiB", copy_threads=2) as store:

        def turn(worker: int) -> None:
            out = np.empty((BLOCKS, MIB), np.uint8)
            for round_ in range(8):
                own = 1000 * worker + 100 * (round_ % 3)
                store.put(keys(own), blocks(own))
                for first in (own, 1000 * ((worker + 1) % 3) + 100 * (round_ % 3)):
                    out[:] = 0
                    count = store.get(keys(first), out)
                    if not (out[:count] == blocks(first)[:count]).all():
                        wrong.append(f"get {first}: {count}")
                    each = store.get_each(keys(first), out)
                    good = (out == blocks(first)).all(axis=1)
                    found = zip(each, good, strict=True)
                    wrong.extend(f"each {first}" for has, ok in found if has and not ok)

        workers = [threading.Thread(target=turn, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(JOIN_S)
        assert not any(worker.is_alive() for worker in workers)
        assert store.stats().copies_shared > 0
        assert store._validate()
    assert wrong == []


def test_a_forked_child_ends() -> None:
    script = """
import os, keystow, numpy as np
store = keystow.Store(block_bytes=1 << 20, ram=32 << 20, copy_threads=3)
data = np.ones((8, 1 << 20), np.uint8)
for first in range(3):
    assert store.put(bytes([first]) * 16 + os.urandom(112), data) == 8
child = os.fork()
if child == 0:
    try:
        store.put(os.urandom(128), data)
    except keystow.StoreClosedError:
        del store
        os._exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert store.put(os.urandom(128), data) == 8
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=JOIN_S,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr
