"""`Store(copy_threads=)`: large copies by several threads leave the bytes of one.

Method: batches of many MiB whose every byte is known, by one thread and by several, alone and with
other callers at once, on RAM and with an SSD below; threads are counted, and how often they ran, in
/proc. What the kernel refuses is refused for real: address space, a group's share of the cores.
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
from test_memory_limits import own_group

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def sleeps(but: set[str]) -> dict[str, tuple[str, str]]:
    """For each thread of a copy team but some: what it does, and how often it let go of a core."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended meanwhile.
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if fields["Name"] == "keystow-copy" and task.name not in but:
            switches = f"{fields['voluntary_ctxt_switches']} {fields['nonvoluntary_ctxt_switches']}"
            found[task.name] = (fields["State"][0], switches)
    return found


def asleep(wanted: int, but: set[str]) -> dict[str, tuple[str, str]]:
    """The same once so many threads sleep: what was woken last may still be on its way."""
    deadline = time.monotonic() + JOIN_S
    while True:
        before = sleeps(but)
        time.sleep(0.1)
        still = before == sleeps(but) and all(state == "S" for state, _ in before.values())
        if (still and len(before) == wanted) or time.monotonic() > deadline:
            return before


def test_small_copies_wake_nobody_and_nobody_spins() -> None:
    size = 64 << 10
    many, some = 128, 60  # 8 MiB are shared, not quite 4 MiB are not.
    out = np.zeros((many, size), np.uint8)
    others = set(sleeps(set()))  # Of other tests' stores.
    with open_store(block_bytes=size, copy_threads=3) as store:
        small, large = blocks(0, some, size), blocks(0, many, size)
        assert store.put(keys(0, some), small) == some
        assert store.put(keys(1000, 1), small[:1]) == 1
        for _ in range(20):
            assert store.get(keys(0, some), out[:some]) == some
            assert store.get_each(keys(0, 1), out[:1]) == [True]
        assert sleeps(others) == {}, "a small copy started a thread"
        for first in (2000, 3000, 4000):
            assert store.put(keys(first, many), large) == many
        shared = store.stats().copies_shared
        assert shared > 0
        before = asleep(2, others)
        assert len(before) == 2
        for number in range(200):
            assert store.put(keys(5000 + number, 1), small[:1]) == 1
            assert store.get(keys(5000 + number, 1), out[:1]) == 1
            assert store.get_each(keys(2000, some), out[:some]) == [True] * some
        assert (out[:some] == large[:some]).all()
        assert sleeps(others) == before
        assert store.stats().copies_shared == shared


def test_rows_of_one_memory_end_with_the_last_block() -> None:
    with open_store(copy_threads=3) as store:
        for first in (0, 1000, 2000):
            assert store.put(keys(first), blocks(first)) == BLOCKS
        shared = store.stats().copies_shared
        assert shared > 0
        one = np.zeros(MIB, np.uint8)
        for _ in range(6):
            one[:] = 0
            assert store.get(keys(2000), [one] * BLOCKS) == BLOCKS
            assert (one == blocks(2000)[-1]).all()
        assert store.stats().copies_shared == shared


def test_threads_that_the_kernel_refuses_are_told() -> None:
    # Room for a thread's stack is address space; what is left is less than one.
    script = """
import resource, keystow, numpy as np
store = keystow.Store(block_bytes=1 << 20, ram=64 << 20, copy_threads=32, prefault="now")
data, out = np.arange(8 << 20, dtype=np.uint8).reshape(8, 1 << 20), np.zeros((8, 1 << 20), np.uint8)
fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
now = int(fields["VmSize"].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 20), resource.RLIM_INFINITY))
names = [b"".join((100 * n + i).to_bytes(16, "little") for i in range(8)) for n in range(3)]
assert [store.put(keys, data) for keys in names] == [8] * 3
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for keys in names:
    out[:] = 0
    assert store.get(keys, out) == 8 and (out == data).all()
print(*store.stats().fallbacks, sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=JOIN_S
    )
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stdout.splitlines() if "large copies" in line]
    assert "threads, not 32" in said


@pytest.fixture(params=["v2", "v1"])
def one_core(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A group below our own that may use one core's time."""
    made = own_group(request.param, "cpu") / f"keystow-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made: {error}")
    limit = {"v2": ("cpu.max", "100000 100000"), "v1": ("cpu.cfs_quota_us", "100000")}
    try:
        try:
            (made / limit[request.param][0]).write_text(limit[request.param][1])
        except OSError as error:
            pytest.skip(f"the group has no cpu controller: {error}")
        yield made
    finally:
        made.rmdir()


def test_a_group_with_one_cores_time_copies_alone(one_core: Path) -> None:
    script = """
import os, sys
with open(os.path.join(sys.argv[1], "cgroup.procs"), "w") as procs:
    procs.write(str(os.getpid()))
import keystow
with keystow.Store(block_bytes=4096, ram="1MiB") as store:
    print(store.stats().copy_threads)
"""
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("this process has one core only: the group would show nothing")
    done = subprocess.run(
        [sys.executable, "-c", script, str(one_core)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


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
