"""A file system in front of a directory that moves less than asked, or fails, when told to.

Method: the protocol of /dev/fuse, spoken by a process of its own: ``fuse_disk.py POINT SOURCE
CONTROL SEED``. Owns: the mount, the nodes and the draws. Never does: hand out bytes that are not in
the source. CONTROL is a file of `CONTROL_BYTES` mapped by both sides: chances in percent first,
then counts of what was done. Faults befall `slots.*` only; the rest passes through.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHANCES = ("short_read", "short_write", "eio", "enospc")
CONTROL_BYTES = 4096
_COUNTS_AT = 64
_MAX_WRITE = 128 << 10
_IN, _OUT = struct.Struct("IIQQIIIHH"), struct.Struct("IiQ")
_READ, _SETATTR = struct.Struct("QQI"), struct.Struct("IIQQ")
_BIG_WRITES = 1 << 5
# FOPEN_DIRECT_IO. Without it the kernel makes a short transfer whole through the page cache.
_DIRECT_IO = 1
_SET_MODE, _SET_SIZE = 1, 8
_MOUNT_FLAGS = 2 | 4  # MS_NOSUID, MS_NODEV
_ROOT = 1


class Control:
    """What is to go wrong, and how often it did."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), CONTROL_BYTES)

    def set(self, **percent: int) -> None:
        for name in CHANCES:
            self._map[CHANCES.index(name)] = percent.get(name, 0)

    def draw(self, name: str, rng: random.Random) -> bool:
        at = CHANCES.index(name)
        if rng.random() * 100 >= self._map[at]:
            return False
        struct.pack_into("Q", self._map, _COUNTS_AT + 8 * at, self.count(name) + 1)
        return True

    def count(self, name: str) -> int:
        (count,) = struct.unpack_from("Q", self._map, _COUNTS_AT + 8 * CHANCES.index(name))
        return int(count)


