"""A disk that fails under an open store: full, broken, read-only, taken away, cut short.

Method: file systems in small images of our own, and what the kernel does to a file system whose
device fails. Whatever happens, a block is right or a miss, neither put nor get raises, what is in
RAM stays readable, the counters tell, and the next store finds a directory that it can use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

import keystow
from disk import (
    BLOCK_BYTES,
    block,
    files_below,
    goes_on,
    keys_of,
    member_folder,
    open_store,
    put,
    there,
)
from mounts import Mounts, mounts_below, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

RAM_BLOCKS = 64
BLOCKS = 600
# Fewer than a chain in RAM may be, so that none of it need leave.
FRESH = 8
# How long a counter may take to show what happened.
PATIENCE_S = 30
# ioctl of ext4 and XFS: from now on nothing reaches the device, without a last flush.
SHUTDOWN, NO_FLUSH = 0x8004587D, 2


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    with mounts_below(tmp_path) as mounts:
        yield mounts


def open_small(root: Path, **options: Any) -> keystow.Store:
    """A store that waits for a failing disk for a moment only."""
    options = {"ram": RAM_BLOCKS * BLOCK_BYTES, "put_wait_s": 0.05, "io_timeout_s": 2, **options}
    return open_store(root, **options)


def filled(root: Path, **options: Any) -> keystow.Store:
    """A store whose blocks are all on SSD."""
    store = open_small(root, **options)
    assert put(store, range(BLOCKS)) == BLOCKS
    assert store.flush(timeout_s=60) == 0
    return store


def fresh(number: int) -> range:
    """Blocks that nobody has put yet."""
    return range(number, number + FRESH)


def becomes(
    store: keystow.Store,
    what: Callable[[keystow.Stats], bool],
    read: Iterable[int] = range(BLOCKS),
) -> keystow.Stats:
    """Use the store until its counters say so; these blocks are read meanwhile."""
    end = time.monotonic() + PATIENCE_S
    number = 10_000
    while not what(store.stats()):
        assert time.monotonic() < end, store.stats()
        goes_on(store, fresh(number))
        there(store, read)
        number += FRESH
    return store.stats()


def has_faults(stats: keystow.Stats) -> bool:
    return stats.ssd_io_errors + stats.ssd_disk_full + stats.ssd_short_transfers > 0


def is_off(stats: keystow.Stats) -> bool:
    return stats.ssd_breaker_opened > 0


def test_more_than_the_file_system_has_is_refused(mounts: Mounts) -> None:
    root = mounts.made("ext4", mib=32)
    before = files_below(root)
    with pytest.raises(keystow.KeystowError, match="free") as caught:
        open_small(root, capacity="64MiB")
    assert caught.value.code.startswith("KS-SSD-")
    assert files_below(root) == before
    with filled(root, capacity="8MiB") as store:
        assert len(there(store, range(BLOCKS))) == BLOCKS


def test_a_device_without_the_room_it_promised(mounts: Mounts) -> None:
    # The file system in the image has room for all of it; the image, on a small tmpfs, has not.
    small = mounts.mount("tmpfs", "keystow", "size=12m")
    root = mounts.made("ext4", on=small)
    store = open_small(root, capacity="48MiB")
    blocks, step = 6_000, 50
    for start in range(0, blocks, step):
        assert put(store, range(start, start + step)) == step
        there(store, range(start, start + step))
    stats = becomes(store, is_off)
    assert stats.ssd_disk_full >= 8
    # A full disk is no fault of the slot.
    assert stats.ssd_quarantined <= stats.ssd_io_errors
    assert stats.state == "open"
    assert 0 < len(there(store, range(blocks))) < blocks
    # Room again: the probe finds it, and nothing was lost but what was not written.
    run("mount", "-o", "remount,size=100m", small)
    becomes(store, lambda stats: stats.ssd_state == "ok")
    assert store.flush(timeout_s=60) == 0
    found = there(store, range(blocks))
    assert len(found) > 1_000
    store._validate()
    store.close(timeout_s=60)
    with open_small(root, capacity="48MiB") as store:
        assert len(there(store, range(blocks))) > 1_000


def truncated(image: Path, _root: Path) -> None:
    os.truncate(image, 0)


def shut_down(_image: Path, root: Path) -> None:
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", NO_FLUSH))
    except OSError as error:
        pytest.skip(f"ioctl(EXT4_IOC_SHUTDOWN): {errno.errorcode[error.errno or 0]}")
    finally:
        os.close(folder)


def aborted(_image: Path, root: Path) -> None:
    # What ext4 makes of its own errors: read-only, files open for writing or not.
    command = ["mount", "-o", "remount,abort", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and not _is_read_only(root):
        pytest.skip(f"{' '.join(command)}: {done.returncode}: {done.stderr.strip()}")


def _is_read_only(root: Path) -> bool:
    try:
        (root / "probe").touch()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("fail", [truncated, shut_down, aborted])
def test_a_device_that_fails_costs_misses_only(
    mounts: Mounts, fail: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    folder = mounts.mount("tmpfs", "keystow", "size=64m")
    root = mounts.made("ext4", on=folder, mib=48)
    (image,) = folder.glob("*.image")
    store = filled(root)
    fail(image, root)
    stats = becomes(store, has_faults)
    assert stats.state == "open"
    there(store, range(BLOCKS))
    store._validate()
    for closed in (store.close(timeout_s=5), store.close(timeout_s=5)):
        assert min(closed) >= 0
    # This directory may be lost; a store is not.
    with contextlib.suppress(keystow.KeystowError), open_small(root) as store:
        there(store, range(BLOCKS))
    with filled(tmp_path / "elsewhere") as store:
        assert len(there(store, range(BLOCKS))) == BLOCKS


def test_a_device_that_answers_nothing_is_left_alone(mounts: Mounts) -> None:
    store = filled(mounts.made("ext4", mib=48) / "kv")
    (root,) = mounts.points
    shut_down(root, root)
    stats = becomes(store, is_off)
    assert stats.ssd_state in ("off", "probing")
    assert stats.ssd_io_errors >= 8
    assert 0 < stats.ssd_quarantined <= stats.ssd_io_errors
    goes_on(store, fresh(50_000))
    store.close(timeout_s=5)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_directory_taken_away_under_a_store(tmp_path: Path, how: str) -> None:
    root = tmp_path / "kv"
    store = filled(root)
    shutil.rmtree(root)
    if how == "removed":
        assert sorted(there(store, range(BLOCKS))) == list(range(BLOCKS))
        goes_on(store, fresh(10_000))
        store._validate()
        store.close()
        assert not root.exists()
    # Another store where the first one was: neither reads or writes what the other has.
    with open_small(root) as other:
        assert there(other, range(BLOCKS)) == {}
        assert put(other, range(100), version=1) == 100
        if how == "replaced":
            assert there(store, range(BLOCKS), versions=2) == dict.fromkeys(range(BLOCKS), 0)
            goes_on(store, fresh(10_000))
            store.flush(timeout_s=30)
            assert store.remove(keys_of(range(50))) == 50
            store.close()
        assert there(other, range(100), versions=2) == dict.fromkeys(range(100), 1)
    with open_small(root) as other:
        assert there(other, range(BLOCKS), versions=2) == dict.fromkeys(range(100), 1)


@pytest.mark.parametrize("length", [0, 100 * BLOCK_BYTES, 100 * BLOCK_BYTES + 1000])
def test_slots_cut_short_under_a_store(tmp_path: Path, length: int) -> None:
    root = tmp_path / "kv"
    store = filled(root)
    os.truncate(member_folder(root) / "slots.0000", length)
    found = there(store, range(BLOCKS))
    assert len(found) <= length // BLOCK_BYTES + RAM_BLOCKS
    stats = store.stats()
    assert stats.ssd_lost > 0
    assert stats.ssd_bad_tags + stats.ssd_short_transfers + stats.ssd_io_errors > 0
    for number in range(10_000, 10_200, FRESH):
        goes_on(store, fresh(number))
    # Off, it serves what is in RAM; trusted again, also what was not cut off.
    # A probe that finds a block cut off makes the next one wait twice as long: nothing is read.
    becomes(store, lambda stats: stats.ssd_state == "ok", read=())
    whole = [number for number in found if number >= RAM_BLOCKS]
    assert sorted(there(store, whole)) == whole
    store._validate()
    store.close(timeout_s=5)
    with open_small(root) as store:
        there(store, range(BLOCKS))
        goes_on(store, fresh(20_000))
        assert store.flush(timeout_s=30) == 0
        store._validate()
    out = bytearray(BLOCK_BYTES * FRESH)
    with open_small(root) as store:
        assert store.get(keys_of(range(20_000, 20_000 + FRESH)), out) == FRESH
    assert out == b"".join(map(block, range(20_000, 20_000 + FRESH)))


@pytest.mark.parametrize("name", ["table", "SUPER"])
def test_the_table_cut_short_under_a_store(tmp_path: Path, name: str) -> None:
    root = tmp_path / "kv"
    store = filled(root)
    os.truncate(member_folder(root) / name, 0)
    assert len(there(store, range(BLOCKS))) == BLOCKS
    goes_on(store, fresh(10_000))
    store.flush(timeout_s=30)
    store.close()
    with open_small(root, on_mismatch="reset") as store:
        there(store, range(BLOCKS))
        goes_on(store, fresh(20_000))
        store._validate()
