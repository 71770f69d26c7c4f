"""Stores on real directories, the blocks in them, and processes that hold them.

Owns: one small layout, its keys and blocks by number, and children of this interpreter. A child
says what it has done on its standard output, one line each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keystow
from model import payload, raw_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BLOCK_BYTES = 4096
LAYOUT = keystow.Layout.opaque("disk", block_bytes=BLOCK_BYTES, block_tokens=1)
# SUPER and the layout's description; a table page has 42 records.
REST_BYTES = 4 * 4096
PAGE_RECORDS = 42


def capacity_for(slots: int, stride: int = BLOCK_BYTES) -> int:
    """Bytes on disk that have room for exactly so many blocks."""
    return REST_BYTES + -(-slots // PAGE_RECORDS) * 4096 + slots * stride


def open_store(root: Path, **options: Any) -> keystow.Store:
    """A store with a little RAM and more disk under a root."""
    capacity = options.pop("capacity", "4MiB")
    device = {
        name: options.pop(name)
        for name in (
            "member",
            "engine",
            "on_locked",
            "on_mismatch",
            "reclaim",
            "write_bytes_per_s",
            "follow",
            "replicated",
        )
        if name in options
    }
    options = {"layout": LAYOUT, "ram": 16 * BLOCK_BYTES, **options}
    return keystow.Store(ssd=keystow.Ssd(root, capacity, **device), **options)


def keys_of(numbers: Iterable[int]) -> bytes:
    """Packed keys."""
    return b"".join(raw_key(number) for number in numbers)


def block(number: int, version: int = 0) -> bytes:
    """The bytes of a block; every version of every key has others."""
    return payload(raw_key(number), version, BLOCK_BYTES)


def put(store: keystow.Store, numbers: Iterable[int], version: int = 0) -> int:
    """Put blocks as one chain."""
    numbers = list(numbers)
    return store.put(keys_of(numbers), [block(number, version) for number in numbers])


def there(store: keystow.Store, numbers: Iterable[int], versions: int = 1) -> dict[int, int]:
    """Which of the blocks are there, with their versions; other bytes fail."""
    numbers = list(numbers)
    out = bytearray(BLOCK_BYTES * len(numbers))
    found = {}
    for at, got in enumerate(store.get_each(keys_of(numbers), out) if numbers else []):
        if got:
            row = bytes(out[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES])
            fits = [v for v in range(versions) if row == block(numbers[at], v)]
            assert fits, f"block {numbers[at]} has bytes that nobody put"
            found[numbers[at]] = fits[0]
    return found


def goes_on(store: keystow.Store, numbers: Iterable[int]) -> int:
    """Put blocks on whatever disk: those in RAM come back. Returns how many those were."""
    numbers = list(numbers)
    assert put(store, numbers) == len(numbers)
    with store.match(keys_of(numbers), pin=True) as match:
        in_ram = numbers[: match.ram]
        assert set(in_ram) <= set(there(store, numbers))
        return len(in_ram)


def files_below(root: Path) -> dict[str, int]:
    """Every file and its length, every directory and -1."""
    return {
        str(path.relative_to(root)): path.lstat().st_size if path.is_file() else -1
        for path in sorted(root.rglob("*"))
    }


def member_folder(root: Path, member: str = "0", layout: keystow.Layout = LAYOUT) -> Path:
    """Where a store keeps its files."""
    return root / layout.fingerprint.hex() / member


@contextmanager
def child(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process of our own that runs a script with this module at hand; it does not outlive us."""
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom disk import *\n"
    command = [sys.executable, "-c", path + script, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def say(line: str) -> None:
    """Tell the parent, whole, whoever else writes to the same pipe."""
    os.write(1, f"{line}\n".encode())


def said(process: subprocess.Popen[str]) -> str:
    """The next line of a child; fails where it ended without one."""
    assert process.stdout
    line = process.stdout.readline()
    assert line, f"the child ended with {process.wait()}"
    return line.strip()
