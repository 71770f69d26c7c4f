"""What may be found in a directory, and what must be, from what its owners told.

Owns: the rules by which an answer is right. Never does: look at a store or a disk. Invariants:
- A version of a key is right if a put of exactly this key carried it, unless that put had ended
  before an erasure of the key began and the erasure has returned: position in the stream of records
  is the only clock for it.
- A removal that was not durable counts on disk once a flush or a close begun after it has ended, or
  after `SETTLED_S`.
- A block must be found if its write to SSD was told of `SETTLED_S` before the kill and nothing has
  evicted or erased it since; where the order of two events can't be told, it need not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crash.universe import MISS, WRONG
from crash.wire import Kind, Record

if TYPE_CHECKING:
    from crash.universe import Universe

# The store's promises after kill -9 are about what happened at least so long before it.
SETTLED_S = 1.0
NEVER = -1.0
FOREVER = float("inf")


@dataclass
class Put:
    """One put; None: it has not ended."""

    first: int
    count: int
    began: int
    ended: int | None = None


@dataclass
class Erasure:
    """A remove or clear under way; a clear names no keys."""

    began: int
    keys: slice
    durable: bool


@dataclass
class Soft:
    """A removal that was not durable and has returned."""

    began: int
    ended: int
    ended_s: float
    keys: slice


@dataclass
class Asked:
    """A get under way, and what had been erased when it began."""

    first: int
    floor: np.ndarray


class Truth:
    """The knowledge about one directory."""

    def __init__(self, universe: Universe) -> None:
        keys = universe.keys
        self.universe = universe
        self.position = 0
        self.puts: dict[int, Put] = {}
        # A version whose put ended before this position was erased: now, and after a restart.
        self.floor_now = np.zeros(keys, np.int64)
        self.floor_disk = np.zeros(keys, np.int64)
        # The last position at which an erasure of the key began or ended.
        self.erased_at = np.zeros(keys, np.int64)
        # Erasures that the disk need not know yet.
        self.soft: list[Soft] = []
        self.open: dict[int, int | Erasure | Asked] = {}
        # When the block's write to SSD was told of; NEVER; or FOREVER ago, for what was found.
        self.stored_s = np.full(keys, NEVER)
        self.kept = np.zeros(keys, bool)
        self.erased_s = np.full(keys, NEVER)
        self.put_whole = np.zeros(keys, bool)
        self.faults: list[str] = []
        self.blind = False
        self.checked = 0
        self.wrong = 0
        self.flushes: dict[int, int] = {}

    # ---- what the child tells ----

    def take(self, record: Record) -> None:
        """Learn from one record."""
        self.position += 1
        kind, items = record.kind, record.items
        if kind == Kind.PUT_BEGIN:
            version, first, count = items
            self.puts[version] = Put(first, count, self.position)
            self.open[record.call] = version
        elif kind == Kind.PUT_END:
            self._put_end(record)
        elif kind == Kind.GET_BEGIN:
            first, count = items
            floor = self.floor_now[first : first + count].copy()
            self.open[record.call] = Asked(first, floor)
        elif kind == Kind.GET_END:
            self._get_end(record)
        elif kind in (Kind.REMOVE_BEGIN, Kind.CLEAR_BEGIN):
            self._erase_begin(record)
        elif kind in (Kind.REMOVE_END, Kind.CLEAR_END):
            self._erase_end(record)
        elif kind == Kind.FLUSH_BEGIN:
            self.flushes[record.call] = self.position
        elif kind == Kind.FLUSH_END:
            began = self.flushes.pop(record.call)
            if record.items[0] == 0:
                self._harden(began, FOREVER)
        elif kind == Kind.EVENTS:
            self._events(record)
        elif kind == Kind.BLIND:
            self.blind = True
        elif kind == Kind.WRONG:
            self.faults.append(f"the child: {record.text}")
        elif kind == Kind.FAULT:
            self.faults.append(f"the child failed:\n{record.text}")

    def _put_end(self, record: Record) -> None:
        put = self.puts[self.open.pop(record.call)]  # type: ignore[index]
        put.ended = self.position
        keys = slice(put.first, put.first + record.items[0])
        # What was erased meanwhile may have been committed before it.
        self.put_whole[keys] |= self.erased_at[keys] < put.began

    def _get_end(self, record: Record) -> None:
        asked = self.open.pop(record.call)
        assert isinstance(asked, Asked)
        for at, version in enumerate(record.items):
            if version != MISS:
                self.checked += 1
                self._judge(asked.first + at, version, asked.floor[at], "the child")

    def _erase_begin(self, record: Record) -> None:
        keys, durable = slice(0, self.universe.keys), True
        if record.kind == Kind.REMOVE_BEGIN:
            durable, first, count = bool(record.items[0]), record.items[1], record.items[2]
            keys = slice(first, first + count)
        self.open[record.call] = Erasure(self.position, keys, durable)
        self.erased_at[keys] = self.position
        self.erased_s[keys] = FOREVER
        self.stored_s[keys] = NEVER
        self.kept[keys] = False
        self.put_whole[keys] = False

    def _erase_end(self, record: Record) -> None:
        erasure = self.open.pop(record.call)
        assert isinstance(erasure, Erasure)
        keys = erasure.keys
        self.erased_at[keys] = self.position
        self.put_whole[keys] = False
        self.stored_s[keys] = NEVER
        self.floor_now[keys] = np.maximum(self.floor_now[keys], erasure.began)
        others = [e for e in self.open.values() if isinstance(e, Erasure)]
        self.erased_s[keys] = record.time_s
        for other in others:
            self.erased_s[other.keys] = FOREVER
        if not record.items[0]:
            return
        if erasure.durable:
            self.floor_disk[keys] = np.maximum(self.floor_disk[keys], erasure.began)
        else:
            self.soft.append(Soft(erasure.began, self.position, record.time_s, keys))

    def _harden(self, before: int, before_s: float) -> None:
        """Removals that had ended by then are on disk."""
        left = []
        for soft in self.soft:
            if soft.ended < before and soft.ended_s < before_s:
                self.floor_disk[soft.keys] = np.maximum(self.floor_disk[soft.keys], soft.began)
            else:
                left.append(soft)
        self.soft = left

    def _events(self, record: Record) -> None:
        since_s = record.items[0] / 1e9
        for item in record.items[1:]:
            number, removed = item >> 1, item & 1
            self.kept[number] = False
            sure = not removed and since_s > self.erased_s[number]
            self.stored_s[number] = record.time_s if sure else NEVER

    # ---- what it comes to ----

    def died(self, killed_s: float, *, closed: bool) -> None:
        """Take in that the owner is gone; what was under way has ended, one way or the other."""
        self.position += 1
        self._harden(self.position, FOREVER if closed else killed_s - SETTLED_S)
        for call in self.open.values():
            if isinstance(call, int):
                self.puts[call].ended = self.position
        settled = (self.stored_s != NEVER) & (self.stored_s < killed_s - SETTLED_S)
        self.kept = self.kept | settled if not self.blind else np.zeros_like(self.kept)
        if closed:
            self.kept |= self.put_whole
        self.open.clear()
        self.flushes.clear()
        self.soft.clear()
        self.blind = False
        self.put_whole[:] = False
        self.stored_s[:] = NEVER
        self.erased_s[:] = NEVER
        self.floor_now = self.floor_disk.copy()

    def forgive(self) -> None:
        """Nothing must be found: the directory was damaged."""
        self.kept[:] = False

    def adopt(self, version: int, keys: int) -> None:
        """All files are another store's now: what was put there was put under these keys too."""
        self.puts[version] = Put(0, keys, 0)

    def turn_back(self) -> None:
        """Old files were restored: what was erased may be back."""
        self.forgive()
        self.floor_disk[:] = 0
        self.floor_now[:] = 0

    def found(self, numbers: np.ndarray, versions: np.ndarray) -> None:
        """Judge what a get after the restart delivered."""
        for number, version in zip(numbers.tolist(), versions.tolist(), strict=True):
            self._judge(number, version, self.floor_disk[number], "after the restart")

    def _judge(self, number: int, version: int, floor: int, who: str) -> None:
        put = self.puts.get(version)
        if version == WRONG or put is None:
            what = "that nobody put"
        elif not put.first <= number < put.first + put.count:
            what = "of other keys"
        elif put.ended is not None and put.ended < floor:
            what = f"put until {put.ended} and erased from {floor} on"
        else:
            return
        self.wrong += 1
        self.faults.append(f"{who}: key {number} has bytes {what} (version {version:#x})")
