"""Batched `match_prefix`: from Python over a real store, from Rust over the index alone.

Method: a store of 1 M blocks of one byte each (frames are 4 KiB, so 4 GiB of arena); random calls
of 8,192 keys, all present, in random order. The Rust side (`rust/core/benches/lookup.rs`) fills the
index without an arena, with 1 M and 10 M entries, and compares with the standard library's hash map
under one read lock a batch; and the index of a followed directory with one's own.
"""

from collections.abc import Iterator

import numpy as np

import keystow
import rust
from timing import Figure, Sample, interleave, scaled

FRAME_BYTES = 4096
KEY_BYTES = 16
BATCH = 8192
LEAST_MILLION_KEYS = 20.0
FOLLOWED = "lookup in a followed directory"
# A key costs at most twice as much there.
LEAST_OF_OWN = 0.5


def filled_store(keys: np.ndarray, entries: int) -> keystow.Store:
    """A store that holds one byte under every key, each block a root."""
    # One sixteenth more: a store keeps some frames free ahead of need.
    store = keystow.Store(block_bytes=1, ram=entries * 17 // 16 * FRAME_BYTES)
    row = bytes(BATCH)
    for start in range(0, entries, BATCH):
        part = keys[start : start + BATCH]
        stored = store.put(part, row[: len(part)], chained=False)
        if stored != len(part):
            raise AssertionError(f"put stored {stored} of {len(part)} blocks")
    return store


def from_python(*, quick: bool) -> Figure:
    """`match_prefix` with 8,192 keys a call."""
    entries = 20_000 if quick else 1_000_000
    calls, rounds = (2, 2) if quick else (64, 9)
    rng = np.random.default_rng(11)
    keys = np.frombuffer(rng.bytes(entries * KEY_BYTES), np.uint8).reshape(-1, KEY_BYTES)
    asked = [keys[rng.integers(0, entries, BATCH)].tobytes() for _ in range(calls)]
    with filled_store(keys, entries) as store:

        def match() -> float:
            found = sum(store.match_prefix(batch) for batch in asked)
            if found != calls * BATCH:
                raise AssertionError(f"{found} of {calls * BATCH} keys found")
            return float(found)

        rates = interleave({"keystow": match}, rounds)["keystow"]
    name = f"match_prefix from Python, {entries / 1e6:g} M entries"
    return Figure(name, "M keys/s", scaled(rates, 1e6), least=LEAST_MILLION_KEYS)


def from_rust(*, quick: bool) -> Iterator[Figure]:
    """The figures of the Rust side."""
    for told in rust.bench("lookup", quick=quick):
        yield Figure(
            told["name"],
            "M keys/s",
            scaled(Sample(tuple(told["ours"])), 1e6),
            scaled(Sample(tuple(told["rival"])), 1e6),
            told["rival_name"],
            least_ratio=LEAST_OF_OWN if told["name"].startswith(FOLLOWED) else None,
        )


def figures(*, quick: bool) -> Iterator[Figure]:
    """Lookups from Python, then from Rust."""
    yield from_python(quick=quick)
    yield from from_rust(quick=quick)
