"""`ram=` against what the machine and the cgroup leave: refused before anything is mapped or made.

Method: a child in a real cgroup with a small limit, below our own group, where the system lets us
make one; and more than the whole machine has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import keystow

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_BYTES = 96 << 20
GROUPS = Path("/proc/self/cgroup")
MOUNTS = Path("/proc/self/mountinfo")
# Enters the group, then opens a store that fits and one that does not.
SCRIPT = """
import os, sys
group, limit = sys.argv[1], int(sys.argv[2])
with open(os.path.join(group, "cgroup.procs"), "w") as procs:
    procs.write(str(os.getpid()))
import keystow

def mapped():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return int(fields["VmSize"].split()[0]) << 10

with keystow.Store(block_bytes=1 << 20, ram=limit // 3, prefault="now") as store:
    print(store.stats().frames_total)
before = mapped()
try:
    keystow.Store(block_bytes=1 << 20, ram=limit + (8 << 20))
except keystow.ConfigError as error:
    print(error.code)
    print(error.context["limit_source"])
    print(error.context["ram_bytes"], error.context["limit_bytes"])
    print(error.hint)
print(mapped() - before)
"""


def mount_of(kind: str, option: str) -> tuple[Path, str] | None:
    """Where a cgroup hierarchy is mounted, and the group that the mount point shows."""
    for line in MOUNTS.read_text().splitlines():
        left, _, right = line.partition(" - ")
        words = right.split(" ")
        if words[0] == kind and (not option or option in words[2].split(",")):
            return Path(left.split(" ")[4]), left.split(" ")[3]
    return None


def own_group(version: str, controller: str = "memory") -> Path:
    """Our own group of a version, or a skip."""
    kind, option = ("cgroup2", "") if version == "v2" else ("cgroup", controller)
    mount = mount_of(kind, option)
    if mount is None:
        pytest.skip(f"no {version} hierarchy with a {controller} controller is mounted")
    for line in GROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" if version == "v2" else controller in controllers.split(","):
            inside = path.removeprefix(mount[1]) if mount[1] != "/" else path
            return mount[0] / inside.lstrip("/")
    pytest.skip(f"this process is in no {version} group")


@pytest.fixture(params=["v2", "v1"])
def group(request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    """A group below our own that may have little memory, and the file with its limit."""
    version = request.param
    name = "memory.max" if version == "v2" else "memory.limit_in_bytes"
    made = own_group(version) / f"keystow-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no group can be made: {error}")
    try:
        try:
            (made / name).write_text(str(LIMIT_BYTES))
        except OSError as error:
            pytest.skip(f"the group has no memory controller: {error}")
        yield made, name
    finally:
        made.rmdir()


def test_the_limit_of_a_real_cgroup(group: tuple[Path, str]) -> None:
    made, name = group
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(made), str(LIMIT_BYTES)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    fits, code, source, numbers, hint, grown = done.stdout.splitlines()
    assert int(fits) == LIMIT_BYTES // 3 >> 20
    assert code == "KS-CFG-102"
    assert source.startswith(f"{name} of cgroup /")
    assert source.endswith(made.name)
    asked, limit = map(int, numbers.split())
    assert asked == LIMIT_BYTES + (8 << 20)
    assert 0 < limit <= LIMIT_BYTES
    assert "lower ram=" in hint
    assert int(grown) < LIMIT_BYTES


def test_more_than_there_is_changes_nothing(tmp_path: Path) -> None:
    there_is = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with pytest.raises(keystow.ConfigError) as caught:
        keystow.Store(block_bytes=4096, ram=there_is, ssd=f"{tmp_path / 'new'}:1GiB")
    assert caught.value.code == "KS-CFG-102"
    assert f"{there_is / 2**30:.1f}" in caught.value.message
    assert list(tmp_path.iterdir()) == []
