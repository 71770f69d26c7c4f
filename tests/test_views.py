"""Leases and matches as Python objects: views, pins, context managers, and what outlives what.

Method: pins are counted in the store's own numbers after each reference is dropped.
"""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import keystow

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4096
LAYOUT = keystow.Layout.opaque("views", block_bytes=BLOCK, block_tokens=1)
DATA = np.random.default_rng(12).integers(0, 256, (8, BLOCK), np.uint8)


@pytest.fixture
def store() -> Iterator[keystow.Store]:
    with keystow.Store(LAYOUT, ram=8 * BLOCK, deterministic=True) as store:
        assert store.put(store.keys(range(8)), DATA) == 8
        yield store


def pinned(store: keystow.Store) -> int:
    gc.collect()
    store._validate()
    return store.stats().frames_pinned


def test_a_lease_is_a_sequence_of_read_only_views(store: keystow.Store) -> None:
    keys = store.keys(range(8))
    with store.lease(keys) as lease:
        assert len(lease) == lease.blocks == 8
        assert lease.bytes == 8 * BLOCK
        assert [bytes(view) for view in lease] == [row.tobytes() for row in DATA]
        assert bytes(lease[-1]) == DATA[7].tobytes()
        for index in (8, -9, 2**62):
            with pytest.raises(IndexError):
                lease[index]
        view = lease[0]
        assert (view.readonly, view.nbytes, view.format, view.ndim) == (True, BLOCK, "B", 1)
        with pytest.raises(TypeError):
            view[0] = 1
        assert not np.frombuffer(view, np.uint8).flags.writeable
        assert repr(lease) == "Lease(8 blocks, 32768 bytes, held)"
    assert repr(lease) == "Lease(8 blocks, 32768 bytes, released)"


def test_pins_fall_with_the_lease_and_its_last_view(store: keystow.Store) -> None:
    lease = store.lease(store.keys(range(8))[:3])
    view = lease[2]
    array = np.frombuffer(lease[1], np.uint8)
    assert pinned(store) == 3
    lease.release()
    lease.release()
    assert pinned(store) == 3
    del view
    assert pinned(store) == 3
    assert array.tobytes() == DATA[1].tobytes()
    del array
    assert pinned(store) == 0


def test_pins_fall_when_the_lease_is_forgotten(store: keystow.Store) -> None:
    lease = store.lease(store.keys(range(8)))
    watch = weakref.ref(lease)
    assert pinned(store) == 8
    del lease
    assert watch() is None
    assert pinned(store) == 0


def test_a_released_lease_says_so(store: keystow.Store) -> None:
    lease = store.lease(store.keys(range(8)))
    lease.release()
    assert len(lease) == 8
    for use in (lambda: lease[0], lambda: [*lease], lease.__enter__):
        with pytest.raises(keystow.StoreClosedError) as caught:
            use()
        assert caught.value.code == "KS-CLO-003"


def test_views_outlive_remove_clear_and_close() -> None:
    store = keystow.Store(LAYOUT, ram=8 * BLOCK, deterministic=True)
    keys = store.keys(range(8))
    store.put(keys, DATA)
    lease = store.lease(keys)
    views = [*lease]
    store.remove(keys[4:])
    store.clear()
    assert store.put(store.keys(range(100, 108)), DATA[::-1].copy()) == 0, "all frames are held"
    store.close()
    del store
    gc.collect()
    assert [bytes(view) for view in views] == [row.tobytes() for row in DATA]
    lease.release()
    del lease
    gc.collect()
    assert [bytes(view) for view in views] == [row.tobytes() for row in DATA]


def test_torch_reads_a_view_without_a_copy(store: keystow.Store) -> None:
    with store.lease(store.keys(range(1))) as lease:
        array = np.frombuffer(lease[0], np.uint8)
        again = np.frombuffer(lease[0], np.uint8)
        assert array.ctypes.data == again.ctypes.data
        with pytest.warns(UserWarning, match="not writable"):
            tensor = torch.frombuffer(lease[0], dtype=torch.uint8)
        assert tensor.data_ptr() == array.ctypes.data
        assert torch.equal(tensor, torch.from_numpy(DATA[0]))


def test_a_match_is_a_number_with_details(store: keystow.Store) -> None:
    keys = store.keys(range(12))
    match = store.match(keys)
    assert int(match) == len(match) == match.blocks == match.ram == 8
    assert match.ssd == 0
    assert match.bytes == 8 * BLOCK
    assert match.load_s >= 0
    assert match
    assert list(range(12))[match:] == [8, 9, 10, 11]
    assert repr(match).startswith("Match(8 of 12 blocks: 8 ram, 0 ssd, load ")
    assert not store.match(keys[8:])
    assert pinned(store) == 0


def test_a_match_gets_into_rows_for_its_blocks_or_for_all_keys(store: keystow.Store) -> None:
    match = store.match(store.keys(range(12)))
    for rows in (8, 12):
        out = np.zeros((rows, BLOCK), np.uint8)
        assert match.get(out) == 8
        assert (out[:8] == DATA).all()
        assert not out[8:].any()
        listed = [bytearray(BLOCK) for _ in range(rows)]
        assert match.get(listed) == 8
        assert listed[7] == DATA[7].tobytes()
    flat = bytearray(12 * BLOCK)
    assert match.get(flat) == 8
    assert flat[: 8 * BLOCK] == DATA.tobytes()
    for rows in (7, 9, 11, 13):
        with pytest.raises(keystow.LayoutError):
            match.get(np.zeros((rows, BLOCK), np.uint8))


def test_a_pinned_match_keeps_its_blocks(store: keystow.Store) -> None:
    keys = store.keys(range(8))
    with store.match(keys, pin=True) as match:
        assert pinned(store) == 8
        assert "pinned" in repr(match)
        assert store.put(store.keys(range(100, 104)), DATA[:4]) == 0
        lease = match.lease()
        assert match.get(np.zeros((8, BLOCK), np.uint8)) == 8
    assert pinned(store) == 8, "the lease made from it keeps its pins"
    assert bytes(lease[3]) == DATA[3].tobytes()
    lease.release()
    assert pinned(store) == 0
    assert match.blocks == 8
    with match.lease() as again:
        assert len(again) == 8
    assert pinned(store) == 0


def test_an_unpinned_match_may_get_fewer(store: keystow.Store) -> None:
    match = store.match(store.keys(range(8)))
    store.remove(store.keys(range(8))[5:])
    assert match.blocks == 8
    assert match.get(np.zeros((8, BLOCK), np.uint8)) == 5
    assert len(match.lease()) == 5


def test_values_unpack_and_compare(store: keystow.Store) -> None:
    events = store.events()
    sequence, kind, key, tier = events[0]
    assert (sequence, kind, tier) == (0, "stored", "ram")
    assert key == store.keys(range(8))[7], "a batch enters tail first"
    assert events[0] == events[0]
    assert len({*events}) == 8
    written, left = store.close()
    assert (written, left) == (0, 8)
    assert store.close() == keystow.Store(LAYOUT, ram=BLOCK).close()
