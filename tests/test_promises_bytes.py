"""Readers that push each other's blocks out of RAM get right bytes.

Method: chains of large blocks, so that a copy takes long, on SSD under a RAM of a few frames; each
thread reads whole chains, and every word of a block names it.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

import keystow
from crash.owners import MIB, keys

if TYPE_CHECKING:
    from pathlib import Path

BLOCK_BYTES = 8 * MIB
CHAIN, CHAINS, FRAMES = 12, 3, 9
READERS = 5
READ_S = 4.0


def block(number: int) -> np.ndarray:
    return np.full(BLOCK_BYTES // 8, number, np.uint64)


def test_readers_of_chains_larger_than_ram_get_right_bytes(tmp_path: Path) -> None:
    ssd = keystow.Ssd(tmp_path, (CHAIN * CHAINS + 2) * BLOCK_BYTES)
    ram = FRAMES * BLOCK_BYTES
    store = keystow.Store(block_bytes=BLOCK_BYTES, ram=ram, ssd=ssd, put_wait_s=30, io_timeout_s=20)
    with store:
        for first in range(0, CHAIN * CHAINS, CHAIN):
            rows = [block(number) for number in range(first, first + CHAIN)]
            assert store.put(keys(first, CHAIN), rows) == CHAIN
        assert store.flush() == 0
        end_s = time.monotonic() + READ_S

        def read(seed: int) -> int:
            rng = np.random.default_rng(seed)
            out, count = np.zeros((CHAIN, BLOCK_BYTES // 8), np.uint64), 0
            while time.monotonic() < end_s:
                first = int(rng.integers(CHAINS)) * CHAIN
                got = store.get(keys(first, CHAIN), out)
                for number, row in enumerate(out[:got], first):
                    assert (row == number).all(), f"block {number} has {np.unique(row)}"
                count += got
            return count

        with ThreadPoolExecutor(READERS) as pool:
            counts = list(pool.map(read, range(READERS)))
        assert sum(counts) > CHAIN * READERS, "nothing was tested"
        assert store.stats().ssd_promotions > FRAMES
