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

BLOCK_BYTES = 64 << 10
CHAIN = 6
CHAINS = [b"".join(raw_key(n * 100 + i) for i in range(CHAIN)) for n in range(10)]
# A cell is eight words: the key, who wrote it, the writer's count, and the writer again, inverted.
CELLS = (CHAIN, BLOCK_BYTES // 32, 8)
FRAMES = 24
WRITERS = 2
PUTS = 4_000
DEADLINE_S = 60


def run_all(*workers: Callable[[], object]) -> list[object]:
    """Run each on a thread of its own; raise what any of them raised."""
    with ThreadPoolExecutor(len(workers)) as pool:
        return [f.result(timeout=DEADLINE_S) for f in [pool.submit(work) for work in workers]]


def words_of(keys: bytes) -> np.ndarray:
    return np.frombuffer(keys, np.uint32).reshape(CHAIN, 4)


class Traffic:
    """One store and what must be true of every block read from it."""

    def __init__(self) -> None:
        self.store = keystow.Store(block_bytes=BLOCK_BYTES, ram=FRAMES * BLOCK_BYTES, put_wait_s=5)
        # Per chain and writer: counts up to here were put before an erasure that has returned.
        self.floor = np.zeros((len(CHAINS), WRITERS), np.int64)
        self.returned = np.zeros(WRITERS, np.int64)
        self.done = threading.Event()
        self.hits = 0

    def write(self, writer: int) -> None:
        rng = np.random.default_rng(writer)
        cells = np.empty((len(CHAINS), *CELLS), np.uint32)
        cells[..., :4] = np.array([words_of(keys) for keys in CHAINS])[:, :, None]
        cells[..., 4], cells[..., 6:] = writer, ~np.uint32(writer)
        for count in range(1, PUTS + 1):
            which = rng.integers(len(CHAINS))
            cells[which, ..., 5] = count
            assert 0 <= self.store.put(CHAINS[which], cells[which]) <= CHAIN
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
        out = np.zeros(CELLS, np.uint32)
        while not self.done.is_set():
            which = int(rng.integers(len(CHAINS)))
            floor = self.floor[which].copy()
            how = rng.integers(8)
            if how == 0:
                there = self.store.get_each(CHAINS[which], out)
                self.check(which, floor, out[there], np.flatnonzero(there))
            elif how < 7:
                n = self.store.get(CHAINS[which], out)
                self.check(which, floor, out[:n], np.arange(n))
            else:
                with self.store.lease(CHAINS[which]) as lease:
                    for _ in range(2):  # the same bytes as long as the lease
                        for i in range(len(lease)):
                            cells = np.frombuffer(lease[i], np.uint32).reshape(1, *CELLS[1:])
                            self.check(which, floor, cells, np.array([i]))
                    cells = None  # a view would keep the pins

    def check(self, which: int, floor: np.ndarray, cells: np.ndarray, at: np.ndarray) -> None:
        first = cells[:, :1]
        assert (cells == first).all(), f"chain {which}: torn"
        writer, count = first[:, 0, 4], first[:, 0, 5]
        assert (first[:, 0, :4] == words_of(CHAINS[which])[at]).all(), "another key's bytes"
        assert (first[:, 0, 6] == ~writer).all(), "nobody's bytes"
        assert (count > floor[writer]).all(), f"chain {which}: bytes from before an erasure"
        self.hits += len(cells)


@pytest.mark.parametrize("erasures", [0, 1_000])
def test_readers_see_right_bytes_or_a_miss_while_writers_evict(erasures: int) -> None:
    traffic = Traffic()

    def write_all() -> None:
        try:
            writers = [lambda w=w: traffic.write(w) for w in range(WRITERS)]
            run_all(*writers, lambda: traffic.erase(erasures))
        finally:
            traffic.done.set()

    run_all(write_all, *(lambda seed=seed: traffic.read(seed) for seed in range(3)))
    assert traffic.hits > 100, "nothing was tested"
    recount = traffic.store._validate()
    assert recount["pins"] == recount["frames_pinned"] == 0
    stats = traffic.store.stats()
    assert stats.evictions > PUTS
    gone = stats.evictions + stats.removed + stats.cleared
    assert stats.blocks == stats.puts + stats.put_again - gone
    asked = stats.puts + stats.put_present + stats.put_duplicate + stats.put_short
    assert asked == WRITERS * PUTS * CHAIN
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
