"""Any history of calls leaves the store exactly where the model says.

Method: hypothesis draws histories of all verbs on stores of one to eight frames in deterministic
mode; after every step contents, counters, events and the recount must equal those of `model.Model`,
and every byte handed out must be the one put.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import keystow
from histories import KEYS, QUESTIONS, RUNS, Run
from model import COUNTERS, Model, ModelLease, payload

BLOCK_BYTES = 48
FRAME_BYTES = 4096
UNTOUCHED = 0xEE
LENGTHS = st.sampled_from([BLOCK_BYTES, BLOCK_BYTES, 17, 1, 0])


@dataclass
class Held:
    """A lease and its views, in the store and in the model."""

    lease: keystow.Lease | None
    views: list[tuple[int, memoryview]]
    model: ModelLease


class Machine(RuleBasedStateMachine):
    """Every verb but those that take blocks away by name."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []
        self.version = 0

    @initialize(frames=st.integers(1, 8))
    def open(self, frames: int) -> None:
        ram = frames * FRAME_BYTES
        self.store = keystow.Store(block_bytes=BLOCK_BYTES, ram=ram, deterministic=True)
        self.model = Model(frames)

    @rule(run=RUNS, length=LENGTHS, chained=st.sampled_from([True, True, True, False]))
    def put(self, run: Run, length: int, chained: bool) -> None:  # noqa: FBT001
        self.version += 1
        blocks = [payload(key, self.version, length) for key in run.keys]
        stored = self.store.put(run.packed(), blocks, parent=run.parent, chained=chained)
        assert stored == self.model.put(run.keys, blocks, run.parent, chained=chained)

    @rule(run=QUESTIONS)
    def get(self, run: Run) -> None:
        rows = [bytearray([UNTOUCHED] * BLOCK_BYTES) for _ in run.keys]
        got = self.store.get(run.packed(), rows)
        expected = self.model.get(run.keys)
        assert got == len(expected)
        for row, data in zip(rows, expected, strict=False):
            assert row == data + bytes([UNTOUCHED]) * (BLOCK_BYTES - len(data))

    @rule(run=QUESTIONS)
    def get_each(self, run: Run) -> None:
        rows = [bytearray([UNTOUCHED] * BLOCK_BYTES) for _ in run.keys]
        got = self.store.get_each(run.packed(), rows)
        expected = self.model.get_each(run.keys)
        assert got == [data is not None for data in expected]
        for row, data in zip(rows, expected, strict=True):
            start = data or b""
            assert row == start + bytes([UNTOUCHED]) * (BLOCK_BYTES - len(start))

    @rule(run=QUESTIONS)
    def ask(self, run: Run) -> None:
        expected = len(self.model.run(run.keys))
        found = self.store.match(run.packed())
        assert (int(found), found.ram, found.ssd) == (expected, expected, 0)
        assert found.bytes == sum(len(h.data or b"") for h in self.model.run(run.keys))
        assert self.store.match_prefix(run.packed()) == expected
        self.model.looked_up(2 * len(run.keys), 2 * expected)

    @rule(run=RUNS)
    def touch(self, run: Run) -> None:
        blocks = self.model.run(run.keys)
        assert self.store.touch(run.packed()) == len(blocks)
        self.model.touch(blocks)

    @precondition(lambda self: len(self.held) < 4)
    @rule(run=QUESTIONS)
    def lease(self, run: Run) -> None:
        lease, expected = self.store.lease(run.packed()), self.model.lease(run.keys)
        assert len(lease) == len(expected.blocks)
        self.held.append(Held(lease, [], expected))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 3), i=st.integers(0, 7))
    def view(self, which: int, i: int) -> None:
        held = self.held[which % len(self.held)]
        if held.lease is not None and i < len(held.lease):
            held.views.append((i, held.lease[i]))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 3), views_first=st.booleans())
    def let_go(self, which: int, views_first: bool) -> None:  # noqa: FBT001
        """Give up the lease or its views; pins fall when both have gone."""
        held = self.held[which % len(self.held)]
        if held.lease is None or (views_first and held.views):
            for _, view in held.views:
                view.release()
            held.views.clear()
        else:
            held.lease.release()
            held.lease = None
        if held.lease is None and not held.views:
            self.held.remove(held)
            self.model.release(held.model)

    @invariant()
    def contents_are_those_of_the_model(self) -> None:
        expected = [self.model.block(key) is not None for key in KEYS]
        assert self.store.contains(b"".join(KEYS)) == expected
        self.model.looked_up(len(KEYS), sum(expected))

    @invariant()
    def leased_bytes_stand_still(self) -> None:
        for held in self.held:
            blocks = [] if held.lease is None else list(enumerate(held.lease))
            for i, view in [*blocks, *held.views]:
                assert view == held.model.data[i]

    @invariant()
    def numbers_are_those_of_the_model(self) -> None:
        assert self.store._validate() == self.model.recount()
        stats = self.store.stats().as_dict()
        stats["put_present"] += stats.pop("put_duplicate")
        assert {name: stats[name] for name in COUNTERS} == self.model.counts
        data = [block.data or b"" for block in self.model.order]
        assert stats["bytes_resident"] == sum(map(len, data))
        unused = "put_again touches_dropped events_dropped spurious_misses index_full".split()
        assert not any(stats[name] for name in unused)

    @invariant()
    def events_are_those_of_the_model(self) -> None:
        assert [(e.kind, e.key) for e in self.store.events()] == self.model.events
        self.model.events.clear()

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for held in self.held:
            for _, view in held.views:
                view.release()
            if held.lease is not None:
                held.lease.release()
            self.model.release(held.model)
        recount = self.store._validate()
        assert recount == self.model.recount()
        assert recount["evictable"] == recount["blocks"], "no lease: everything can leave"
        self.get_each(Run(tuple(range(len(KEYS)))))
        self.store.close()


class RemovingMachine(Machine):
    """The same, with remove and clear at any time, also under leases and in mid-chain."""

    @rule(run=RUNS)
    def remove(self, run: Run) -> None:
        assert self.store.remove(run.packed()) == self.model.remove(run.keys)
        # In which order the keys of one call are reported is not promised.
        events = Counter((e.kind, e.key) for e in self.store.events())
        assert events == Counter(self.model.events)
        self.model.events.clear()

    @rule(dice=st.integers(0, 3))
    def clear(self, dice: int) -> None:
        if dice == 0:
            self.store.clear()
            self.model.clear()


SETTINGS = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.timeout(600)  # a failing history is made smaller, which takes its time
class TestMachine(Machine.TestCase):
    """Hypothesis runs it."""

    settings = SETTINGS


@pytest.mark.timeout(600)
class TestRemovingMachine(RemovingMachine.TestCase):
    """Hypothesis runs it."""

    settings = SETTINGS
