"""The demo's traffic: requests through a store, every loaded byte compared.

Owns: the pattern that says what each key must hold, and what one request does to a store. Never
looks inside the store: it calls what any engine would. Invariants: a row is scrubbed before a get
and compared whole after it, so a byte that the get did not write counts as wrong; a request's
blocks are put only behind the prefix that was loaded and checked; what a key must hold depends on
the key alone, so that one process checks what another one put.
"""

import hashlib
import math
import time
from array import array
from dataclasses import dataclass, field
from typing import TypedDict

from keystow import Keys, Store
from keystow.trace import Request

PAGE_BYTES = 4096
KEY_BYTES = 16
BUFFER_BYTES_MAX = 64 << 20
"""Rows of the demo's own buffer: a call carries as many blocks as fit, at least one."""


class Pattern:
    """What a key must hold: a stretch of one random text, chosen by the key and signed with it.

    The key stands at head and tail and a byte of it begins every page, so that a row which is
    swapped, shifted, cut or another key's differs.
    """

    def __init__(self, block_bytes: int) -> None:
        text = hashlib.shake_128(b"keystow demo").digest(2 * block_bytes)
        self._text = memoryview(text)
        self._pages = len(range(0, block_bytes, PAGE_BYTES))
        self._repeats = math.ceil(self._pages / KEY_BYTES)
        self.block_bytes = block_bytes

    def fill(self, key: bytes, row: bytearray) -> None:
        """Write into `row` what `key` must hold."""
        start = int.from_bytes(key[:8], "little") % self.block_bytes
        # Views on both sides: the one way to copy without a temporary in between.
        memoryview(row)[:] = self._text[start : start + self.block_bytes]
        row[::PAGE_BYTES] = (key * self._repeats)[: self._pages]
        row[:KEY_BYTES] = key
        row[-KEY_BYTES:] = key


# What of a store's counters the demo tells; each counts from the opening of the store.
COUNTERS = (
    "evictions",
    "bytes_in",
    "bytes_out",
    "ssd_write_bytes",
    "ssd_late",
    "ssd_io_errors",
    "ssd_bad_tags",
    "ssd_breaker_opened",
    "ssd_dropped_waited",
    "ssd_dropped_refused",
    "ssd_dropped_off",
    "ssd_lost",
)


class State(TypedDict):
    """Where a store stands at one moment of this machine."""

    at_s: float
    blocks: int
    counters: dict[str, int]
    fallbacks: list[str]


def state_of(store: Store) -> State:
    """Return where the store stands now."""
    stats = store.stats()
    return {
        "at_s": time.monotonic(),
        "blocks": stats.blocks,
        "counters": {name: getattr(stats, name) for name in COUNTERS},
        "fallbacks": list(stats.fallbacks),
    }


@dataclass
class Served:
    """What one request did, and the store's counters right after it."""

    state: State
    blocks: int = 0
    prompt_tokens: int = 0
    stored: int = 0
    puts: list[float] = field(default_factory=list)
    """Seconds of each put."""
    gets: list[tuple[float, int, int]] = field(default_factory=list)
    """Of each get the seconds, and the blocks that came from RAM and from SSD, as match told."""
    wrong_blocks: int = 0
    wrong_bytes: int = 0
    first_wrong: str = ""


class Buffers:
    """The demo's own memory: rows for one call, what a row must hold, and zeroes.

    It is made before the store: while an arena is faulted in, a process maps new memory slowly.
    """

    def __init__(self, block_bytes: int, chain_blocks_max: int) -> None:
        count = min(max(1, chain_blocks_max), max(1, BUFFER_BYTES_MAX // block_bytes))
        self.rows = [bytearray(block_bytes) for _ in range(count)]
        self.expected = bytearray(block_bytes)
        self.blank = bytearray(block_bytes)
        self.pattern = Pattern(block_bytes)


class Replay:
    """Requests through a store, one after another, through the same rows."""

    def __init__(self, store: Store, buffers: Buffers) -> None:
        self._store = store
        self._pattern = buffers.pattern
        self._rows = buffers.rows
        self._expected = buffers.expected
        self._blank = buffers.blank

    def serve(self, request: Request) -> Served:
        """Do what an engine does: match, load the hit prefix, compute the rest, put it."""
        hashes = array("Q", request.blocks).tobytes()
        keys = self._store.keys_of(hashes, width=8)
        served = Served(state_of(self._store), len(keys), request.prompt_tokens)
        loaded = self._load(keys, served)
        self._save(keys[loaded:], served)
        served.state = state_of(self._store)
        return served

    def _load(self, keys: Keys, served: Served) -> int:
        """Get the blocks that the store has and check them; return how many came."""
        for start in range(0, len(keys), len(self._rows)):
            part = keys[start : start + len(self._rows)]
            found = self._store.match(part)
            matched = int(found)
            if not matched:
                return start
            rows = self._rows[:matched]
            for row in rows:
                row[:] = self._blank
            began_s = time.perf_counter()
            got = self._store.get(part[:matched], rows)
            spent_s = time.perf_counter() - began_s
            # As match told right before; blocks that did not come are taken from both tiers.
            from_ssd = round(found.ssd * got / matched)
            served.gets.append((spent_s, got - from_ssd, from_ssd))
            for key, row in zip(part, rows[:got], strict=False):
                self._check(key, row, served)
            if got < len(part):
                return start + got
        return len(keys)

    def _check(self, key: bytes, row: bytearray, served: Served) -> None:
        self._pattern.fill(key, self._expected)
        if row == self._expected:
            return
        served.wrong_blocks += 1
        differing = int.from_bytes(row, "little") ^ int.from_bytes(self._expected, "little")
        served.wrong_bytes += len(row) - differing.to_bytes(len(row), "little").count(0)
        if not served.first_wrong:
            offset = next(
                i for i, (a, b) in enumerate(zip(row, self._expected, strict=True)) if a != b
            )
            served.first_wrong = f"key {key.hex()}, first at byte {offset} of {len(row)}"

    def _save(self, keys: Keys, served: Served) -> None:
        """Put the keys' blocks, as far as the store has room for the chain."""
        for start in range(0, len(keys), len(self._rows)):
            part = keys[start : start + len(self._rows)]
            rows = self._rows[: len(part)]
            for key, row in zip(part, rows, strict=True):
                self._pattern.fill(key, row)
            began_s = time.perf_counter()
            stored = self._store.put(part, rows)
            served.puts.append(time.perf_counter() - began_s)
            served.stored += stored
            if stored < len(part):
                return
