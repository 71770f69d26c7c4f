"""A directory that would hold an SSD tier: whether files can be made, reserved and moved directly.

Owns: what the core's probe of a directory means. Never touches what is in the directory: the core
makes one unnamed file, which is gone when it is closed.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keystow import _core
from keystow.doctor_finding import (
    DEGRADED,
    MISSING,
    OK,
    SEE_DIRECTORY,
    Finding,
    errno_text,
    size_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Place", "direct_io", "directory", "disk", "fallocate", "io_uring", "survey"]

_DISK_LEAST_BYTES = 1 << 20
"""Less holds nothing worth a file."""
_DISK_LITTLE_BYTES = 1 << 30
_PAGES_MOVED = 16
"""Pages that the probe writes and reads."""
_URING_DISABLED = Path("/proc/sys/kernel/io_uring_disabled")
_STATUS = Path("/proc/self/status")
_MOUNTS = Path("/proc/self/mountinfo")

_DIRECTORY_WHY = "with ssd= a store makes a directory of its own in it and finds it again."
_DIRECT_WHY = (
    "past the page cache a block is copied once less, and memory is not filled with what the store "
    "caches anyway."
)
_RESERVE_WHY = "files whose room is reserved can't meet a full disk when a block is written."
_URING_WHY = "one thread keeps many transfers under way; without it a few threads wait for them."


@dataclass(frozen=True, slots=True)
class Place:
    """What was asked for, where it was tried, and what the core found there or why it failed."""

    asked: str
    tried: str
    found: dict[str, Any] | None
    failed: tuple[str, int] | None

    @property
    def usable(self) -> str | None:
        """Where files can be made, if anywhere."""
        return None if self.found is None else self.tried


def survey(path: str | os.PathLike[str]) -> Place:
    """Try a directory; where there is none, the one above, in which a store would make it."""
    asked = os.fsdecode(path)
    tried = asked
    said = _core._probe_directory(tried)  # noqa: SLF001 - our own core
    if said == ("open", errno.ENOENT) and not os.path.lexists(asked):
        tried = str(Path(os.path.abspath(asked)).parent)  # noqa: PTH100 - no link is followed
        said = _core._probe_directory(tried)  # noqa: SLF001 - our own core
    if isinstance(said, tuple):
        return Place(asked, tried, None, said)
    return Place(asked, tried, said, None)


def directory(place: Place) -> Finding:
    """Whether a store can make its files there."""
    name, why = "directory", _DIRECTORY_WHY
    if place.failed is not None:
        step, number = place.failed
        found, fix = _refused(place, step, number)
        return Finding(name, MISSING, found, why, fix)
    if place.tried != place.asked:
        found = f"{place.asked} does not exist; a store would make it in {place.tried}."
        return Finding(name, OK, found, why)
    info = Path(place.asked).stat()
    mode, owner, us = stat.S_IMODE(info.st_mode), info.st_uid, os.geteuid()
    if mode & 0o022 and not mode & stat.S_ISVTX:
        found = f"{place.asked} may be written to by others (mode {mode:o}): they can replace it."
        return Finding(name, DEGRADED, found, why, f"chmod go-w {place.asked}")
    if owner not in (us, 0):
        found = f"{place.asked} belongs to user {owner}, who can replace what user {us} makes."
        return Finding(name, DEGRADED, found, why, f"use a directory of user {us}.")
    how = "unnamed file" if _of(place)["unnamed"] else "file, unlinked at once,"
    return Finding(name, OK, f"{place.asked}: an {how} was made and is gone (mode {mode:o}).", why)


def _refused(place: Place, step: str, number: int) -> tuple[str, str]:
    """What stands in the way, and the way out."""
    said = errno_text(number)
    if step == "open" and number == errno.ENOTDIR:
        return f"{place.tried} is no directory.", "name a directory, or remove what stands there."
    if step == "open" and number == errno.ENOENT:
        if place.tried == place.asked:
            return f"{place.asked} is a link to nothing.", "remove the link, or make its target."
        found = f"{place.asked} does not exist, nor does {place.tried}, in which it would be made."
        return found, f"mkdir -p {place.tried}"
    found = f"no file can be made in {place.tried}: {step} gives {said}."
    if number in (errno.EACCES, errno.EPERM):
        return found, f"let user {os.geteuid()} write there, or name another directory."
    if number == errno.EROFS:
        return found, "mount the file system writable, or name another directory."
    if number in (errno.ENOSPC, errno.EDQUOT):
        return found, "free some space there, or name another directory."
    return found, "name a directory on a local disk."


def disk(place: Place) -> Finding:
    """How much room there is."""
    name, why = "disk", "an SSD tier takes all of its capacity when it is first opened."
    if place.usable is None:
        return _not_tried(name, why)
    room = os.statvfs(place.usable)
    free, there_is = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    found = f"{size_text(free)} of {size_text(there_is)} free to user {os.geteuid()}."
    if free >= _DISK_LITTLE_BYTES:
        return Finding(name, OK, found, why)
    fix = "free some space there, or name another directory."
    if free < _DISK_LEAST_BYTES:
        return Finding(name, MISSING, found, why, fix)
    return Finding(name, DEGRADED, found, why, fix)


def direct_io(place: Place) -> Finding:
    """Whether bytes come back as written, and whether they went past the page cache."""
    name, why = "direct-io", _DIRECT_WHY
    if place.usable is None:
        return _not_tried(name, why)
    found = _of(place)
    kind, options = file_system(place.usable)
    if found["failed"] is not None:
        step, number = found["failed"]
        said = "other bytes came back than were written" if step == "compare" else step
        said += f": {errno_text(number)}" if number else ""
        fix = "look at the disk (dmesg), or name another directory."
        return Finding(name, MISSING, f"{kind}: {said}.", why, fix)
    buffered = _buffered(found, kind, options)
    if buffered is not None:
        what, fix = buffered
        return Finding(name, DEGRADED, f"{kind}: {what}.", why, fix)
    align = found["align"]
    said = f"memory aligned to {align[0]}, offsets to {align[1]}" if align else "alignment not told"
    moved = "64 KiB written, read back and equal, none of it left in the page cache"
    if found["cached_pages"] is None:
        moved = "64 KiB written, read back and equal"
    return Finding(name, OK, f"{kind}: {moved}; {said}.", why)


def _buffered(found: dict[str, Any], kind: str, options: str) -> tuple[str, str] | None:
    """Why transfers go through the page cache and the way out; None where they don't."""
    other = "use a directory on ext4 or xfs on a local NVMe disk."
    if found["in_memory"]:
        return "memory, not a disk: what is in it is gone with the next boot", other
    if kind == "btrfs" and not found["in_place"]:
        fix = "chattr +C on the directory while it is empty, or a directory on ext4 or xfs."
        return "O_DIRECT is taken, but data with checksums goes through the page cache", fix
    if kind == "ext4" and "data=journal" in options.split(","):
        fix = "mount it with data=ordered (the default), or use another disk."
        return "data=journal writes through the page cache", fix
    if not found["direct"]:
        said = found["fallbacks"][0].partition(": ")[2] if found["fallbacks"] else "no O_DIRECT"
        return said.rstrip("."), other
    if found["cached_pages"]:
        said = f"O_DIRECT is taken, but {found['cached_pages']} of {_PAGES_MOVED} pages stayed"
        return f"{said} in the page cache", other
    return None


