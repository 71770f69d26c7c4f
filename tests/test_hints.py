"""Hints: retired chains leave first, retained ones last, and neither ever costs anybody room.

Method: deterministic stores of a few frames under both policies, on a clock that the test moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import keystow

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BYTES = 4096
FRAMES = 8
LAYOUT = keystow.Layout.opaque("hints", block_bytes=BLOCK_BYTES, block_tokens=1)
A_SECOND_US = 1_000_000


@pytest.fixture(params=["lru", "arc"])
def store(request: pytest.FixtureRequest) -> Iterator[keystow.Store]:
    store = keystow.Store(
        LAYOUT, ram=FRAMES * BLOCK_BYTES, policy=request.param, deterministic=True, clock="manual"
    )
    yield store
    store._validate()
    store.close()


def put(store: keystow.Store, *tokens: int) -> keystow.Keys:
    keys = store.keys(tokens)
    assert store.put(keys, bytes(len(keys) * BLOCK_BYTES)) == len(keys)
    return keys


def get(store: keystow.Store, keys: keystow.Keys) -> int:
    return store.get(keys, bytearray(len(keys) * BLOCK_BYTES))


def test_a_retired_chain_leaves_first_tail_first(store: keystow.Store) -> None:
    old = put(store, 1, 2)
    dead = put(store, 3, 4, 5)
    assert get(store, dead) == 3
    assert store.retire(dead) == 3
    assert store.match_prefix(dead) == 3, "still readable"
    put(store, 10, 11, 12, 13)
    assert (store.match_prefix(dead), store.match_prefix(old)) == (2, 2)
    put(store, 20, 21)
    assert (store.match_prefix(dead), store.match_prefix(old)) == (0, 2)


def test_retire_stops_at_a_block_with_another_child(store: keystow.Store) -> None:
    one = put(store, 1, 2, 3)
    other = put(store, 1, 2, 4)
    assert store.retire(one) == 1
    assert store.retire(one[:2]) == 0, "it has two children"
    put(store, 10, 11, 12, 13, 14)
    assert (store.match_prefix(one), store.match_prefix(other)) == (2, 3)


def test_a_hit_takes_a_retired_chain_back(store: keystow.Store) -> None:
    first = put(store, 1, 2)
    second = put(store, 3, 4)
    store.retire(second)
    assert get(store, second) == 2
    put(store, 10, 11, 12, 13, 14, 15)
    assert (store.match_prefix(first), store.match_prefix(second)) == (0, 2)


def test_a_chain_that_goes_on_is_not_dead(store: keystow.Store) -> None:
    chain = store.keys([1, 2, 3])
    store.put(chain[:2], bytes(2 * BLOCK_BYTES))
    assert store.retire(chain[:2]) == 2
    store.put(chain[2:], bytes(BLOCK_BYTES))
    put(store, 10, 11, 12, 13, 14)
    assert store.match_prefix(chain) == 3


def test_a_guess_changes_nothing_under_policies_that_do_not_learn(store: keystow.Store) -> None:
    chain = put(store, 1, 2)
    young = put(store, 3, 4)
    assert store.retire(young, certain=False) == 0
    put(store, 10, 11, 12, 13, 14, 15)
    assert (store.match_prefix(chain), store.match_prefix(young)) == (0, 2)


def test_retained_blocks_outlive_younger_ones_until_their_deadline(store: keystow.Store) -> None:
    kept = put(store, 1, 2, 3)
    assert store.retain(kept, 30) == 3
    for first in range(100, 200, 10):
        put(store, *range(first, first + 5))
    assert store.match_prefix(kept) == 3
    store._step(30 * A_SECOND_US)
    put(store, *range(200, 205))
    put(store, *range(210, 213))
    assert store.match_prefix(kept) == 0


def test_retained_blocks_are_never_a_reason_to_refuse(store: keystow.Store) -> None:
    kept = put(store, 1, 2, 3)
    assert store.retain(kept, 3600) == 3
    whole = put(store, *range(10, 10 + FRAMES))
    assert (store.match_prefix(kept), store.match_prefix(whole)) == (0, FRAMES)


def test_at_most_half_the_frames_are_retained_the_soonest_yields(store: keystow.Store) -> None:
    soon, late = put(store, 1, 2, 3, 4), put(store, 5, 6, 7)
    assert (store.retain(soon, 10), store.retain(late, 20)) == (4, 3)
    put(store, 10, 11, 12, 13)
    assert store.match_prefix(late) == 3
    assert store.match_prefix(soon) < 4


def test_zero_seconds_end_a_retention(store: keystow.Store) -> None:
    kept = put(store, 1, 2)
    assert (store.retain(kept, 60), store.retain(kept, 0)) == (2, 0)
    put(store, 10, 11, 12, 13, 14, 15, 16)
    assert store.match_prefix(kept) < 2


def test_a_lease_is_stronger_than_any_hint(store: keystow.Store) -> None:
    chain = put(store, 1, 2)
    with store.lease(chain) as lease:
        assert store.retire(chain) == 2
        put(store, *range(10, 16))
        assert (len(lease), store.match_prefix(chain)) == (2, 2)
    put(store, 20, 21)
    assert store.match_prefix(chain) == 0


@pytest.mark.parametrize("priority", [-1, 0, 1])
def test_priority_is_accepted_without_effect(store: keystow.Store, priority: int) -> None:
    keys = store.keys([1, 2])
    assert store.put(keys, bytes(2 * BLOCK_BYTES), priority=priority) == 2
    put(store, *range(10, 17))
    assert store.match_prefix(keys) < 2


def test_bad_hints_are_refused(store: keystow.Store) -> None:
    keys = put(store, 1, 2)
    for seconds in (-1, float("nan"), 1e12):
        with pytest.raises(keystow.ConfigError, match="seconds"):
            store.retain(keys, seconds)
    with pytest.raises(keystow.ConfigError, match="priority"):
        store.put(keys, bytes(2 * BLOCK_BYTES), priority=2)
    assert store.match_prefix(keys) == 2
