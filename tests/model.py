"""The store's rule as a naive model: one list of headers, searched from end to end each time.

Owns: what a store in deterministic mode must hold, evict, count and report. Never looks at a
store. Invariants: a block leaves only as a leaf (no header names it as its parent) and unpinned;
what a pin stands on keeps all its ancestors; a removed block keeps its frame while something
stands on it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COUNTERS = (
    "hits misses lookup_hits lookup_misses puts put_present put_short evictions "
    "removed cleared bytes_in bytes_out"
).split()


def raw_key(number: int) -> bytes:
    """Sixteen bytes that stand for a block number."""
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


def payload(key: bytes, version: int, length: int) -> bytes:
    """Bytes that only this version of this key has, as far as the length goes."""
    cell = key[:4] + version.to_bytes(4, "little")
    return (cell * (length // len(cell) + 1))[:length]


@dataclass(eq=False)
class Header:
    """One block, hole, or removed block that something still keeps."""

    key: bytes
    parent: Header | None
    data: bytes | None
    hidden: bool = False
    of_cleared_epoch: bool = False
    pins: int = 0

    @property
    def is_block(self) -> bool:
        return self.data is not None and not self.hidden


@dataclass(eq=False)
class ModelLease:
    """What a lease keeps: its blocks, in order, and the headers that it pins."""

    blocks: list[Header]
    pinned: list[Header]
    data: list[bytes]


@dataclass
class Model:
    """A store of so many frames in deterministic mode."""

    frames: int
    headers: list[Header] = field(default_factory=list)
    order: list[Header] = field(default_factory=list)  # blocks, the least recent first
    leases: list[ModelLease] = field(default_factory=list)
    events: list[tuple[str, bytes | None]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    # ---- questions ----

    def find(self, key: bytes) -> Header | None:
        """The header that a lookup sees: a block or a hole."""
        seen = (h for h in self.headers if h.key == key and not h.hidden)
        return next((h for h in seen if not h.of_cleared_epoch), None)

    def block(self, key: bytes) -> Header | None:
        header = self.find(key)
        return header if header is not None and header.is_block else None

    def run(self, keys: Sequence[bytes]) -> list[Header]:
        """The leading blocks."""
        run = []
        for key in keys:
            block = self.block(key)
            if block is None:
                break
            run.append(block)
        return run

    def children(self, header: Header) -> list[Header]:
        return [h for h in self.headers if h.parent is header]

    def protected(self, besides: Iterable[Header] = ()) -> set[int]:
        """Identities of all headers at or above a pin."""
        kept: set[int] = set()
        for header in [*(h for h in self.headers if h.pins), *besides]:
            at: Header | None = header
            while at is not None:
                kept.add(id(at))
                at = at.parent
        return kept

    @property
    def frames_free(self) -> int:
        return self.frames - sum(h.data is not None for h in self.headers)

    def recount(self) -> dict[str, int]:
        """What `_validate()` must find."""
        kept = self.protected()
        leased = {id(h) for lease in self.leases for h in lease.blocks}
        return {
            "blocks": len(self.order),
            "frames_free": self.frames_free,
            "frames_pinned": len(leased),
            "evictable": sum(id(h) not in kept for h in self.order),
            "resident": len(self.order),
            "holes": sum(h.data is None and not h.hidden for h in self.headers),
            "hidden": sum(h.hidden for h in self.headers),
            "pins": sum(h.pins for h in self.headers),
        }

    # ---- what leaves ----

    def victim(self, kept: set[int]) -> Header | None:
        """The least recent block that nothing stands on."""
        free = (h for h in self.order if id(h) not in kept and not self.children(h))
        return next(free, None)

    def make_room(self, wanted: int, own: Sequence[Header]) -> int:
        """Evict until so many frames are free, or nothing can leave; return how many are.

        What an eviction releases is taken in before the next one, or when the call ends.
        """
        kept = self.protected(own)
        while self.frames_free < wanted:
            self.settle(own)
            if self.frames_free >= wanted:
                break
            victim = self.victim(kept)
            if victim is None:
                break
            self.headers.remove(victim)
            self.order.remove(victim)
            self.counts["evictions"] += 1
            self.events.append(("removed", victim.key))
        return min(wanted, self.frames_free)

    def settle(self, own: Sequence[Header] = ()) -> None:
        """Release holes and removed blocks that nothing keeps any more."""
        going = True
        while going:
            going = False
            for header in [h for h in self.headers if not h.is_block]:
                if header.pins or any(h is header for h in own):
                    continue
                children = self.children(header)
                if not children:
                    self.headers.remove(header)
                    going = True
                elif header.data is not None and all(h.data is None for h in children):
                    header.data = None
                    going = True

    # ---- verbs ----

    def put(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[bytes],
        parent: bytes | None,
        *,
        chained: bool,
    ) -> int:
        """Store the longest leading run; return its length."""
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)  # a key twice: the second counts as present
        missing = [key for key in first if self.block(key) is None]
        own = [block for key in first if (block := self.block(key)) is not None]
        before = self.find(parent) if chained and parent is not None else None
        room = 0
        if missing:
            most = min(len(missing), self.frames - len(own))
            own += [] if before is None else [before]
            room = self.make_room(most, own)
        leading = len(keys) if room == len(missing) else first[missing[room]]
        new = []
        for i in sorted(first[key] for key in missing[:room]):
            above = keys[i - 1] if i else parent
            new.append(self._enter(keys[i], blocks[i], above if chained else None))
        for header in reversed(new):
            self.order.append(header)
            self.events.append(("stored", header.key))
        self.settle()
        self.counts["puts"] += len(new)
        self.counts["put_present"] += leading - len(new)
        self.counts["put_short"] += len(keys) - leading
        self.counts["bytes_in"] += sum(len(header.data or b"") for header in new)
        return leading

    def _enter(self, key: bytes, data: bytes, above: bytes | None) -> Header:
        hole = self.find(key)
        if hole is not None:  # it keeps the parent of its birth
            hole.data = data
            return hole
        parent = None
        if above is not None and above != key:
            parent = self.find(above) or self._hole(above)
        header = Header(key, parent, data)
        self.headers.append(header)
        return header

    def _hole(self, key: bytes) -> Header | None:
        holes = sum(h.data is None and not h.hidden for h in self.headers)
        if holes >= max(1, self.frames // 8):
            return None
        hole = Header(key, None, None)
        self.headers.append(hole)
        return hole

    def touch(self, run: Sequence[Header]) -> None:
        """Tail first: the head becomes the most recent."""
        for header in reversed(run):
            self.order.remove(header)
            self.order.append(header)

    def delivered(self, asked: int, run: Sequence[Header]) -> None:
        self.touch(run)
        self.counts["hits"] += len(run)
        self.counts["misses"] += asked - len(run)

    def get(self, keys: Sequence[bytes]) -> list[bytes]:
        run = self.run(keys)
        self.delivered(len(keys), run)
        data = [header.data or b"" for header in run]
        self.counts["bytes_out"] += sum(map(len, data))
        return data

    def get_each(self, keys: Sequence[bytes]) -> list[bytes | None]:
        blocks = [self.block(key) for key in keys]
        there = [block for block in blocks if block is not None]
        self.delivered(len(keys), there)
        self.counts["bytes_out"] += sum(len(block.data or b"") for block in there)
        return [None if block is None else block.data for block in blocks]

    def lease(self, keys: Sequence[bytes]) -> ModelLease:
        run = self.run(keys)
        self.delivered(len(keys), run)
        # The last block of each linked piece is pinned.
        below = [*run[1:], None][: len(run)]
        tails = [h for h, next_ in zip(run, below, strict=True) if _breaks(h, next_)]
        for header in tails:
            header.pins += 1
        lease = ModelLease(run, tails, [header.data or b"" for header in run])
        self.leases.append(lease)
        return lease

    def release(self, lease: ModelLease) -> None:
        self.leases.remove(lease)
        for header in lease.pinned:
            header.pins -= 1
        self.settle()

    def remove(self, keys: Sequence[bytes]) -> int:
        removed = 0
        for key in keys:
            block = self.block(key)
            if block is not None:
                block.hidden = True
                self.order.remove(block)
                self.events.append(("removed", key))
                removed += 1
        self.settle()
        self.counts["removed"] += removed
        return removed

    def clear(self) -> None:
        self.counts["cleared"] += len(self.order)
        for header in self.headers:
            header.hidden |= header.is_block
            header.of_cleared_epoch = True
        self.order.clear()
        self.settle()
        self.events.append(("cleared", None))

    def looked_up(self, asked: int, found: int) -> None:
        self.counts["lookup_hits"] += found
        self.counts["lookup_misses"] += asked - found


def _breaks(header: Header, below: Header | None) -> bool:
    return below is None or below.parent is not header