class Server:
    """Answers the kernel's requests, one at a time."""

    def __init__(self, source: Path, control: Control, seed: int) -> None:
        self._control, self._rng = control, random.Random(seed)
        self._paths = {_ROOT: source}
        self._nodes = {source: _ROOT}
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            1: self._lookup,
            3: lambda node, _: struct.pack("QII", 0, 0, 0) + self._attributes(node),
            4: self._setattr,
            9: self._mkdir,
            10: lambda node, body: self._done(self._below(node, body).unlink()),
            11: lambda node, body: self._done(self._below(node, body).rmdir()),
            12: lambda node, body: self._rename(node, body, 8),
            14: lambda node, _: self._opened(os.open(self._paths[node], os.O_RDWR)),
            15: self._read,
            16: self._write,
            17: self._statfs,
            18: lambda _, body: self._done(os.close(struct.unpack_from("Q", body)[0])),
            20: lambda _, body: self._done(os.fdatasync(struct.unpack_from("Q", body)[0])),
            25: lambda _node, _body: b"",
            26: self._init,
            27: lambda _node, _body: struct.pack("QII", 0, 0, 0),
            28: self._readdir,
            29: lambda _node, _body: b"",
            30: lambda _node, _body: b"",
            35: self._create,
            45: lambda node, body: self._rename(node, body, 16),
        }

    def serve(self, device: int) -> None:
        while True:
            try:
                request = os.read(device, _MAX_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            _, call, unique, node, *_ = _IN.unpack_from(request)
            if call in (2, 36, 42):  # FORGET, INTERRUPT and BATCH_FORGET have no answer.
                continue
            try:
                answer, code = self._answers[call](node, request[_IN.size :]), 0
            except KeyError:
                answer, code = b"", errno.ENOSYS
            except OSError as error:
                answer, code = b"", error.errno or errno.EIO
            os.write(device, _OUT.pack(_OUT.size + len(answer), -code, unique) + answer)

    def _done(self, _: None) -> bytes:
        return b""

    def _below(self, node: int, name: bytes) -> Path:
        return self._paths[node] / os.fsdecode(name.split(b"\0")[0])

    def _opened(self, file: int) -> bytes:
        return struct.pack("QII", file, _DIRECT_IO, 0)

    def _attributes(self, node: int) -> bytes:
        stat = self._paths[node].lstat()
        sizes = (node, stat.st_size, stat.st_blocks, 0, 0, 0)
        owner = (stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid, 0, 4096, 0)
        return struct.pack("6Q10I", *sizes, 0, 0, 0, *owner)

    def _entry(self, path: Path) -> bytes:
        path.lstat()
        node = self._nodes.setdefault(path, len(self._paths) + 1)
        self._paths[node] = path
        return struct.pack("QQQQII", node, 0, 0, 0, 0, 0) + self._attributes(node)

    def _init(self, _node: int, body: bytes) -> bytes:
        major, _, ahead, _ = struct.unpack_from("IIII", body)
        head = struct.pack("IIIIHHI", major, 31, ahead, _BIG_WRITES, 12, 9, _MAX_WRITE)
        return head.ljust(64, b"\0")

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._below(node, body))

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, _, _, size = _SETATTR.unpack_from(body)
        if valid & _SET_SIZE:
            os.truncate(self._paths[node], size)
        if valid & _SET_MODE:
            self._paths[node].chmod(struct.unpack_from("I", body, 68)[0] & 0o7777)
        return struct.pack("QII", 0, 0, 0) + self._attributes(node)

    def _mkdir(self, node: int, body: bytes) -> bytes:
        path = self._below(node, body[8:])
        path.mkdir(struct.unpack_from("I", body)[0] & 0o7777)
        return self._entry(path)

    def _rename(self, node: int, body: bytes, head: int) -> bytes:
        old, new = body[head:].split(b"\0")[:2]
        was = self._paths[node] / os.fsdecode(old)
        now = self._paths[struct.unpack_from("Q", body)[0]] / os.fsdecode(new)
        was.rename(now)
        moved = self._nodes.pop(was)
        self._nodes[now], self._paths[moved] = moved, now
        return b""

    def _create(self, node: int, body: bytes) -> bytes:
        path = self._below(node, body[16:])
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        return self._entry(path) + self._opened(file)

    def _cut(self, node: int, name: str, length: int) -> int:
        """How much of a transfer is done: less than asked, aligned or not, or an error."""
        if not self._paths[node].name.startswith("slots."):
            return length
        if self._control.draw("eio", self._rng):
            raise OSError(errno.EIO, "drawn")
        if name == "short_write" and self._control.draw("enospc", self._rng):
            raise OSError(errno.ENOSPC, "drawn")
        if self._control.draw(name, self._rng):
            return self._rng.choice([0, 512, length // 2, length // 2 + 1, length - 1])
        return length

    def _read(self, node: int, body: bytes) -> bytes:
        file, offset, size = _READ.unpack_from(body)
        return os.pread(file, self._cut(node, "short_read", size), offset)

    def _write(self, node: int, body: bytes) -> bytes:
        file, offset, size = _READ.unpack_from(body)
        size = self._cut(node, "short_write", size)
        return struct.pack("II", os.pwrite(file, body[40 : 40 + size], offset), 0)

    def _statfs(self, node: int, _: bytes) -> bytes:
        room = os.statvfs(self._paths[node])
        counts = (room.f_blocks, room.f_bfree, room.f_bavail, room.f_files, room.f_ffree)
        return struct.pack("5Q4I24x", *counts, room.f_bsize, room.f_namemax, room.f_frsize, 0)

    def _readdir(self, node: int, body: bytes) -> bytes:
        _, offset, size = _READ.unpack_from(body)
        answer = b""
        for at, path in enumerate(sorted(self._paths[node].iterdir())[offset:], offset + 1):
            name = os.fsencode(path.name)
            entry = struct.pack("QQII", at, at, len(name), 0) + name
            entry = entry.ljust(-(-len(entry) // 8) * 8, b"\0")
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer


def mount(point: str) -> int:
    """Mount, and return the descriptor that the requests come from."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    words = (b"keystow", os.fsencode(point), b"fuse")
    if libc.mount(*words, ctypes.c_ulong(_MOUNT_FLAGS), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount(2) of fuse")
    return device


def main() -> int:
    """Mount, say so or why not, and serve until unmounted."""
    point, source, control, seed = sys.argv[1:]
    try:
        device = mount(point)
    except OSError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    Server(Path(source), Control(Path(control)), int(seed)).serve(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
