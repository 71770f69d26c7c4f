"""A chain longer than RAM keeps its head, whichever way it is put, and is never refused.

Method: chains of up to eight times the frames, whole and in pieces, with and without leases.
"""

from __future__ import annotations

import pytest

import keystow

BLOCK_BYTES = 64
FRAME_BYTES = 4096
LAYOUT = keystow.Layout.opaque("long", block_bytes=BLOCK_BYTES, block_tokens=1)


def open_store(frames: int) -> keystow.Store:
    return keystow.Store(LAYOUT, ram=frames * FRAME_BYTES, deterministic=True)


def rows(keys: keystow.Keys) -> bytes:
    """Give each block its key, four times."""
    return b"".join(bytes(key) * 4 for key in keys)


@pytest.mark.parametrize("frames", [1, 2, 5, 17, 130])
@pytest.mark.parametrize("times", [2, 8])
def test_the_leading_run_that_fits_is_stored(frames: int, times: int) -> None:
    with open_store(frames) as store:
        others = store.keys(range(10_000, 10_000 + frames))
        assert store.put(others, rows(others)) == frames
        keys = store.keys(range(frames * times))
        for _ in range(2):
            assert store.put(keys, rows(keys)) == frames
            out = bytearray(len(keys) * BLOCK_BYTES)
            assert store.get(keys, out) == int(store.match(keys)) == frames
            assert out[: frames * BLOCK_BYTES] == rows(keys[:frames])
        stats = store.stats()
        assert (stats.put_short, stats.evictions) == (2 * frames * (times - 1), frames)
        store._validate()


@pytest.mark.parametrize("step", [1, 3, 8, 40])
def test_pieces_put_one_after_the_other_never_displace_their_head(step: int) -> None:
    frames = 8
    with open_store(frames) as store:
        keys = store.keys(range(4 * frames))
        start = 0
        while True:
            piece = keys[start : start + step]
            stored = store.put(piece, rows(piece))
            start += stored
            assert store.match_prefix(keys) == start
            if stored < len(piece):
                break
        assert start == frames
        store._validate()


@pytest.mark.parametrize("start", [0, 2, 4])
def test_the_rest_of_a_chain_evicts_others_before_its_own_head(start: int) -> None:
    with open_store(8) as store:
        head = store.keys(range(6))
        assert store.put(head[:4], rows(head[:4])) == 4
        for number in range(4):  # younger than the head
            other = store.keys([1000 + number])
            store.put(other, rows(other))
        assert store.put(head[start:], rows(head[start:])) == 6 - start
        assert store.match_prefix(head) == 6


def test_a_lease_on_the_head_leaves_the_rest_of_ram_to_others() -> None:
    with open_store(10) as store:
        keys = store.keys(range(40))
        store.put(keys, rows(keys))
        with store.lease(keys[:4]) as lease:
            assert len(lease) == 4
            other = store.keys(range(500, 540))
            assert store.put(other, rows(other)) == 6
            assert store.match_prefix(keys) == 4
            assert store.put(keys, rows(keys)) == 10
            assert [bytes(block) for block in lease] == [bytes(key) * 4 for key in keys[:4]]
        store._validate()


def test_while_leases_hold_everything_nothing_is_stored_and_nothing_changes() -> None:
    with open_store(6) as store:
        keys = store.keys(range(6))
        store.put(keys, rows(keys))
        with store.lease(keys, min_blocks=6):
            other = store.keys(range(50, 60))
            assert store.put(other, rows(other)) == 0
            assert store.put(keys, rows(keys)) == 6
            longer = store.keys(range(9))
            assert store.put(longer, rows(longer)) == 6
            stats = store.stats()
            assert (stats.put_short, stats.evictions, stats.frames_pinned) == (13, 0, 6)
            assert store.match_prefix(keys) == 6
        assert store.put(other, rows(other)) == 6
        assert store._validate()["evictable"] == 6
