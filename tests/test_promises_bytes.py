"""Readers that push each other's blocks out of RAM get right bytes, also where reads come late.

Method: chains larger than RAM; each thread reads whole chains, and every word of a block names it.
Deadlines far too short make the runs break off at any block.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

import keystow
from crash.owners import MIB, keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

BLOCK_BYTES = MIB
CHAIN, CHAINS, FRAMES = 24, 4, 16
READERS = 6
READ_S = 4.0


def open_store(root: Path, io_timeout_s: float) -> keystow.Store:
    ssd = keystow.Ssd(root, 2 * CHAIN * CHAINS * BLOCK_BYTES)
    ram = FRAMES * BLOCK_BYTES
    return keystow.Store(
        block_bytes=BLOCK_BYTES, ram=ram, ssd=ssd, put_wait_s=30, io_timeout_s=io_timeout_s
    )


def check(first: int, rows: Sequence[np.ndarray] | np.ndarray) -> None:
    for number, row in enumerate(rows, first):
        assert (row == number).all(), f"block {number} has {np.unique(row)}"


@pytest.mark.parametrize("io_timeout_s", [1.0, 0.01])
def test_readers_of_chains_larger_than_ram_get_right_bytes(
    tmp_path: Path, io_timeout_s: float
) -> None:
    with open_store(tmp_path, io_timeout_s=20) as store:
        for first in range(0, CHAIN * CHAINS, CHAIN):
            numbers = np.arange(first, first + CHAIN, dtype=np.uint64)
            rows = np.repeat(numbers[:, None], BLOCK_BYTES // 8, axis=1)
            assert store.put(keys(first, CHAIN), rows) == CHAIN
        assert store.close().left == 0
    with open_store(tmp_path, io_timeout_s) as store:
        end_s = time.monotonic() + READ_S

        def read(seed: int) -> int:
            rng = np.random.default_rng(seed)
            out, count = np.zeros((CHAIN, BLOCK_BYTES // 8), np.uint64), 0
            while time.monotonic() < end_s:
                first = int(rng.integers(CHAINS)) * CHAIN
                got = store.get(keys(first, CHAIN), out)
                check(first, out[:got])
                with store.lease(keys(first, CHAIN // 4)) as lease:
                    views = [np.frombuffer(view, np.uint64) for view in lease]
                    check(first, views)
                    views = []  # they would keep the pins
                count += got
            return count

        with ThreadPoolExecutor(READERS) as pool:
            counts = list(pool.map(read, range(READERS)))
        # Where every read is late there may be nothing.
        assert sum(counts) > 0 or io_timeout_s < 1
        assert store.stats().ssd_promotions > 0
