"""File systems of our own for tests: made in small images, mounted, and taken away again.

Owns: loop devices and mounts, by the stack that undoes them, newest first, whatever the test did.
Never does: fail a test because the machine forbids a mount or lacks a tool; it skips, and says
which command and what it answered. Invariant: no image is longer than `IMAGE_BYTES_MAX`, and its
blocks take room only as they are written.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import struct
import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
# What mkfs.xfs wants at least is 300 MiB; all others get less.
IMAGE_BYTES_MAX = 320 * MIB
# A device may be busy for a moment after the last file on it was closed.
UNMOUNTS_MAX = 20
COMMAND_S = 60
_AT_EMPTY_PATH, _STATX_DIOALIGN = 0x1000, 0x2000
_PROT_READ, _MAP_SHARED = 1, 1


def run(*command: str | Path) -> str:
    """Run a command that this machine may lack or forbid: then the test is skipped."""
    shown = " ".join(map(str, command))
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]}: no such command here")
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"{shown}: ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


class Mounts:
    """Mounts and loop devices of one test; `close` takes all of them away."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip(f"mount: needs root, this is user {os.geteuid()} (errno {errno.EPERM})")
        self.points: list[Path] = []
        self._folder = folder
        self._undo = ExitStack()
        self._count = 0

    def close(self) -> None:
        self._undo.close()

    def point(self, kind: str) -> Path:
        """A new empty directory."""
        self._count += 1
        point = self._folder / f"{kind}.{self._count}"
        point.mkdir()
        return point

    def loop(self, image: Path, length: int, sector_bytes: int = 512) -> str:
        """A loop device over a new sparse image."""
        assert length <= IMAGE_BYTES_MAX
        with image.open("xb") as file:
            file.truncate(length)
        sectors = ("--sector-size", str(sector_bytes))
        device = run("losetup", "--find", "--show", *sectors, image)
        self._undo.callback(_detach, device)
        return device

    def mount(self, kind: str, what: str, *options: str) -> Path:
        """Mount, and return where."""
        point = self.point(kind)
        run("mount", "-t", kind, "-o", ",".join(("noatime", *options)), what, point)
        self.unmount_at_end(point)
        return point

    def unmount_at_end(self, point: Path) -> None:
        """Take away what was mounted there, by whomever."""
        self._undo.callback(_unmount, point)
        self.points.append(point)

    def made(
        self,
        kind: str,
        sector_bytes: int = 512,
        *options: str,
        on: Path | None = None,
        mib: int = 96,
    ) -> Path:
        """A new file system in an image, mounted; the image is in `on`."""
        quiet = {"ext4": ("-q", "-F"), "xfs": ("-q", "-f"), "btrfs": ("-q", "-f")}[kind]
        maker = f"mkfs.{kind}"
        if shutil.which(maker) is None:
            pytest.skip(f"{maker}: no such command here")
        self._count += 1
        image = (on or self._folder) / f"{kind}.{self._count}.image"
        device = self.loop(image, (320 if kind == "xfs" else mib) * MIB, sector_bytes)
        run(maker, *quiet, device)
        return self.mount(kind, device, *options)


@contextmanager
def mounts_below(folder: Path) -> Iterator[Mounts]:
    """Mounts that end with the block."""
    mounts = Mounts(folder)
    try:
        yield mounts
    finally:
        mounts.close()


def _unmount(point: Path) -> None:
    for _ in range(UNMOUNTS_MAX):
        command = ["umount", point]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", point], check=True)  # noqa: S607
    raise AssertionError(f"{point} was still in use: {done.stderr.strip()}")


def _detach(device: str) -> None:
    subprocess.run(["losetup", "--detach", device], check=True)  # noqa: S607


# What the kernel says of a file


def direct_alignment(path: Path) -> tuple[int, int] | None:
    """Alignment of memory and offsets for O_DIRECT; zeros: it bypasses nothing; None: not told."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)
    with path.open("rb") as file:
        failed = libc.statx(file.fileno(), b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer)
    assert failed == 0, os.strerror(ctypes.get_errno())
    (mask,) = struct.unpack_from("I", buffer, 0)
    if not mask & _STATX_DIOALIGN:
        return None
    memory, offset = struct.unpack_from("II", buffer, 152)
    return memory, offset


def cached_pages(path: Path) -> int:
    """Pages of a file that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    length = path.stat().st_size
    with path.open("rb") as file:
        at = libc.mmap(None, length, _PROT_READ, _MAP_SHARED, file.fileno(), 0)
    assert at != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    failed = libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(length), pages)
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(length))
    assert failed == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages)
