"""Reopening a store: from nothing but its directory to the first lookup.

Method: a million blocks of one byte each (slots are 4 KiB, so 4 GiB on disk), in chains of 1,024,
put through the store, flushed and closed; then the whole of `Store(...)` is timed, memory, lock and
table included. Beside it what the store itself says of the table alone (`recovery_s`). The table is
read past the page cache. Every open has to find every block.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import keystow
from ssd import scratch
from timing import Figure, Sample

STRIDE_BYTES = 4096
KEY_BYTES = 16
CHAIN = 1024
RAM_BYTES = 256 << 20
# Of the SSD's room, so much is tables.
TABLE_SHARE = 32
MOST_S = 0.5


def open_store(directory: Path, records: int) -> keystow.Store:
    """The store, with room on SSD for so many blocks."""
    room = records * STRIDE_BYTES
    ssd = keystow.Ssd(directory, room + room // TABLE_SHARE)
    return keystow.Store(block_bytes=1, ram=RAM_BYTES, ssd=ssd)


def fill(directory: Path, records: int) -> None:
    """Leave so many blocks on SSD."""
    rng, row = np.random.default_rng(17), bytes(CHAIN)
    with open_store(directory, records) as store:
        for _ in range(records // CHAIN):
            stored = store.put(rng.bytes(CHAIN * KEY_BYTES), row)
            if stored != CHAIN:
                raise AssertionError(f"put stored {stored} of {CHAIN} blocks")
        left, there = store.flush(), store.stats().ssd_blocks
        if left or there != records:
            raise AssertionError(f"{there} of {records} blocks on SSD, {left} left")


def figures(*, quick: bool, directory: Path | None = None) -> Iterator[Figure]:
    """The whole open, then the table's part of it, in seconds per million records."""
    records, rounds = (8 * CHAIN, 2) if quick else (1024 * CHAIN, 5)
    opened, recovered = [], []
    with scratch(directory) as home:
        fill(home, records)
        for _ in range(rounds):
            start = time.perf_counter()
            store = open_store(home, records)
            opened.append((time.perf_counter() - start) * 1e6 / records)
            with store:
                stats = store.stats()
                if stats.recovered != records or stats.blocks != records:
                    raise AssertionError(f"{stats.recovered} of {records} blocks came back")
                recovered.append(stats.recovery_s * 1e6 / records)
    name = f"reopen, {records / 1e6:.2g} M records"
    yield Figure(name, "s/M", Sample(tuple(opened)), most=MOST_S)
    yield Figure(f"{name}, table alone", "s/M", Sample(tuple(recovered)))
