"""Memory, processor and their limits: what a store in this process would get.

Owns: what the core's and the kernel's answers mean. Never keeps memory: what is mapped to be looked
at is unmapped at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import resource
from pathlib import Path

from keystow import _core
from keystow.doctor_finding import DEGRADED, MISSING, OK, Finding, errno_text, size_text

__all__ = ["cgroup", "cpu", "huge_pages", "memlock", "numa", "ram", "shared_huge_pages"]

_RAM_LEAST_BYTES = 16 << 20
_RAM_LITTLE_BYTES = 1 << 30
_ENOUGH_HUGE = 0.9
"""As the store's own rule: less is reported as a fallback."""
_SHARED_BYTES = 8 << 20
_HUGE_PAGE_BYTES = 2 << 20
_LOCK_BYTES = 1 << 20
_CAP_IPC_LOCK = 14
_THP = Path("/sys/kernel/mm/transparent_hugepage")
_CORE_MILLI = 1000

_HUGE_WHY = "with 2 MiB pages copies and I/O look up 512 times fewer addresses."
_SHARED_WHY = "engines offload from and to memory they share (/dev/shm, memfd); copies cost less."
_LOCK_WHY = "memory registered with io_uring or pinned for a GPU counts against this limit."


def ram() -> Finding:
    """How much memory can be asked for."""
    name, why = "ram", "ram= is checked against this before anything is mapped."
    free, source = _core._ram_limit()  # noqa: SLF001 - our own core
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{size_text(free)} can be had ({source}), of {size_text(total)} in the machine."
    if free >= _RAM_LITTLE_BYTES:
        return Finding(name, OK, found, why)
    fix = "end what takes the memory, or raise the limit."
    if free < _RAM_LEAST_BYTES:
        return Finding(name, MISSING, found, why, fix)
    return Finding(name, DEGRADED, found, why, fix)


def cgroup() -> Finding:
    """What the cgroups leave of memory and processor."""
    name, why = "cgroup", "beyond memory.max the kernel kills; beyond cpu.max every thread stops."
    version, memory, processor = _core._cgroup_limits()  # noqa: SLF001 - our own core
    cores = os.cpu_count() or 1
    parts = [version if version != "none" else "no memory controller in sight"]
    fixes = []
    if memory is None:
        parts.append("no limit on memory")
    else:
        parts.append(f"{memory[1]} leaves {size_text(memory[0])}")
        if memory[0] < _RAM_LITTLE_BYTES:
            fixes.append("raise the limit on memory")
    if processor is None:
        parts.append("no limit on processor time")
    else:
        parts.append(f"{processor[1]} gives {processor[0] / _CORE_MILLI:.2f} of {cores} cores")
        if processor[0] < _CORE_MILLI:
            fixes.append("give at least one core")
    found = f"{', '.join(parts)}."
    if not fixes:
        return Finding(name, OK, found, why)
    return Finding(name, DEGRADED, found, why, f"{' and '.join(fixes)}.")


def huge_pages() -> Finding:
    """Whether an arena gets huge pages, by mapping a small one."""
    mapped, huge, said = _core._probe_pages()  # noqa: SLF001 - our own core
    setting = _chosen(_THP / "enabled")
    found = f"{huge >> 20} of {mapped >> 20} MiB came huge (transparent_hugepage: {setting})."
    if huge >= _ENOUGH_HUGE * mapped:
        return Finding("huge-pages", OK, found, _HUGE_WHY)
    refused = [sentence for sentence in said if not sentence.startswith("huge pages:")]
    found = " ".join([found, *(f"{sentence}." for sentence in refused)])
    fix = f"echo madvise > {_THP / 'enabled'}"
    if setting in ("madvise", "always"):
        fix = "free memory in larger pieces (echo 1 > /proc/sys/vm/compact_memory), or reboot."
    return Finding("huge-pages", DEGRADED, found, _HUGE_WHY, fix)


def shared_huge_pages() -> Finding:
    """Whether shared memory gets huge pages, by mapping some."""
    name, why = "shared-huge-pages", _SHARED_WHY
    setting = _chosen(_THP / "shmem_enabled")
    huge = _shared_huge_bytes()
    found = f"{huge >> 20} of {_SHARED_BYTES >> 20} MiB came huge (shmem_enabled: {setting})."
    # The kernel chooses the place; the part before its first boundary can't be huge.
    if huge >= _SHARED_BYTES - _HUGE_PAGE_BYTES:
        return Finding(name, OK, found, why)
    return Finding(name, DEGRADED, found, why, f"echo advise > {_THP / 'shmem_enabled'}")


