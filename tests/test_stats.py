"""Counters reconcile, snapshots stand still, and events tell what the store holds.

Method: seeded histories of every verb, in deterministic mode and not; what was asked is counted
beside the store and compared with the sums; events are replayed into a set.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import keystow
from model import raw_key

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_BYTES = 256
FRAME_BYTES = 4096
EVENTS_MAX = 1 << 16
LAYOUT = keystow.Layout.opaque("stats", block_bytes=BLOCK_BYTES, block_tokens=1)


class Asker:
    """Calls verbs at random and counts the blocks it asks for."""

    def __init__(self, store: keystow.Store, seed: int) -> None:
        self.store = store
        self.rng = random.Random(seed)
        self.asked: Counter[str] = Counter()
        self.bytes_out = 0

    def keys(self) -> list[bytes]:
        start = self.rng.randrange(50)
        keys = [raw_key(n) for n in range(start, start + self.rng.randrange(12))]
        if keys and self.rng.random() < 0.2:
            keys.append(self.rng.choice(keys))
        return keys

    def step(self) -> None:
        keys = self.keys()
        packed = b"".join(keys)
        verb = self.rng.choice(["put", "put", "get", "get_each", "lease", "look", "rare"])
        if verb == "put":
            self.asked["put"] += len(keys)
            self.store.put(packed, [key * self.rng.randint(0, 16) for key in keys])
        elif verb in ("get", "get_each"):
            self.asked["get"] += len(keys)
            out = [bytearray(BLOCK_BYTES) for _ in keys]
            there = getattr(self.store, verb)(packed, out)
            self.asked["hit"] += sum(there) if verb == "get_each" else there
        elif verb == "lease":
            self.asked["get"] += len(keys)
            with self.store.lease(packed) as lease:
                self.asked["hit"] += len(lease)
        elif verb == "look":
            self.asked["look"] += 3 * len(keys)
            found = int(self.store.match(packed)) + self.store.match_prefix(packed)
            self.asked["found"] += found + sum(self.store.contains(packed))
        elif self.rng.random() < 0.1:
            self.store.clear()
        else:
            self.asked["removed"] += self.store.remove(packed)

    def check(self) -> None:
        stats, asked = self.store.stats(), self.asked
        put = stats.puts + stats.put_present + stats.put_duplicate + stats.put_short
        assert put == asked["put"]
        assert (stats.hits, stats.hits + stats.misses) == (asked["hit"], asked["get"])
        assert stats.lookup_hits == asked["found"]
        assert stats.lookup_hits + stats.lookup_misses == asked["look"]
        assert stats.removed == asked["removed"]
        gone = stats.evictions + stats.removed + stats.cleared
        assert stats.blocks == stats.puts + stats.put_again - gone
        assert stats.blocks <= stats.frames_total - stats.frames_free
        assert stats.bytes_resident <= stats.blocks * BLOCK_BYTES
        recount = self.store._validate()
        assert recount["blocks"] == stats.blocks
        assert recount["frames_free"] == stats.frames_free


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("frames", [1, 7, 40])
def test_counters_reconcile(frames: int, deterministic: bool) -> None:  # noqa: FBT001
    ram = frames * FRAME_BYTES
    with keystow.Store(LAYOUT, ram=ram, deterministic=deterministic) as store:
        asker = Asker(store, frames)
        for step in range(1_500):
            asker.step()
            if step % 50 == 0:
                asker.check()
        asker.check()
        stats = store.stats()
        touched = [stats.evictions, stats.removed, stats.cleared, stats.put_present]
        assert 0 not in touched, "some counter was never tried"
        last = stats.as_dict() | {"state": "closed", "lock_holds": 0}
        store.close()
        assert store.stats().as_dict() | {"lock_holds": 0} == last


def test_sizes_of_an_open_store() -> None:
    with keystow.Store(LAYOUT, ram="8MiB", prefault="now") as store:
        stats = store.stats()
        assert stats.frames_total == stats.frames_free == 2048
        assert stats.prefault_bytes == 8 << 20
        assert 0 <= stats.huge_bytes <= 8 << 20
        assert 2048 * 64 <= stats.index_bytes <= 4 << 20
        assert all(isinstance(text, str) and text for text in stats.fallbacks)
        keys = store.keys(range(3))
        store.put(keys, [b"", b"x", b"y" * BLOCK_BYTES])
        stats = store.stats()
        assert stats.bytes_in == stats.bytes_resident == 1 + BLOCK_BYTES
        store.get(keys, bytearray(3 * BLOCK_BYTES))
        assert store.stats().bytes_out == 1 + BLOCK_BYTES


def test_a_snapshot_is_frozen_and_a_value() -> None:
    with keystow.Store(LAYOUT, ram="1MiB", deterministic=True) as store:
        before = store.stats()
        shown = before.as_dict()
        store.put(store.keys(range(5)), bytes(5 * BLOCK_BYTES))
        assert before.as_dict() == shown
        assert store.stats() != before
        for name in ["blocks", "state", "fallbacks", "no_such_counter"]:
            with pytest.raises(AttributeError):
                setattr(before, name, 1)
        assert all(getattr(before, name) == value for name, value in shown.items())
        assert f"frames_total={before.frames_total}" in repr(before)


# ---- events ----


def replay(there: set[bytes], events: list[keystow.Event], check: Callable[..., None]) -> None:
    """Apply events in order to the set of keys that are there."""
    for event in events:
        assert event.tier == "ram"
        if event.kind == "cleared":
            assert event.key is None
            there.clear()
        elif event.kind == "stored":
            assert event.key not in there
            there.add(event.key)
        else:
            assert event.kind == "removed"
            there.remove(event.key)
        check(event)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("frames", [1, 5, 40])
def test_events_rebuild_what_is_there(frames: int, deterministic: bool) -> None:  # noqa: FBT001
    ram = frames * FRAME_BYTES
    with keystow.Store(LAYOUT, ram=ram, deterministic=deterministic) as store:
        asker = Asker(store, 100 + frames)
        there: set[bytes] = set()
        numbers: list[int] = []
        everything = [raw_key(n) for n in range(64)]
        for step in range(1_000):
            asker.step()
            if step % 7 == 0:
                replay(there, store.events(), lambda event: numbers.append(event.sequence))
                found = store.contains(b"".join(everything))
                assert there == {
                    k for k, is_there in zip(everything, found, strict=True) if is_there
                }
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 300
        assert store.stats().events_dropped == 0


def test_an_unread_log_is_bounded_and_its_gap_is_counted() -> None:
    with keystow.Store(LAYOUT, ram=64 * FRAME_BYTES, deterministic=True) as store:
        made, batch = 0, 0
        while made < EVENTS_MAX + 1_000:
            keys = store.keys(range(batch * 64, batch * 64 + 64))
            assert store.put(keys, bytes(64)) == 64
            made, batch = made + (64 if batch == 0 else 128), batch + 1
        dropped = made - EVENTS_MAX
        assert store.stats().events_dropped == dropped
        events = store.events()
        assert len(events) == EVENTS_MAX
        assert [e.sequence for e in events] == list(range(dropped, made))
        assert {e.key for e in events[-64:]} == set(keys)
        assert store.events() == []
        store.clear()
        assert [(e.sequence, e.kind) for e in store.events()] == [(made, "cleared")]