def fallocate(place: Place) -> Finding:
    """Whether room can be reserved."""
    name, why = "fallocate", _RESERVE_WHY
    if place.usable is None:
        return _not_tried(name, why)
    found = _of(place)
    fix = "use ext4 or xfs, or leave more room free on the disk than the tier takes."
    if found["fallocate_errno"] is not None:
        said = f"refused: {errno_text(found['fallocate_errno'])}."
        return Finding(name, DEGRADED, said, why, fix)
    has, asked = found["reserved_bytes"]
    said = f"{size_text(has)} reserved of {size_text(asked)} asked."
    if has >= asked:
        return Finding(name, OK, said, why)
    return Finding(name, DEGRADED, said, why, fix)


def io_uring(usable: str | None) -> Finding:
    """Whether io_uring works, tried in the directory where there is one."""
    name, why = "io-uring", _URING_WHY
    disabled = _read(_URING_DISABLED)
    setting = f"kernel.io_uring_disabled = {disabled or 'unknown to this kernel'}"
    refusal = _core.io_uring_refusal(usable)
    if refusal is None:
        return Finding(name, OK, f"works ({setting}).", why)
    number, step = refusal
    said = f"{step}: {errno_text(number)}" if number else step
    return Finding(name, DEGRADED, f"{said} ({setting}).", why, _uring_fix(number, disabled))


def _uring_fix(number: int, disabled: str) -> str:
    """What to do about a refusal."""
    filtered = "\nSeccomp:\t2" in _read(_STATUS)
    if number == errno.EPERM and disabled == "2":
        return "sysctl kernel.io_uring_disabled=0"
    if number == errno.EPERM and disabled == "1":
        return "sysctl kernel.io_uring_disabled=0, or add this user to kernel.io_uring_group."
    if number in (errno.EPERM, errno.EACCES, errno.ENOSYS) and filtered:
        return "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile."
    if number == errno.ENOSYS:
        return "use a kernel with io_uring: 5.1 or newer, CONFIG_IO_URING=y."
    if number in (errno.ENOMEM, errno.EAGAIN):
        return "raise the limit on locked memory (ulimit -l)."
    return "see the error; threads do the transfers meanwhile."


def file_system(path: str) -> tuple[str, str]:
    """Type and options of the file system that a path is on."""
    real = os.path.realpath(path)
    kind, options, longest = "unknown file system", "", -1
    for point, its_kind, its_options in _mounts():
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # A later line hides an earlier one at the same place.
        if inside and len(point) >= longest:
            kind, options, longest = its_kind, its_options, len(point)
    return kind, options


def _mounts() -> Iterator[tuple[str, str, str]]:
    for line in _read(_MOUNTS).splitlines():
        left, dash, right = line.partition(" - ")
        if not dash:
            continue
        point = left.split(" ")[4].replace("\\040", " ").replace("\\134", "\\")
        kind, _, options = right.split(" ", 2)
        yield point, kind, options


def _of(place: Place) -> dict[str, Any]:
    return place.found or {}


def _not_tried(name: str, why: str) -> Finding:
    found = "not tried: the directory can't be used."
    return Finding(name, MISSING, found, why, SEE_DIRECTORY)


def _read(path: Path) -> str:
    """What stands in a file of the kernel; nothing where it has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