def _shared_huge_bytes() -> int:
    """Map a memfd, touch all of it, and ask how much of it is in huge pages."""
    name = f"keystow-doctor-{os.getpid()}"
    file = os.memfd_create(name)
    try:
        os.ftruncate(file, _SHARED_BYTES)
        with mmap.mmap(file, _SHARED_BYTES, flags=mmap.MAP_SHARED) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, _SHARED_BYTES, mmap.PAGESIZE):
                memory[at] = 1
            areas = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    finally:
        os.close(file)
    kib, inside = 0, False
    for line in areas.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = f"memfd:{name}" in line
        elif inside and line.startswith("ShmemPmdMapped:"):
            kib += int(line.split()[1])
    return kib * 1024


def memlock() -> Finding:
    """How much memory may be locked, and whether locking works at all."""
    name, why = "memlock", _LOCK_WHY
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    exempt = bool(_effective_capabilities() >> _CAP_IPC_LOCK & 1)
    said = "no limit" if limit == resource.RLIM_INFINITY else f"limit {size_text(limit)}"
    said += ", CAP_IPC_LOCK" if exempt else ", no CAP_IPC_LOCK"
    refused = _lock_refusal()
    tried = f"{size_text(_LOCK_BYTES)} locked" if refused == 0 else errno_text(refused)
    found = f"{said}; tried: {tried}."
    if refused == 0 and (exempt or limit == resource.RLIM_INFINITY):
        return Finding(name, OK, found, why)
    fix = "ulimit -l unlimited; LimitMEMLOCK=infinity (systemd); --ulimit memlock=-1 (docker)."
    return Finding(name, DEGRADED, found, why, fix)


def _lock_refusal() -> int:
    """Lock a little memory; 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, _LOCK_BYTES) as memory:
        held = ctypes.c_char.from_buffer(memory)
        # Unmapping unlocks.
        at, size = ctypes.c_void_p(ctypes.addressof(held)), ctypes.c_size_t(_LOCK_BYTES)
        refused = 0 if libc.mlock(at, size) == 0 else ctypes.get_errno()
        del held
    return refused


def _effective_capabilities() -> int:
    return int(_status("CapEff") or "0", 16)


def numa() -> Finding:
    """How many memory nodes there are, and whether a store may choose among them."""
    name, why = "numa", "memory of another node is read at about half the speed."
    online = _read(Path("/sys/devices/system/node/online"))
    allowed = _status("Mems_allowed_list")
    nodes, ours = len(_numbers(online)), len(_numbers(allowed))
    force, said = _core._probe_numa()  # noqa: SLF001 - our own core
    tried = f"tried: {force}" if force else f"{'; '.join(said)}"
    if nodes <= 1:
        return Finding(name, OK, f"1 node ({tried}).", why)
    found = f"{nodes} nodes ({online}), {ours} of them allowed here ({allowed}); {tried}."
    if force:
        fix = 'Store(numa="local") in a process bound to a node, else numa="interleave".'
        return Finding(name, OK, found, why, fix)
    fix = "allow mbind and get_mempolicy in the seccomp profile (docker: --cap-add SYS_NICE)."
    return Finding(name, DEGRADED, found, why, fix)


def cpu() -> Finding:
    """Cores and instructions."""
    name, why = "cpu", "keys, tags and copies use the widest instructions there are."
    architecture, *features = _core._cpu_features()  # noqa: SLF001 - our own core
    cores = _core._cores()  # noqa: SLF001 - our own core
    of = f"{cores} of {os.cpu_count() or 1} cores"
    if architecture != "x86_64":
        found = f"{of}, {architecture}: not a machine that keystow is tested on."
        return Finding(name, DEGRADED, found, why, "run the tests there (make test).")
    words = [("AVX2", "avx2"), ("AVX-512", "avx512vl"), ("VAES", "vaes")]
    told = ", ".join(f"{word} {'yes' if part in features else 'no'}" for word, part in words)
    found = f"{of}, {told}."
    if "avx2" in features:
        return Finding(name, OK, found, why)
    return Finding(name, DEGRADED, found, why, "pass the host's processor through (-cpu host).")


def _numbers(text: str) -> set[int]:
    """The numbers of a list of the kernel: 0-1,4."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _chosen(path: Path) -> str:
    """The chosen word of a setting such as ``always [madvise] never``."""
    text = _read(path)
    match = re.search(r"\[(\S+)\]", text)
    return match.group(1) if match else text or "absent"


def _status(name: str) -> str:
    """A field of this process's status."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    return ""


def _read(path: Path) -> str:
    """What stands in a file of the kernel; nothing where it has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
