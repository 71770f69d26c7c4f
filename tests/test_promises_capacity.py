"""A put stores all that the tiers hold together: nothing is dropped while the SSD has room.

Method: four times the RAM in chains, and in one chain, on real files; every byte is read back. A
store whose SSD is smaller than its RAM and that is only read stops writing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from crash.owners import BLOCK_BYTES, MIB, expected, keys, open_store, read_each, rows

if TYPE_CHECKING:
    from pathlib import Path

    import keystow

pytestmark = pytest.mark.usefixtures("engine")

RAM = 4 * MIB
FRAMES = RAM // BLOCK_BYTES
CHAIN = 32


def dropped(store: keystow.Store) -> int:
    stats = store.stats()
    return stats.ssd_dropped_refused + stats.ssd_dropped_waited + stats.ssd_dropped_off


def test_four_times_the_ram_reads_back_whole(tmp_path: Path) -> None:
    with open_store(tmp_path, capacity=8 * RAM, ram=RAM) as store:
        for first in range(0, 4 * FRAMES, CHAIN):
            assert store.put(keys(first, CHAIN), rows(first, CHAIN)) == CHAIN
        assert store.match_prefix(keys(0, CHAIN)) == CHAIN
        for first in range(0, 4 * FRAMES, CHAIN):
            assert read_each(store, first, CHAIN) == expected(first, CHAIN)
        assert dropped(store) == store.stats().ssd_lost == store.stats().ssd_bad_tags == 0
        assert store.close().left == 0
    with open_store(tmp_path, capacity=8 * RAM, ram=RAM) as store:
        assert store.stats().recovered == 4 * FRAMES
        assert read_each(store, 0, 4 * FRAMES) == expected(0, 4 * FRAMES)


def test_one_chain_of_four_times_the_ram_is_put_and_got(tmp_path: Path) -> None:
    count = 4 * FRAMES
    with open_store(tmp_path, capacity=8 * RAM, ram=RAM) as store:
        assert store.put(keys(0, count), rows(0, count)) == count
        assert store.match_prefix(keys(0, count)) == count
        out = bytearray(count * BLOCK_BYTES)
        assert store.get(keys(0, count), out) == count
        assert out == rows(0, count)
        assert dropped(store) == 0


def test_a_hot_store_with_a_small_ssd_stops_writing(tmp_path: Path) -> None:
    """SSD = RAM / 2: who is on it is settled once, not fought over by what is only read."""
    hot = FRAMES * 3 // 4
    with open_store(tmp_path, capacity=RAM // 2, ram=RAM) as store:
        assert store.put(keys(0, hot), rows(0, hot)) == hot

        def read_for(seconds: float) -> int:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                assert read_each(store, 0, hot) == expected(0, hot)
            return store.stats().ssd_write_bytes

        settled = read_for(0.7)
        assert settled > 0, "nothing was written: the SSD plays no part"
        assert read_for(0.7) == settled
        assert settled <= RAM
