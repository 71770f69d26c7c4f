"""Outside deterministic mode, under every policy: right bytes or a miss, and sound numbers.

Method: the histories of `histories.py` on stores with frames in reserve and whatever the policy
keeps of its own. What leaves is not predicted; what was removed must be gone, what is leased must
stay, every byte must be one put under its key since, and the recount must agree after every step.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import keystow
from histories import KEYS, QUESTIONS, RUNS, Run
from keystow import _core
from model import payload

BLOCK_BYTES = 48
FRAME_BYTES = 4096
WHICH = st.integers(0, 3)


@dataclass
class Held:
    """A lease, its keys, what it showed first, and which of its blocks may be found no more."""

    lease: keystow.Lease
    keys: list[bytes]
    data: list[bytes]
    gone: set[bytes]


class DefaultMachine(RuleBasedStateMachine):
    """Every verb, with what a caller may rely on."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Held] = []
        self.put_since: defaultdict[bytes, set[bytes]] = defaultdict(set)
        self.asked: Counter[str] = Counter()
        self.version = 0
        self.there: set[bytes] = set()

    @initialize(
        frames=st.sampled_from([1, 2, 3, 5, 8, 11, 16, 20]), policy=st.sampled_from(_core.POLICIES)
    )
    def open(self, frames: int, policy: str) -> None:
        self.frames = frames
        ram = frames * FRAME_BYTES
        self.store = keystow.Store(block_bytes=BLOCK_BYTES, ram=ram, policy=policy)

    @rule(run=RUNS, chained=st.sampled_from([True, True, False]))
    def put(self, run: Run, chained: bool) -> None:  # noqa: FBT001
        self.version += 1
        blocks = [payload(key, self.version, BLOCK_BYTES) for key in run.keys]
        absent = not any(self.store.contains(run.packed()))
        self.asked["look"] += len(run.keys)
        stored = self.store.put(run.packed(), blocks, parent=run.parent, chained=chained)
        for key, block in zip(run.keys[:stored], blocks, strict=False):
            self.put_since[key].add(block)
        self.asked["put"] += len(run.keys)
        distinct = len(set(run.keys))
        if absent and not self.held and (run.parent is None or not chained):
            assert len(set(run.keys[:stored])) == min(distinct, self.frames), (
                "all frames can be had"
            )
        assert stored <= len(run.keys)

    @rule(run=QUESTIONS)
    def get(self, run: Run) -> None:
        found = self.store.match_prefix(run.packed())
        out = bytearray(len(run.keys) * BLOCK_BYTES)
        got = self.store.get(run.packed(), out)
        assert got == found, "nobody else is here"
        self.asked["get"] += len(run.keys)
        self.asked["look"] += len(run.keys)
        for i, key in enumerate(run.keys[:got]):
            assert bytes(out[i * BLOCK_BYTES :][:BLOCK_BYTES]) in self.put_since[key]

    @rule(run=QUESTIONS)
    def get_each(self, run: Run) -> None:
        out = [bytearray(BLOCK_BYTES) for _ in run.keys]
        there = self.store.get_each(run.packed(), out)
        self.asked["get"] += len(run.keys)
        for key, row, is_there in zip(run.keys, out, there, strict=True):
            assert not is_there or bytes(row) in self.put_since[key]

    @rule(run=RUNS, verb=st.sampled_from(["touch", "retire", "guess", "retain", "match"]))
    def hint(self, run: Run, verb: str) -> None:
        packed = run.packed()
        if verb == "touch":
            count = self.store.touch(packed)
        elif verb == "retain":
            count = self.store.retain(packed, seconds=60)
        elif verb == "match":
            count = int(self.store.match(packed))
            self.asked["look"] += len(run.keys)
        else:
            count = self.store.retire(packed, certain=verb == "retire")
        assert 0 <= count <= len(run.keys)

    @precondition(lambda self: len(self.held) < 4)
    @rule(run=QUESTIONS)
    def lease(self, run: Run) -> None:
        lease = self.store.lease(run.packed())
        self.asked["get"] += len(run.keys)
        data = [bytes(view) for view in lease]
        assert all(block in self.put_since[key] for key, block in zip(run.keys, data, strict=False))
        self.held.append(Held(lease, run.keys[: len(data)], data, set()))

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        self.held.pop(which % len(self.held)).lease.release()

    @rule(run=RUNS)
    def remove(self, run: Run) -> None:
        self.forget(run.keys)
        assert self.store.remove(run.packed()) <= len(run.keys)
        assert not any(self.store.contains(run.packed()))
        self.asked["look"] += len(run.keys)

    @rule(dice=st.integers(0, 4))
    def clear(self, dice: int) -> None:
        if dice == 0:
            self.forget(KEYS)
            self.store.clear()

    def forget(self, keys: list[bytes]) -> None:
        for key in keys:
            self.put_since[key].clear()
        for held in self.held:
            held.gone.update(keys)

    @invariant()
    def leases_keep_their_blocks(self) -> None:
        for held in self.held:
            assert [bytes(view) for view in held.lease] == held.data
            kept = [key for key in held.keys if key not in held.gone]
            assert all(self.store.contains(b"".join(kept)))
            self.asked["look"] += len(kept)

    @invariant()
    def numbers_are_sound(self) -> None:
        stats, recount = self.store.stats(), self.store._validate()
        put = stats.puts + stats.put_present + stats.put_duplicate + stats.put_short
        assert put == self.asked["put"]
        assert stats.hits + stats.misses == self.asked["get"]
        assert stats.lookup_hits + stats.lookup_misses == self.asked["look"]
        gone = stats.evictions + stats.removed + stats.cleared
        assert stats.blocks == recount["blocks"] == stats.puts + stats.put_again - gone
        assert recount["frames_free"] + recount["blocks"] <= self.frames == stats.frames_total

    @invariant()
    def events_rebuild_the_contents(self) -> None:
        for event in self.store.events():
            if event.kind == "cleared":
                self.there.clear()
            elif event.kind == "stored":
                assert event.key not in self.there
                self.there.add(event.key)
            else:
                self.there.remove(event.key)
        found = self.store.contains(b"".join(KEYS))
        assert self.there == {key for key, is_there in zip(KEYS, found, strict=True) if is_there}
        self.asked["look"] += len(KEYS)

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for held in self.held:
            held.lease.release()
        recount = self.store._validate()
        assert (recount["pins"], recount["frames_pinned"]) == (0, 0)
        assert recount["evictable"] == recount["blocks"], "no lease: everything can leave"
        self.store.close()


@pytest.mark.timeout(600)  # a failing history is made smaller, which takes its time
class TestDefaultMachine(DefaultMachine.TestCase):
    """Hypothesis runs it."""

    settings = settings(
        max_examples=200,
        stateful_step_count=50,
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
