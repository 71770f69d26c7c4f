"""The SSD tier on the file systems that people have: bytes, reopening, what is said of O_DIRECT.

Method: file systems in small images and in memory. What `stats().ssd_direct` says is compared with
the kernel: the alignment that statx tells of the slots file, and whether pages of it are in the
page cache after writes and reads, which nothing that bypasses it leaves there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from disk import BLOCK_BYTES, keys_of, member_folder, open_store, put, there
from mounts import Mounts, cached_pages, direct_alignment, mounts_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[[Mounts], Path]

RAM_BLOCKS = 16
BLOCKS = 300


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    with mounts_below(tmp_path) as mounts:
        yield mounts


def ext4(mounts: Mounts) -> Path:
    return mounts.made("ext4")


def ext4_of_4096(mounts: Mounts) -> Path:
    return mounts.made("ext4", 4096)


def ext4_journaled(mounts: Mounts) -> Path:
    return mounts.made("ext4", 512, "data=journal")


def xfs(mounts: Mounts) -> Path:
    return mounts.made("xfs")


def xfs_of_4096(mounts: Mounts) -> Path:
    return mounts.made("xfs", 4096)


def btrfs(mounts: Mounts) -> Path:
    return mounts.made("btrfs", mib=160)


def tmpfs(mounts: Mounts) -> Path:
    return mounts.mount("tmpfs", "keystow", "size=16m")


def overlay(mounts: Mounts) -> Path:
    below = mounts.made("ext4")
    parts = {name: below / name for name in ("lower", "upper", "work")}
    for part in parts.values():
        part.mkdir()
    options = [f"{name}dir={part}" for name, part in parts.items()]
    return mounts.mount("overlay", "keystow", *options)


DIRECT = [ext4, ext4_of_4096, xfs, xfs_of_4096, overlay]
BUFFERED = [ext4_journaled, tmpfs]


@pytest.mark.parametrize("make", [*DIRECT, *BUFFERED, btrfs])
def test_every_byte_comes_back_after_a_reopen(mounts: Mounts, make: Make, engine: str) -> None:
    root = make(mounts) / "kv"
    with open_store(root, ram=RAM_BLOCKS * BLOCK_BYTES) as store:
        for start in range(0, BLOCKS, 20):
            assert put(store, range(start, start + 20)) == 20
        assert store.flush(timeout_s=60) == 0
        assert len(there(store, range(BLOCKS))) == BLOCKS
        assert store.remove(keys_of(range(100, 110))) == 10
        assert store.stats().ssd_engine == engine
    with open_store(root, ram=RAM_BLOCKS * BLOCK_BYTES) as store:
        assert store.stats().recovered == BLOCKS - 10
        assert sorted(there(store, range(BLOCKS))) == [*range(100), *range(110, BLOCKS)]
        stats = store.stats()
        assert (stats.ssd_state, stats.ssd_engine, stats.ssd_unclean) == ("ok", engine, False)
        assert stats.ssd_io_errors == stats.ssd_bad_tags == stats.ssd_quarantined == 0
        store._validate()


def traffic(root: Path) -> tuple[bool, tuple[str, ...], int, tuple[int, int] | None]:
    """Write and read; what the store says, cached pages of the slots, and what statx tells."""
    with open_store(root, ram=RAM_BLOCKS * BLOCK_BYTES) as store:
        put(store, range(BLOCKS))
        assert store.flush(timeout_s=60) == 0
        assert len(there(store, range(BLOCKS))) == BLOCKS
        slots = member_folder(root) / "slots.0000"
        stats = store.stats()
        assert stats.ssd_reads > BLOCKS // 2
        return stats.ssd_direct, stats.fallbacks, cached_pages(slots), direct_alignment(slots)


def pages_dirtied() -> int:
    """Pages that anybody wrote through the page cache since the machine started."""
    lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    return int(dict(line.split() for line in lines)["nr_dirtied"])


@pytest.mark.parametrize("make", DIRECT)
@pytest.mark.usefixtures("engine")
def test_a_disk_is_bypassed_and_said_to_be(mounts: Mounts, make: Make) -> None:
    direct, fallbacks, cached, alignment = traffic(make(mounts) / "kv")
    assert (direct, cached) == (True, 0)
    assert not [line for line in fallbacks if "page cache" in line]
    assert alignment is None or 0 < max(alignment) <= 4096


@pytest.mark.usefixtures("engine")
def test_a_journal_of_data_is_said_to_be_buffered(mounts: Mounts) -> None:
    direct, fallbacks, cached, alignment = traffic(ext4_journaled(mounts) / "kv")
    if alignment is None:
        pytest.skip("statx: this kernel does not tell STATX_DIOALIGN, so nobody can know")
    assert alignment == (0, 0)
    assert cached >= BLOCKS
    assert not direct
    assert [line for line in fallbacks if line.endswith("I/O goes through the page cache.")]


@pytest.mark.usefixtures("engine")
def test_a_directory_in_memory_is_said_to_be(mounts: Mounts) -> None:
    direct, fallbacks, cached, _ = traffic(tmpfs(mounts) / "kv")
    assert cached >= BLOCKS
    assert not direct
    assert [line for line in fallbacks if line.endswith("tmpfs is memory, not a disk.")]


@pytest.mark.usefixtures("engine")
def test_btrfs_without_checksums_is_bypassed(mounts: Mounts) -> None:
    direct, fallbacks, cached, _ = traffic(mounts.made("btrfs", 512, "nodatasum", mib=160) / "kv")
    assert (direct, cached) == (True, 0)
    assert not [line for line in fallbacks if "page cache" in line]


@pytest.mark.usefixtures("engine")
@pytest.mark.xfail(
    reason="btrfs takes O_DIRECT for files with checksums and writes them through the page cache; "
    "ssd_direct says true"
)
def test_btrfs_with_checksums_is_said_to_be_buffered(mounts: Mounts) -> None:
    root = btrfs(mounts) / "kv"
    before = pages_dirtied()
    direct, fallbacks, _, _ = traffic(root)
    if pages_dirtied() - before < BLOCKS:
        pytest.skip("btrfs: this kernel bypasses the page cache whether there are checksums or not")
    assert not direct
    assert [line for line in fallbacks if "page cache" in line]
