"""Many threads on one store: right bytes or a miss, and nobody waits for another.

Method: each cell of a block's bytes names its key, its writer and the writer's count, so that a
torn, foreign or outdated block shows; writers, readers, lessees and one who removes and clears run
for a bounded number of rounds on a store far too small for them.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

import keystow
from model import raw_key

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_BYTES = 16 << 10
CELL = np.dtype([("key", "V16"), ("writer", "<u4"), ("count", "<u4"), ("check", "V8")])
CHAIN = 6
CHAINS = [
    np.frombuffer(b"".join(raw_key(n * 100 + i) for i in range(CHAIN)), "V16") for n in range(10)
]
FRAMES = 24
WRITERS = 2
CHECK = np.frombuffer(b"keystow!", "V8")[0]
DEADLINE_S = 60


def run_all(*workers: Callable[[], object]) -> list[object]:
    """Run each on a thread of its own; raise what any of them raised."""
    with ThreadPoolExecutor(len(workers)) as pool:
        return [f.result(timeout=DEADLINE_S) for f in [pool.submit(work) for work in workers]]


def blocks_of(keys: np.ndarray, writer: int, count: int) -> np.ndarray:
    cells = np.empty((len(keys), BLOCK_BYTES // CELL.itemsize), CELL)
    cells["key"] = keys[:, None]
    cells["writer"], cells["count"], cells["check"] = writer, count, CHECK
    return cells


class Traffic:
    """One store and what must be true of every block read from it."""

    def __init__(self) -> None:
        self.store = keystow.Store(block_bytes=BLOCK_BYTES, ram=FRAMES * BLOCK_BYTES, put_wait_s=5)
        # Per chain and writer: counts up to here were put before an erasure that has returned.
        self.floor = np.zeros((len(CHAINS), WRITERS), np.int64)
        self.returned = np.zeros(WRITERS, np.int64)
        self.done = threading.Event()
        self.hits = 0

    def write(self, writer: int, rounds: int) -> None:
        rng = np.random.default_rng(writer)
        for count in range(1, rounds + 1):
            keys = CHAINS[rng.integers(len(CHAINS))]
            stored = self.store.put(keys, blocks_of(keys, writer, count))
            assert 0 <= stored <= CHAIN
            self.returned[writer] = count

    def erase(self, rounds: int) -> None:
        rng = np.random.default_rng(99)
        for number in range(rounds):
            returned = self.returned.copy()
            if number % 8 == 7:
                self.store.clear()
                self.floor[:] = returned
            else:
                which = rng.integers(len(CHAINS))
                self.store.remove(CHAINS[which])
                self.floor[which] = returned
            time.sleep(0.001)

    def read(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        out = np.empty((CHAIN, BLOCK_BYTES // CELL.itemsize), CELL)
        while not self.done.is_set():
            which = int(rng.integers(len(CHAINS)))
            floor = self.floor[which].copy()
            how = rng.integers(3)
            if how == 0:
                there = self.store.get_each(CHAINS[which], out)
                self.check(which, floor, out[there], CHAINS[which][there])
            elif how == 1:
                n = self.store.get(CHAINS[which], out)
                self.check(which, floor, out[:n], CHAINS[which][:n])
            else:
                with self.store.lease(CHAINS[which]) as lease:
                    keys = CHAINS[which][: len(lease)]
                    for _ in range(2):  # the same bytes as long as the lease
                        cells = [np.frombuffer(view, CELL) for view in lease]
                        self.check(which, floor, np.array(cells, CELL), keys)
                        del cells

    def check(self, which: int, floor: np.ndarray, cells: np.ndarray, keys: np.ndarray) -> None:
        if not len(cells):
            return
        first = cells[:, :1]
        assert (cells == first).all(), f"chain {which}: torn"
        assert (first["key"][:, 0] == keys).all(), f"chain {which}: another key's bytes"
        assert (first["check"] == CHECK).all()
        old = first["count"][:, 0] <= floor[first["writer"][:, 0]]
        assert not old.any(), f"chain {which}: bytes from before an erasure"
        self.hits += len(cells)


@pytest.mark.parametrize("erasures", [0, 400])
def test_readers_see_right_bytes_or_a_miss_while_writers_evict(erasures: int) -> None:
    traffic = Traffic()

    def write_all() -> None:
        try:
            writers = [lambda w=w: traffic.write(w, 1_000) for w in range(WRITERS)]
            run_all(*writers, lambda: traffic.erase(erasures))
        finally:
            traffic.done.set()

    run_all(write_all, *(lambda seed=seed: traffic.read(seed) for seed in range(3)))
    assert traffic.hits > 100, "nothing was tested"
    recount = traffic.store._validate()
    assert recount["pins"] == recount["frames_pinned"] == 0
    stats = traffic.store.stats()
    assert stats.evictions > 1_000
    gone = stats.evictions + stats.removed + stats.cleared
    assert stats.blocks == stats.puts + stats.put_again - gone
    asked = stats.puts + stats.put_present + stats.put_duplicate + stats.put_short
    assert asked == 2 * 1_000 * CHAIN
    traffic.store.close()


def test_two_threads_that_put_and_lease_sixty_percent_never_wait() -> None:
    """Together they would need 120 %: somebody comes short, nobody waits, nothing is lost."""
    frames, rounds = 100, 60
    store = keystow.Store(block_bytes=4096, ram=frames * 4096, put_wait_s=30)
    both_lease = threading.Barrier(2, timeout=DEADLINE_S)
    both_done = threading.Barrier(2, timeout=DEADLINE_S)
    leased = [0, 0]

    def work(me: int) -> int:
        total = 0
        for number in range(rounds):
            keys = b"".join(raw_key((number * 2 + me) * 1000 + i) for i in range(60))
            blocks = np.frombuffer(keys, np.uint8).reshape(60, 16).repeat(256, axis=1)
            stored = store.put(keys, blocks)
            with store.lease(keys) as lease:
                leased[me] = len(lease)
                assert len(lease) <= stored <= 60
                both_lease.wait()
                assert sum(leased) <= frames
                assert store.stats().frames_pinned == sum(leased)
                # No view may outlive the lease here: it would keep the pins.
                assert [bytes(view) for view in lease] == list(map(bytes, blocks[: len(lease)]))
                total += len(lease)
                both_done.wait()
        return total

    began = time.monotonic()
    totals = run_all(lambda: work(0), lambda: work(1))
    assert time.monotonic() - began < rounds, "put waited for a lease, or a lease for a put"
    assert sum(totals) > rounds * 60, "one of the two always has its chain whole"
    assert store._validate()["evictable"] == store.stats().blocks


def test_leases_may_end_on_other_threads() -> None:
    store = keystow.Store(block_bytes=4096, ram=64 * 4096)
    handed: queue.Queue[tuple[int, keystow.Lease, memoryview] | None] = queue.Queue(maxsize=8)
    rounds = 2_000

    def give() -> None:
        for number in range(rounds):
            key = raw_key(number % 100)
            store.put(key, [key * 256])
            lease = store.lease(key)
            if len(lease):
                handed.put((number % 100, lease, lease[0]))
        for _ in range(2):
            handed.put(None)

    def take() -> int:
        count = 0
        for number, lease, view in iter(handed.get, None):
            lease.release()
            assert view == raw_key(number) * 256
            view.release()
            count += 1
        return count

    counts = run_all(give, take, take)
    assert counts[1] + counts[2] > rounds // 2
    recount = store._validate()
    assert (recount["pins"], recount["frames_pinned"]) == (0, 0)
    assert recount["evictable"] == recount["blocks"] <= 64


def test_verbs_of_all_kinds_on_threads_leave_a_sound_store() -> None:
    store = keystow.Store(block_bytes=512, ram=40 * 4096)
    asked = itertools.count()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(1_500):
            start, length = int(rng.integers(1, 60)), int(rng.integers(1, 12))
            keys = b"".join(raw_key(n) for n in range(start, start + length))
            verb = rng.integers(12)
            if verb < 5:
                parent = raw_key(start - 1) if rng.random() < 0.5 else None
                store.put(keys, [key * 32 for key in cut(keys)], parent=parent)
                next(asked)
            elif verb < 8:
                out = bytearray(length * 512)
                n = store.get(keys, out)
                assert out[: n * 512] == b"".join(key * 32 for key in cut(keys)[:n])
            elif verb == 8:
                with store.lease(keys, min_blocks=0) as lease:
                    assert [bytes(view) for view in lease] == [
                        key * 32 for key in cut(keys)[: len(lease)]
                    ]
            elif verb == 9:
                store.touch(keys)
                store.match(keys)
                store.contains(keys)
            elif verb == 10:
                store.remove(keys)
            elif rng.random() < 0.05:
                store.clear()
            else:
                store.stats()
                store.events()

    run_all(*(lambda seed=seed: work(seed) for seed in range(4)))
    recount = store._validate()
    assert recount["evictable"] == recount["blocks"]
    assert next(asked) > 1_000


def cut(packed: bytes) -> list[bytes]:
    return [packed[i : i + 16] for i in range(0, len(packed), 16)]
