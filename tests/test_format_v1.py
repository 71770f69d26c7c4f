"""A directory as the first version of the format left it: every later version has to read it.

Method: `data/format_v1.tar.gz` was written once by `make` below (run this file as a script) and is
not made again; a change of the format that can't read it is a new format. The test opens copies.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

import keystow

DATA = Path(__file__).parent / "data" / "format_v1.tar.gz"
BLOCK_BYTES = 4096
LAYOUT = keystow.Layout.opaque("format-v1", block_bytes=BLOCK_BYTES, block_tokens=16)
CAPACITY = "512KiB"
# Lengths that are no multiple of anything, the longest, and the shortest.
LENGTHS = (4096, 1, 600, 4095)
CLEARED, REMOVED, CHAIN, OTHER = range(5), range(10, 12), range(20, 60), range(70, 75)


def key(number: int) -> bytes:
    return (number * 0x9E37_79B9_7F4A_7C15_F39C_0C5D % 2**128).to_bytes(16, "little")


def row(number: int) -> bytes:
    return bytes((number * 31 + at * 7) % 256 for at in range(LENGTHS[number % len(LENGTHS)]))


def open_store(root: Path) -> keystow.Store:
    device = keystow.Ssd(root, CAPACITY)
    return keystow.Store(layout=LAYOUT, ram=16 * BLOCK_BYTES, salt="of a fixture", ssd=device)


def put(store: keystow.Store, numbers: range, parent: bytes | None = None) -> None:
    keys = b"".join(map(key, numbers))
    assert store.put(keys, [row(number) for number in numbers], parent=parent) == len(numbers)


def nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uname = entry.gname = ""
    return entry


def make() -> None:
    """Write the directory: an epoch that was cleared, chains, a removed head, two opens."""
    with tempfile.TemporaryDirectory() as home:
        root = Path(home) / "root"
        with open_store(root) as store:
            put(store, CLEARED)
            assert store.flush() == 0
            store.clear()
            put(store, CHAIN[:30])
            put(store, REMOVED)
        with open_store(root) as store:
            put(store, CHAIN[30:], parent=key(CHAIN[29]))
            put(store, OTHER, parent=key(REMOVED[-1]))
            assert store.remove(b"".join(map(key, REMOVED))) == len(REMOVED)
        with tarfile.open(DATA, "w:gz") as archive:
            archive.add(root, "root", filter=nobodys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(DATA.read_bytes())) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "root"


def check(store: keystow.Store | keystow.ReadOnlyStore) -> None:
    out = bytearray(BLOCK_BYTES * len(CHAIN))
    chain = b"".join(map(key, CHAIN))
    assert store.get(chain, out) == len(CHAIN)
    for at, number in enumerate(CHAIN):
        assert out[at * BLOCK_BYTES :].startswith(row(number)), number
    assert store.match_prefix(b"".join(map(key, OTHER))) == len(OTHER)
    gone = [*CLEARED, *REMOVED]
    assert not any(store.contains(b"".join(map(key, gone))))


def test_a_directory_of_format_1_is_read(root: Path) -> None:
    with open_store(root) as store:
        assert store.stats().recovered == len(CHAIN) + len(OTHER)
        check(store)
        assert store.verify().bad == 0
        put(store, REMOVED)
        assert store.match_prefix(b"".join(map(key, [*REMOVED, *OTHER]))) == 7
    with open_store(root) as store:
        assert store.match_prefix(b"".join(map(key, CHAIN))) == len(CHAIN)


def test_a_directory_of_format_1_is_read_by_a_view(root: Path) -> None:
    with keystow.open_readonly(root) as view:
        check(view)


def test_its_layout_and_salt_still_name_the_same_directory(root: Path) -> None:
    before = sorted(path.name for path in root.iterdir())
    with open_store(root):
        assert sorted(path.name for path in root.iterdir()) == before


if __name__ == "__main__":
    if DATA.exists():
        sys.exit(f"{DATA} is there already, and is of the version that wrote it.")
    make()
