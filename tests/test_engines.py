"""Which I/O engine serves a directory: what is asked for, what the kernel allows, and what is said.

Method: children in which a seccomp filter answers the three calls of io_uring with an error, as
containers and sandboxes do, each with another one; every store must still work, and say why it has
no ring.
"""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import keystow
from disk import open_store, put, there
from engines import VARIABLE, refused

if TYPE_CHECKING:
    from collections.abc import Callable

DENIED = [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOMEM]
SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")

FILTER = """
import ctypes, errno, struct, sys

def deny(number, calls):
    "From now on these system calls end with this errno, in this process and its children."
    allow, answer = 0x7FFF0000, 0x00050000 | number
    code = [(0x20, 0, 0, 0)]  # load the number of the call
    for call in calls:
        code.append((0x15, 0, 1, call))  # if it is this one
        code.append((0x06, 0, 0, answer))
    code.append((0x06, 0, 0, allow))
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) != 0:  # PR_SET_SECCOMP, filter
        print("no seccomp here: errno", ctypes.get_errno())
        sys.exit(77)
"""

WORK = """
import keystow
from disk import open_store, put, there
with open_store(sys.argv[1]) as store:
    assert put(store, range(40)) == 40
    assert store.flush() == 0
    stats = store.stats()
    print(stats.ssd_engine, *stats.fallbacks, sep="|")
with open_store(sys.argv[1]) as store:
    assert len(there(store, range(40))) == 40
"""

REGISTERED = """
import keystow, sys
from disk import LAYOUT
device = keystow.Ssd(sys.argv[1], "1MiB", engine="uring")
with keystow.Store(LAYOUT, ram="8MiB", prefault="now", ssd=device) as store:
    print(store.stats().ssd_registered_bytes)
"""
MANY = range(8 << 20, 1 << 30)

FORCED = """
import keystow
from disk import open_store
try:
    open_store(sys.argv[1], engine="uring")
except keystow.SsdError as error:
    print(error.code, error.context["errno"], error.context["step"], error, sep="|")
"""


def run(root: Path, code: str, **environment: str) -> str:
    """Run code in a child and return its output; skip where the machine has no seccomp."""
    names = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        env=names,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def denying(number: int, calls: str = "[425, 426, 427]") -> str:
    """Python that denies the calls (io_uring_setup, _enter, _register) from its end on."""
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip(f"the numbers of system calls on {platform.machine()} are not known here")
    return f"{FILTER}\ndeny({number}, {calls})\n"


@pytest.mark.parametrize("number", DENIED, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("calls", ["[425, 426, 427]", "[426]"], ids=["all", "enter"])
def test_where_io_uring_is_denied_threads_do_the_work(
    tmp_path: Path, number: int, calls: str
) -> None:
    said = run(tmp_path, denying(number, calls) + WORK).split("|")
    assert said[0] == "pool"
    (why,) = [line for line in said if "io_uring" in line]
    assert os.strerror(number) in why
    if SYSCTL.exists():
        assert f"kernel.io_uring_disabled = {SYSCTL.read_text().strip()}" in why
    assert str(tmp_path) in why


def test_a_ring_that_is_asked_for_and_denied_is_an_error(tmp_path: Path) -> None:
    code, number, step, message = run(tmp_path, denying(errno.EPERM) + FORCED).split("|")
    assert (code, int(number), step) == ("KS-SSD-108", errno.EPERM, "setup")
    assert str(tmp_path) in message


def test_registration_denied_is_no_reason(tmp_path: Path) -> None:
    skip_without_ring()
    assert run(tmp_path, denying(errno.EPERM, "[427]") + WORK) == "uring"
    assert run(tmp_path, denying(errno.EPERM, "[427]") + REGISTERED) == "0"


def test_what_is_registered_is_told(tmp_path: Path) -> None:
    skip_without_ring()
    # All of the arena at least, where nothing forbids it.
    registered = int(run(tmp_path, denying(errno.EPERM, "[]") + REGISTERED))
    assert registered == 0 or registered in MANY
    with open_store(tmp_path / "pool", engine="pool") as store:
        assert store.stats().ssd_registered_bytes == 0


def test_no_locked_memory_is_no_reason(tmp_path: Path) -> None:
    skip_without_ring()
    limit = "import resource, sys\nresource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))\n"
    assert run(tmp_path, limit + WORK) == "uring"


def skip_without_ring() -> None:
    """Skip, with the reason, where there is no io_uring."""
    why = refused("uring")
    if why is not None:
        pytest.skip(why)


def test_the_variable_stands_in_for_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = "pool" if refused("uring") else "uring"
    engine: Callable[..., str] = lambda **options: engine_of(tmp_path, **options)  # noqa: E731
    monkeypatch.delenv(VARIABLE, raising=False)
    assert engine() == best
    monkeypatch.setenv(VARIABLE, "pool")
    assert engine() == "pool"
    assert engine(engine=best) == best
    for nothing in ("", "auto"):
        monkeypatch.setenv(VARIABLE, nothing)
        assert engine() == best


def engine_of(root: Path, **options: str) -> str:
    """Open a store, use it, and return what did its I/O."""
    with open_store(root, **options) as store:
        put(store, range(8))
        assert len(there(store, range(8))) == 8
        return store.stats().ssd_engine


@pytest.mark.parametrize("name", ["urin", "sim", "Pool"])
def test_a_variable_that_names_no_engine_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(keystow.ConfigError, match=VARIABLE) as caught:
        keystow.Ssd("/nvme/kv", "1GiB")
    assert caught.value.code == "KS-CFG-204"
    assert keystow.Ssd("/nvme/kv", "1GiB", engine="pool").engine == "pool"
