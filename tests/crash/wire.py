"""What a child tells its parent: small records on a pipe, one write each.

Owns: their form. Never does: judge them. Invariant: a record is at most PIPE_BUF bytes, so that the
kernel takes it whole or not at all, whichever thread writes and whenever the child dies; records
stand in the pipe in the order in which their writes were made.
"""

from __future__ import annotations

import os
import struct
import time
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD_BYTES_MAX = 4096  # PIPE_BUF of Linux
_HEAD = struct.Struct("<HBxId")
_ITEM = struct.Struct("<q")
ITEMS_MAX = (RECORD_BYTES_MAX - _HEAD.size) // _ITEM.size


class Kind(IntEnum):
    """What a record is about; the numbers that follow it."""

    OPENED = 1  # blocks recovered
    PUT_BEGIN = 2  # version, first key, count
    PUT_END = 3  # blocks stored
    GET_BEGIN = 4  # first key, count
    GET_END = 5  # a version for each key, MISS, or WRONG
    REMOVE_BEGIN = 6  # durable, first key, count
    REMOVE_END = 7  # whether the disk confirmed
    CLEAR_BEGIN = 8
    CLEAR_END = 9  # whether the disk confirmed
    FLUSH_BEGIN = 10
    FLUSH_END = 11  # blocks left dirty
    EVENTS = 12  # start of the poll before in ns, then key number * 2 + (0 stored, 1 removed)
    BLIND = 13  # events were dropped
    QUIET = 14  # nothing more will change
    CLOSED = 15  # blocks left, blocks dropped
    WRONG = 16  # text: what a live read delivered
    FAULT = 17  # text: an exception


class Record(NamedTuple):
    """One record, decoded."""

    kind: Kind
    call: int
    time_s: float
    items: tuple[int, ...]
    text: str


def send(pipe: int, kind: Kind, call: int, *items: int, text: str = "") -> None:
    """Write one record."""
    body = b"".join(map(_ITEM.pack, items)) + text.encode()[-2000:]
    size = _HEAD.size + len(body)
    if size > RECORD_BYTES_MAX:
        message = f"{kind.name}: {size} bytes are more than one atomic write"
        raise ValueError(message)
    os.write(pipe, _HEAD.pack(size, kind, call, time.monotonic()) + body)


class Decoder:
    """Cuts a stream of bytes into records."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[Record]:
        """Yield the records that are complete."""
        data = self._rest + piece
        at = 0
        while len(data) - at >= _HEAD.size:
            size, kind, call, time_s = _HEAD.unpack_from(data, at)
            if len(data) - at < size:
                break
            body = data[at + _HEAD.size : at + size]
            at += size
            if kind in (Kind.WRONG, Kind.FAULT):
                yield Record(Kind(kind), call, time_s, (), body.decode(errors="replace"))
            else:
                items = struct.unpack(f"<{len(body) // _ITEM.size}q", body)
                yield Record(Kind(kind), call, time_s, items, "")
        self._rest = data[at:]
