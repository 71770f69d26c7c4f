"""Properties of eviction, each with a bug of a neighbouring project that it would have caught.

Method: hypothesis over small stores of both policies in deterministic mode; the name says the
property, the docstring where it was missing. Hit for hit equality stands in `test_store_counts.py`
and `test_replay_*.py`, the model of the whole store in `test_machine.py`.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keystow

BLOCK_BYTES = 4096
LAYOUT = keystow.Layout.opaque("properties", block_bytes=BLOCK_BYTES, block_tokens=1)
POLICIES = st.sampled_from(["lru", "arc"])
CHAINS = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), min_size=1, max_size=25
)

pytestmark = pytest.mark.filterwarnings("error")


def open_store(policy: str, frames: int) -> keystow.Store:
    return keystow.Store(LAYOUT, ram=frames * BLOCK_BYTES, policy=policy, deterministic=True)


def put(store: keystow.Store, tokens: tuple[int, ...]) -> int:
    keys = store.keys(tokens)
    return store.put(keys, bytes(len(keys) * BLOCK_BYTES))


def serve(store: keystow.Store, tokens: tuple[int, ...]) -> int:
    """One request as an engine makes it: match, get, put; returns the prefix hits."""
    keys = store.keys(tokens)
    hits = store.match_prefix(keys)
    assert store.get(keys[:hits], bytearray(hits * BLOCK_BYTES)) == hits
    store.put(keys, bytes(len(keys) * BLOCK_BYTES))
    return hits


def fresh(count: int) -> tuple[int, ...]:
    """A chain that no other test data shares a block with."""
    return tuple(range(1_000_000, 1_000_000 + count))


@given(POLICIES, CHAINS, st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_n_blocks_find_room_iff_n_can_leave_or_are_free(
    policy: str, chains: list[tuple[int, ...]], frames: int, data: st.DataObject
) -> None:
    """As in vLLM #55461: ARC refused stores with enough evictable blocks."""
    with open_store(policy, frames) as store:
        for chain in chains:
            serve(store, chain)
        leases = [store.lease(store.keys(data.draw(st.sampled_from(chains)))) for _ in range(2)]
        count = store._validate()
        room = count["evictable"] + count["frames_free"]
        for want in range(1, frames + 2):
            keys = store.keys(fresh(want))
            assert store.put(keys, bytes(want * BLOCK_BYTES)) == min(want, room)
        for lease in leases:
            lease.release()
        store._validate()


@given(POLICIES, CHAINS)
@settings(max_examples=40, deadline=None)
def test_a_put_without_room_changes_nothing(policy: str, chains: list[tuple[int, ...]]) -> None:
    """As in vLLM #37874: a failed store or eviction left half its work behind."""
    with open_store(policy, 4) as store:
        for chain in chains:
            serve(store, chain)
        serve(store, (7, 7, 7, 7))
        with store.lease(store.keys((7, 7, 7, 7))) as lease:
            assert len(lease) == 4
            before, events = store._validate(), store.events()
            assert put(store, fresh(3)) == 0
            assert (store._validate(), store.events()) == (before, [])
        assert events
        assert put(store, fresh(4)) == 4


@given(POLICIES, CHAINS, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_batch_never_evicts_its_own_blocks_nor_pinned_ones(
    policy: str, chains: list[tuple[int, ...]], frames: int
) -> None:
    """As in vLLM #35846; LMCache #993, #3189."""
    with open_store(policy, frames) as store:
        pinned = store.keys(chains[0][:2])
        put(store, chains[0][:2])
        with store.lease(pinned) as lease:
            for chain in chains:
                stored = put(store, chain)
                assert store.match_prefix(store.keys(chain)) >= stored
                assert store.match_prefix(pinned) >= len(lease)


@given(POLICIES, CHAINS, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_all_handles_dropped_means_everything_can_leave(
    policy: str, chains: list[tuple[int, ...]], frames: int
) -> None:
    """LMCache #1756, #2785, #2954, #3130, #3884: pins that never came down."""
    with open_store(policy, frames) as store:
        leases = []
        for chain in chains:
            serve(store, chain)
            leases.append(store.lease(store.keys(chain)))
            count = store._validate()
            assert 0 <= count["evictable"] <= count["resident"]
        del leases
        count = store._validate()
        assert (count["evictable"], count["pins"]) == (count["resident"], 0)
        assert put(store, fresh(frames)) == frames


@given(POLICIES, CHAINS, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_child_leaves_before_its_parent_so_prefix_hits_are_plain_hits(
    policy: str, chains: list[tuple[int, ...]], frames: int
) -> None:
    """As in sglang #22592; mini-sglang #52: blocks left behind that no prefix reaches."""
    with open_store(policy, frames) as store:
        for chain in chains:
            serve(store, chain)
            for other in chains:
                there = store.contains(store.keys(other))
                assert sum(there) == store.match_prefix(store.keys(other))


@given(POLICIES, CHAINS, st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_eviction_frees_what_was_asked_and_no_more(
    policy: str, chains: list[tuple[int, ...]], frames: int
) -> None:
    """As in sglang #4987."""
    with open_store(policy, frames) as store:
        for chain in chains:
            before = store.stats()
            serve(store, chain)
            after = store.stats()
            wanted = after.puts - before.puts
            assert after.evictions - before.evictions == max(0, wanted - before.frames_free)


@given(POLICIES, CHAINS, st.integers(1, 9), st.permutations(range(4)))
@settings(max_examples=40, deadline=None)
def test_other_names_for_the_same_blocks_change_nothing(
    policy: str, chains: list[tuple[int, ...]], frames: int, names: list[int]
) -> None:
    """A policy that looks into keys, or an order that depends on hashes, would differ."""
    with open_store(policy, frames) as one, open_store(policy, frames) as two:
        for chain in chains:
            assert serve(one, chain) == serve(two, tuple(names[token] for token in chain))


@given(CHAINS, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_a_larger_lru_holds_all_that_a_smaller_one_holds(
    chains: list[tuple[int, ...]], frames: int
) -> None:
    """The stack property, where no request is longer than the store."""
    frames += 6
    with open_store("lru", frames) as small, open_store("lru", frames + 1) as large:
        for chain in chains:
            assert serve(large, chain) >= serve(small, chain)
            for other in chains:
                keys = small.keys(other)
                assert large.match_prefix(keys) >= small.match_prefix(keys)
