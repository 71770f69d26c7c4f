"""A disk that moves less than it was asked, and one that fails now and then.

Method: a store on `fuse_disk`, which cuts transfers of slots at drawn lengths, aligned or not, and
answers EIO and ENOSPC. It counts what it did, and the store's counters are compared with that.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from disk import BLOCK_BYTES, goes_on, open_store, put, there
from fuse_disk import CONTROL_BYTES, Control
from mounts import Mounts, mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

    import keystow

pytestmark = pytest.mark.usefixtures("engine")

BLOCKS = 300
# Far fewer than RAM has, so that none of it need leave at once.
RAM_BLOCKS = 64
FRESH = 8


class Disk:
    """The mounted directory, its control and its process."""

    def __init__(self, root: Path, control: Control, server: subprocess.Popen[str]) -> None:
        self.root, self.control, self.server = root, control, server


@contextmanager
def served(mounts: Mounts, folder: Path, seed: int) -> Iterator[Disk]:
    """A `fuse_disk` over a directory; its process does not outlive the block."""
    source, point, control = folder / "source", mounts.point("fuse"), folder / "control"
    source.mkdir()
    control.write_bytes(bytes(CONTROL_BYTES))
    script = Path(__file__).parent / "fuse_disk.py"
    command = [sys.executable, script, point, source, control, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        said = server.stdout.readline().strip()
        if said != "mounted":
            pytest.skip(f"/dev/fuse: {said}")
        mounts.unmount_at_end(point)
        try:
            yield Disk(point / "kv", Control(control), server)
        finally:
            # What still waits for it ends with an error; then the mount can go.
            server.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounts_below(tmp_path) as mounts, served(mounts, tmp_path, 7) as disk:
        yield disk


def opened(disk: Disk) -> keystow.Store:
    return open_store(disk.root, ram=RAM_BLOCKS * BLOCK_BYTES, put_wait_s=2, io_timeout_s=2)


def fresh(number: int) -> range:
    """Blocks that nobody has put yet."""
    return range(number, number + FRESH)


def test_a_disk_in_between_changes_nothing(disk: Disk) -> None:
    with opened(disk) as store:
        assert put(store, range(BLOCKS)) == BLOCKS
        assert store.flush(timeout_s=60) == 0
        assert len(there(store, range(BLOCKS))) == BLOCKS
        assert [line for line in store.stats().fallbacks if "cannot reserve room" in line]
    with opened(disk) as store:
        assert len(there(store, range(BLOCKS))) == BLOCKS


@pytest.mark.parametrize("what", ["short_read", "short_write", "eio", "enospc", "all"])
def test_right_bytes_or_a_miss_when_transfers_fail(disk: Disk, what: str, engine: str) -> None:
    chances = dict.fromkeys(["short_read", "short_write", "eio", "enospc"], 5)
    chances = chances if what == "all" else {what: 15}
    with opened(disk) as store:
        put(store, range(BLOCKS))
        assert store.flush(timeout_s=60) == 0
        disk.control.set(**chances)
        for start in range(0, 400, FRESH):
            goes_on(store, fresh(1_000 + start))
            there(store, range(start % BLOCKS, start % BLOCKS + 2 * FRESH))
        stats = store.stats()
        did = {name: disk.control.count(name) for name in chances}
        assert sum(did.values()) > 0
        if what in ("short_read", "short_write"):
            assert stats.ssd_io_errors == stats.ssd_disk_full == 0
            assert stats.ssd_short_transfers <= did[what]
            # io_uring goes on with a short write by itself.
            goes_on_itself = (engine, what) == ("uring", "short_write")
            assert stats.ssd_short_transfers > 0 or goes_on_itself
        elif what == "eio":
            assert 0 < stats.ssd_io_errors <= did[what]
        elif what == "enospc":
            assert 0 < stats.ssd_disk_full <= did[what]
        disk.control.set()
        store._validate()
        store.flush(timeout_s=10)
    with opened(disk) as store:
        there(store, range(BLOCKS))
        there(store, range(1_000, 1_400))
        goes_on(store, fresh(5_000))
        store._validate()


def test_a_disk_whose_server_dies(disk: Disk) -> None:
    store = opened(disk)
    put(store, range(BLOCKS))
    assert store.flush(timeout_s=60) == 0
    disk.server.kill()
    disk.server.wait()
    in_ram = 0
    for number in range(1_000, 1_200, FRESH):
        in_ram += goes_on(store, fresh(number))
        there(store, range(BLOCKS))
    assert in_ram > 100
    stats = store.stats()
    assert stats.ssd_io_errors > 0
    assert (stats.state, stats.ssd_breaker_opened > 0) == ("open", True)
    store._validate()
    store.close(timeout_s=5)
