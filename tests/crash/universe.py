"""The keys of one life of a directory, and the bytes that belong to a version of a key.

Owns: which keys there are, which chain each is of, what a put of a given version carries. Never
does: know what was put. Invariants: any two rows differ in every word, whether their keys, versions
or places differ, so that no foreign, older, shifted or swapped sector passes; a row names its key
and its version itself, so that wrong bytes tell where they came from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# What an output row holds before a get; beyond the length of a block it must still be there.
UNTOUCHED = 0xA5
MISS = 0
WRONG = (1 << 63) - 1
LENGTH_MIN = 32
_ROWS_BYTES_MAX = 16 << 20
_MIX = np.uint64(0x9E3779B97F4A7C15)


def version_of(life_step: int, thread: int, count: int, length_class: int) -> int:
    """Number a put; ``length_class`` 0 is a full block, others are so many 256ths of one."""
    return life_step << 48 | thread << 40 | count << 8 | length_class


@dataclass(frozen=True)
class Universe:
    """Chains of one length over blocks of one size."""

    seed: int
    chains: int
    chain_blocks: int
    block_bytes: int

    @property
    def keys(self) -> int:
        return self.chains * self.chain_blocks

    @cached_property
    def packed(self) -> bytes:
        """All keys, chain after chain."""
        seed = self.seed.to_bytes(8, "little")
        numbers = (n.to_bytes(8, "little") for n in range(self.keys))
        return b"".join(hashlib.blake2b(seed + n, digest_size=16).digest() for n in numbers)

    @cached_property
    def index(self) -> dict[bytes, int]:
        """The number of each key."""
        return {self.packed[16 * n : 16 * n + 16]: n for n in range(self.keys)}

    def run(self, first: int, count: int) -> bytes:
        """Packed keys."""
        return self.packed[16 * first : 16 * (first + count)]

    def parent(self, first: int) -> bytes | None:
        """The key before this one in its chain."""
        return None if first % self.chain_blocks == 0 else self.run(first - 1, 1)

    def length(self, version: int) -> int:
        """Bytes of a block of this version."""
        length_class = version & 0xFF
        if length_class == 0:
            return self.block_bytes
        return max(LENGTH_MIN, self.block_bytes * length_class // 256 - length_class % 8)

    @cached_property
    def _words(self) -> np.ndarray:
        return np.frombuffer(self.packed, np.uint64).reshape(-1, 2)

    @cached_property
    def _steps(self) -> np.ndarray:
        rng = np.random.default_rng(1)
        return rng.integers(0, 1 << 64, self.block_bytes // 8, np.uint64)

    def rows(self, numbers: np.ndarray, versions: np.ndarray) -> np.ndarray:
        """Full rows for these keys at these versions, as bytes."""
        words = self._words[numbers]
        seeds = (words[:, 0] ^ versions * _MIX) * _MIX ^ words[:, 1]
        rows = seeds[:, None] ^ self._steps
        rows[:, :2], rows[:, 2], rows[:, 3] = words, versions, ~versions
        return rows.view(np.uint8)

    def blocks(self, first: int, count: int, version: int) -> np.ndarray:
        """What a put of this version carries."""
        numbers = np.arange(first, first + count)
        rows = self.rows(numbers, np.full(count, version, np.uint64))
        return np.ascontiguousarray(rows[:, : self.length(version)])

    def out(self, count: int) -> np.ndarray:
        """Rows for a get."""
        return np.full((count, self.block_bytes), UNTOUCHED, np.uint8)

    def versions(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Tell which version of its key each row is; WRONG where it is none."""
        step = max(1, _ROWS_BYTES_MAX // self.block_bytes)
        found = [
            self._versions(numbers[at : at + step], rows[at : at + step])
            for at in range(0, len(numbers), step)
        ]
        return np.concatenate(found) if found else np.zeros(0, np.uint64)

    def _versions(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        words = rows.view(np.uint64)
        versions = words[:, 2].copy()
        expected = self.rows(numbers, versions)
        good = (words == expected.view(np.uint64)).all(axis=1)
        for at in np.flatnonzero(~good):
            end = self.length(int(versions[at]))
            same = (rows[at, :end] == expected[at, :end]).all()
            good[at] = same and (rows[at, end:] == UNTOUCHED).all()
        return np.where(good, versions, np.uint64(WRONG))

    def evidence(self, number: int, row: np.ndarray) -> str:
        """Say in what a row differs from the version that it names."""
        version = int(row.view(np.uint64)[2])
        expected = self.rows(np.array([number]), np.array([version], np.uint64))[0]
        end = self.length(version)
        wrong = np.flatnonzero(row[:end] != expected[:end])
        touched = np.flatnonzero(row[end:] != UNTOUCHED)
        return (
            f"key {number}, version {version:#x} of {end} bytes: {len(wrong)} wrong from "
            f"{wrong[:1].tolist()} to {wrong[-1:].tolist()}, {len(touched)} bytes touched behind "
            f"it from {touched[:1].tolist()}; its head: {bytes(row[:32]).hex()}"
        )
