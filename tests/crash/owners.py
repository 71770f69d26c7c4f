"""Stores of a small fixed layout, in this process or in one that is killed, and what is in them.

Owns: keys and bytes of the bounded tests, owners in processes of their own. Never does: draw
anything. Invariant: the bytes of a block name its key and its version.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import keystow

BLOCK_BYTES = 16 << 10
MIB = 1 << 20
CAPACITY = 16 * MIB
RAM = 4 * MIB
OWNER_S = 60
_TESTS = Path(__file__).resolve().parent.parent
_HEAD = "import os, sys, time\nfrom crash.owners import *\n"


def open_store(
    root: str | os.PathLike[str], *, capacity: int = CAPACITY, ram: int = RAM, **ssd: str
) -> keystow.Store:
    """Open a store of these tests; it waits for its disk rather than give up a block."""
    device = keystow.Ssd(root, capacity, **ssd)  # type: ignore[arg-type]
    return keystow.Store(
        block_bytes=BLOCK_BYTES, ram=ram, ssd=device, put_wait_s=30, io_timeout_s=20
    )


def keys(first: int, count: int) -> bytes:
    """Packed keys of these blocks."""
    return b"".join(number.to_bytes(16, "little") for number in range(first + 1, first + count + 1))


def row(number: int, version: int = 1) -> bytes:
    """Bytes of one block."""
    cell = number.to_bytes(4, "little") + version.to_bytes(4, "little")
    return cell * (BLOCK_BYTES // len(cell))


def rows(first: int, count: int, version: int = 1) -> bytes:
    """Bytes of some blocks."""
    return b"".join(row(number, version) for number in range(first, first + count))


def read_each(store: keystow.Store, first: int, count: int) -> dict[int, bytes]:
    """Return those blocks that are there, by number."""
    out = bytearray(count * BLOCK_BYTES)
    there = store.get_each(keys(first, count), out)
    cut = [bytes(out[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]) for at in range(count)]
    return {first + at: cut[at] for at in range(count) if there[at]}


def expected(first: int, count: int, version: int = 1) -> dict[int, bytes]:
    """Return what `read_each` returns where nothing is missing."""
    return {number: row(number, version) for number in range(first, first + count)}


def die() -> None:
    """End this process as a crash would."""
    os.kill(os.getpid(), signal.SIGKILL)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that knows this module; its input and output are pipes."""
    command = [sys.executable, "-c", _HEAD + code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=_TESTS, stdin=pipe, stdout=pipe, text=True)


def run_until_killed(code: str, *arguments: object) -> str:
    """Run such a process until it kills itself; return what it printed."""
    with start(code, *arguments) as process:
        try:
            printed, _ = process.communicate(timeout=OWNER_S)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    return printed
