"""Pieces of chains: found when asked from there, part of the whole chain once the head comes.

Method: one chain cut at several places, put in any order, with the parent known from the slice,
named, or unknown; holes are counted by the recount.
"""

from __future__ import annotations

import itertools
import pickle
from typing import TYPE_CHECKING

import pytest

import keystow

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BYTES = 64
FRAME_BYTES = 4096
LAYOUT = keystow.Layout.opaque("pieces", block_bytes=BLOCK_BYTES, block_tokens=1)


@pytest.fixture
def store() -> Iterator[keystow.Store]:
    with keystow.Store(LAYOUT, ram=16 * FRAME_BYTES, deterministic=True) as store:
        yield store
        store._validate()


def rows(keys: keystow.Keys) -> bytes:
    return b"".join(bytes(key) * 4 for key in keys)


def put(store: keystow.Store, keys: keystow.Keys) -> int:
    return store.put(keys, rows(keys))


def check_bytes(store: keystow.Store, keys: keystow.Keys) -> None:
    out = bytearray(len(keys) * BLOCK_BYTES)
    assert store.get(keys, out) == len(keys)
    assert out == rows(keys)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_order_of_pieces_makes_the_whole(store: keystow.Store, order: list[int]) -> None:
    keys = store.keys(range(12))
    cuts = [keys[:4], keys[4:7], keys[7:]]
    there: set[int] = set()
    for piece in order:
        assert put(store, cuts[piece]) == len(cuts[piece])
        there.add(piece)
        for at, cut in enumerate(cuts):
            assert store.match_prefix(cut) == (len(cut) if at in there else 0)
        leading = next((i for i in range(3) if i not in there), 3)
        assert store.match_prefix(keys) == sum(map(len, cuts[:leading]))
    check_bytes(store, keys)
    assert store._validate()["holes"] == 0, "each was refilled"


def test_a_hole_stands_for_the_absent_parent_and_goes_with_its_last_child(
    store: keystow.Store,
) -> None:
    keys = store.keys(range(8))
    put(store, keys[4:6])
    put(store, keys[4:8])
    assert store._validate()["holes"] == 1
    assert store.contains(keys[3:5]) == [False, True], "a hole holds no bytes"
    assert store.match_prefix(keys[3:]) == 0
    store.remove(keys[4:8])
    recount = store._validate()
    assert (recount["holes"], recount["hidden"], recount["frames_free"]) == (0, 0, 16)


def test_a_removed_middle_can_be_put_again(store: keystow.Store) -> None:
    keys = store.keys(range(8))
    put(store, keys)
    assert store.remove(keys[3:5]) == 2
    assert store.match_prefix(keys) == 3
    assert store.match_prefix(keys[5:]) == 3
    recount = store._validate()
    assert (recount["hidden"], recount["frames_free"]) == (2, 8), "their child keeps them"
    assert put(store, keys) == 8
    check_bytes(store, keys)
    assert store._validate()["blocks"] == 8


@pytest.mark.parametrize("form", ["slice", "bytes", "keys"])
def test_forms_of_the_parent(store: keystow.Store, form: str) -> None:
    """A parent that is known protects it: with a child it is no leaf."""
    keys = store.keys(range(6))
    put(store, keys[:3])
    tail = keys[3:]
    raw = memoryview(tail)
    if form == "slice":
        store.put(tail, rows(tail))
    else:
        parent = bytes(keys[2]) if form == "bytes" else keys[:3]
        store.put(raw, rows(tail), parent=parent)
    lease = store.lease(tail)
    fill_with_others(store)
    assert store.match_prefix(keys) == 6, "a lease on the tail keeps the head"
    lease.release()


def test_without_a_known_parent_a_piece_is_a_root(store: keystow.Store) -> None:
    keys = store.keys(range(6))
    put(store, keys[:3])
    store.put(memoryview(keys[3:]), rows(keys[3:]))
    lease = store.lease(keys[3:])
    fill_with_others(store)
    assert store.match_prefix(keys) == 0, "nothing ties the head to the leased tail"
    assert store.match_prefix(keys[3:]) == 3
    lease.release()


def fill_with_others(store: keystow.Store) -> None:
    for number in range(40):
        put(store, store.keys([9000 + number]))


def test_slices_know_the_key_before_them(store: keystow.Store) -> None:
    keys = store.keys(range(10))
    assert keys.parent is None
    assert keys[:4].parent is None
    assert keys[4:].parent == bytes(keys[3])
    assert keys[4:][2:].parent == bytes(keys[5])
    assert keys[10:].parent == bytes(keys[9])
    again = pickle.loads(pickle.dumps(keys[6:]))  # noqa: S301 - our own bytes
    assert again.parent == bytes(keys[5])
    more = store.keys(range(10, 14), parent=keys)
    assert more == store.keys(range(14))[10:]
    assert more.parent == bytes(keys[9])


def test_unchained_blocks_are_roots(store: keystow.Store) -> None:
    keys = store.keys(range(16))
    assert store.put(keys, rows(keys), chained=False) == 16
    lease = store.lease(keys[8:9])
    assert store._validate()["evictable"] == 15, "a lease keeps its block alone"
    fill_with_others(store)
    assert store.contains(keys) == [i == 8 for i in range(16)]
    lease.release()


def test_unchained_ignores_the_slice_and_makes_no_hole(store: keystow.Store) -> None:
    keys = store.keys(range(16))
    store.put(keys[4:8], rows(keys[4:8]), chained=False)
    assert store._validate()["holes"] == 0
    assert store.match_prefix(keys[4:8]) == 4


@pytest.mark.parametrize("frames", [1, 8, 16, 32])
def test_holes_are_limited_and_pieces_beyond_are_stored_without(frames: int) -> None:
    with keystow.Store(LAYOUT, ram=frames * FRAME_BYTES, deterministic=True) as store:
        chains = [store.keys(range(100 * n, 100 * n + 2)) for n in range(frames)]
        for chain in chains:
            assert put(store, chain[1:]) == 1
        assert all(store.match_prefix(chain[1:]) == 1 for chain in chains)
        assert store._validate()["holes"] == min(frames, max(1, frames // 8))


def test_a_chain_through_a_refilled_hole_is_leased_whole(store: keystow.Store) -> None:
    """The refilled hole stays a root: one pin more, and every block is kept all the same."""
    keys = store.keys(range(9))
    put(store, keys[5:])
    put(store, keys[:5])
    with store.lease(keys, min_blocks=9) as lease:
        assert store._validate()["pins"] == 2
        fill_with_others(store)
        assert store.match_prefix(keys) == 9
        assert [bytes(block) for block in lease] == [bytes(key) * 4 for key in keys]


def test_a_batch_that_names_itself_as_parent_makes_no_cycle(store: keystow.Store) -> None:
    keys = store.keys(range(3))
    for parent in (bytes(keys[0]), bytes(keys[2])):
        assert store.put(memoryview(keys), rows(keys), parent=parent) == 3
        check_bytes(store, keys)
        store._validate()
        fill_with_others(store)
        assert store.contains(keys) == [False] * 3, "all could leave"
