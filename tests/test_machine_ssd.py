"""Any history of calls, flushes and crashes leaves right bytes, and what a flush promised.

Method: hypothesis draws histories over a simulated disk, in deterministic mode. A dict by key says
what the store must hold; where the disk has room for every key (`RoomyMachine`) the store must hold
exactly that, however small its RAM; where it has not (`TightMachine`), that or less. A crash may
lose what no flush has confirmed, and may bring back a remove that was not durable; nothing else.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import keystow
from histories import KEYS, RUNS, Run
from model import payload

BLOCK_BYTES = 48
FRAME_BYTES = 4096
UNTOUCHED = 0xEE
LENGTHS = st.sampled_from([BLOCK_BYTES, BLOCK_BYTES, 17, 1, 0])
ROOMY_BYTES = 1 << 20
# SUPER, the layout's description and one table page, and then five blocks.
TIGHT_BYTES = 2 * 8192 + FRAME_BYTES + 5 * FRAME_BYTES
LEASES_MAX = 3

Data = bytes


class Machine(RuleBasedStateMachine):
    """What holds on any disk."""

    capacity_bytes = ROOMY_BYTES
    roomy = True

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        # What the store holds, as far as it may not have lost it: the bytes it may have.
        self.held: dict[bytes, set[Data]] = {}
        # What a crash may bring back: removed, but not for good.
        self.ghosts: dict[bytes, set[Data]] = defaultdict(set)
        self.leases: list[tuple[keystow.Lease, list[Data]]] = []
        # The keys that every kill from now on must leave, and every power cut as long as no table
        # page is written again: half a page is none.
        self.sure: set[bytes] = set()
        self.pages_then = 0

    @initialize(frames=st.integers(0, 6), seed=st.integers(0, 1 << 20))
    def open(self, frames: int, seed: int) -> None:
        self.store = keystow.Store(
            block_bytes=BLOCK_BYTES,
            ram=frames * FRAME_BYTES,
            ssd=keystow.Ssd("", self.capacity_bytes, engine="sim", seed=seed),
            deterministic=True,
            clock="manual",
        )

    @rule(run=RUNS, length=LENGTHS, chained=st.sampled_from([True, True, True, False]))
    def put(self, run: Run, length: int, chained: bool) -> None:  # noqa: FBT001
        self.version += 1
        blocks = [payload(key, self.version, length) for key in run.keys]
        stored = self.store.put(run.packed(), blocks, parent=run.parent, chained=chained)
        if self.roomy:
            assert stored == len(run.keys)
        self.learn()
        for key, data in zip(run.keys, blocks, strict=True):
            if key in self.there and key not in self.held:
                self.held[key] = {data}
                self.sure.discard(key)
            elif key in self.there and not self.roomy:
                # It may have left to make room for one before it, and come back.
                self.held[key].add(data)
        # On a tight disk the cleaner, ahead of need, may already have taken a slot of one of them.
        assert not self.roomy or self.there.issuperset(run.keys[:stored])

    @rule(run=RUNS)
    def get(self, run: Run) -> None:
        rows = [bytearray([UNTOUCHED] * BLOCK_BYTES) for _ in run.keys]
        got = self.store.get(run.packed(), rows)
        leading = next((i for i, key in enumerate(run.keys) if key not in self.held), len(rows))
        assert got == leading if self.roomy else got <= leading
        for key, row in zip(run.keys[:got], rows, strict=False):
            self.check(key, row)

    @rule(run=RUNS)
    def get_each(self, run: Run) -> None:
        rows = [bytearray([UNTOUCHED] * BLOCK_BYTES) for _ in run.keys]
        for key, row, got in zip(
            run.keys, rows, self.store.get_each(run.packed(), rows), strict=True
        ):
            assert got == (key in self.held) if self.roomy else not got or key in self.held
            if got:
                self.check(key, row)

    def check(self, key: bytes, row: bytearray) -> None:
        self.see(key, [data for data in self.held[key] if row == self.padded(data)])

    def see(self, key: bytes, fits: list[Data]) -> None:
        """Know from now on which of the bytes it may have the block has."""
        assert fits, f"{key.hex()} has bytes that nobody put, or that were removed"
        self.held[key] = set(fits)

    @rule(run=RUNS, pinned=st.booleans())
    def lease(self, run: Run, pinned: bool) -> None:  # noqa: FBT001
        if len(self.leases) == LEASES_MAX:
            self.leases.pop(0)[0].release()
        if pinned:
            match = self.store.match(run.packed(), pin=True)
            lease = match.lease()
            match.release()
        else:
            lease = self.store.lease(run.packed())
        data = [bytes(view) for view in lease]
        for key, seen in zip(run.keys, data, strict=False):
            self.see(key, [seen] if seen in self.held[key] else [])
        self.leases.append((lease, data))

    @rule(at=st.integers(0, LEASES_MAX - 1))
    def release(self, at: int) -> None:
        if at < len(self.leases):
            self.leases.pop(at)[0].release()

    @rule(run=RUNS, durable=st.sampled_from([True, True, False]))
    def remove(self, run: Run, durable: bool) -> None:  # noqa: FBT001
        self.learn()
        removed = self.store.remove(run.packed(), durable=durable)
        assert removed == len({key for key in run.keys if key in self.there})
        for key in run.keys:
            self.ghosts[key] |= self.held.pop(key, set())
            self.sure.discard(key)
        if durable:
            # Every page that differs was written, whoever made it differ.
            self.ghosts.clear()

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.held.clear()
        self.ghosts.clear()
        self.sure.clear()

    @rule()
    def flush(self) -> None:
        self.flushed()

    def flushed(self) -> bool:
        """Flush; whether all that is there is on disk now."""
        left = self.store.flush(timeout_s=10.0)
        self.learn()
        assert left == 0 or not self.roomy
        if left == 0:
            self.ghosts.clear()
            self.sure = set(self.there)
            self.pages_then = self.store.stats().ssd_page_writes
        return left == 0

    @rule(us=st.sampled_from([100, 10_000, 600_000, 2_000_000]))
    def step(self, us: int) -> None:
        self.store._step(us)

    @rule(seed=st.integers(0, 1 << 20), power=st.booleans())
    def crash(self, seed: int, power: bool) -> None:  # noqa: FBT001
        # What does not come back now may do so after a crash that loses the blanking of it.
        for key, data in self.held.items():
            self.ghosts[key] |= data
        stats = self.store.stats()
        paged = stats.ssd_page_writes > self.pages_then or stats.ssd_requests_in_flight > 0
        if power and paged:
            self.sure.clear()
        self.store._crash(seed, power=power)
        self.pages_then = self.store.stats().ssd_page_writes
        self.held = {}
        rows = [bytearray([UNTOUCHED] * BLOCK_BYTES) for _ in KEYS]
        for key, row, got in zip(KEYS, rows, self.store.get_each(KEYS_PACKED, rows), strict=True):
            if not got:
                assert key not in self.sure
                continue
            self.see(key, [data for data in self.ghosts[key] if row == self.padded(data)])

    @rule(seed=st.integers(0, 1 << 20), power=st.booleans())
    def flush_and_crash(self, seed: int, power: bool) -> None:  # noqa: FBT001
        if self.flushed():
            there = set(self.there)
            self.crash(seed, power)
            assert set(self.held) == there

    @rule(run=RUNS, seed=st.integers(0, 1 << 20), power=st.booleans())
    def remove_and_crash(self, run: Run, seed: int, power: bool) -> None:  # noqa: FBT001
        self.remove(run, durable=True)
        self.crash(seed, power)

    @rule(seed=st.integers(0, 1 << 20), power=st.booleans(), flushed=st.booleans())
    def clear_and_crash(self, seed: int, power: bool, flushed: bool) -> None:  # noqa: FBT001
        if flushed:
            self.flush()
        self.clear()
        self.crash(seed, power)

    @staticmethod
    def padded(data: Data) -> bytes:
        return data + bytes([UNTOUCHED]) * (BLOCK_BYTES - len(data))

    def learn(self) -> None:
        """Forget what left a disk without room for all."""
        there = self.store.contains(KEYS_PACKED)
        self.there = {key for key, is_there in zip(KEYS, there, strict=True) if is_there}
        if not self.roomy:
            # Room was made; the table on disk may not say so yet.
            for key in self.held.keys() - self.there:
                self.ghosts[key] |= self.held.pop(key)
            self.sure &= self.there

    @invariant()
    def the_store_holds_what_it_should(self) -> None:
        if not hasattr(self, "store"):
            return
        self.learn()
        assert self.there == self.held.keys()
        for lease, data in self.leases:
            assert [bytes(view) for view in lease] == data
        self.store._validate()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            for lease, _ in self.leases:
                lease.release()
            self.store.close()


KEYS_PACKED = b"".join(KEYS)


class RoomyMachine(Machine):
    """Room on disk for every key: nothing ever leaves but by name or crash."""


class TightMachine(Machine):
    """Room for a few blocks in both tiers."""

    capacity_bytes = TIGHT_BYTES
    roomy = False


SETTINGS = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.timeout(600)  # a failing history is made smaller, which takes its time
class TestRoomyMachine(RoomyMachine.TestCase):
    """Hypothesis runs it."""

    settings = SETTINGS


@pytest.mark.timeout(600)
class TestTightMachine(TightMachine.TestCase):
    """Hypothesis runs it."""

    settings = SETTINGS


def test_a_power_cut_may_cost_a_page_that_was_written_again() -> None:
    """A block is on SSD while a remove is confirmed; its page is on its way when that returns."""
    machine = RoomyMachine()
    machine.open(frames=2, seed=249)
    machine.put(run=Run((0, 3, 4), None), length=48, chained=True)
    assert machine.flushed()
    machine.put(run=Run((0, 1, 2), None), length=48, chained=True)
    machine.remove_and_crash(run=Run((0,), None), seed=1, power=True)
    machine.the_store_holds_what_it_should()
    machine.teardown()


def test_a_flush_that_leaves_blocks_promises_the_others_alone() -> None:
    """Six blocks on a disk with room for five; what one flush promised stays promised."""
    machine = TightMachine()
    machine.open(frames=6, seed=0)
    for numbers in ((0, 10, 11), (1, 2, 3)):
        machine.put(run=Run(numbers, None), length=48, chained=True)
        machine.the_store_holds_what_it_should()
        assert machine.flushed() == (numbers[0] == 0)
    assert (len(machine.there), machine.store.stats().ssd_slots_total) == (6, 5)
    machine.flush_and_crash(seed=0, power=False)
    machine.the_store_holds_what_it_should()
    machine.teardown()


def left_by(*, power: bool, seed: int) -> int:
    """How many of some blocks, written and a second old, a crash leaves."""
    keys = b"".join(KEYS)
    store = keystow.Store(
        block_bytes=BLOCK_BYTES,
        ram=4 * FRAME_BYTES,
        ssd=keystow.Ssd("", ROOMY_BYTES, engine="sim", seed=seed),
        deterministic=True,
        clock="manual",
    )
    assert store.put(keys, [payload(key, 1, BLOCK_BYTES) for key in KEYS]) == len(KEYS)
    for _ in range(40):
        store._step(50_000)
    store._crash(seed, power=power)
    return sum(store.contains(keys))


def test_a_kill_loses_nothing_a_second_old_and_a_power_cut_may() -> None:
    assert [left_by(power=False, seed=seed) for seed in range(10)] == [len(KEYS)] * 10
    assert min(left_by(power=True, seed=seed) for seed in range(10)) < len(KEYS)
