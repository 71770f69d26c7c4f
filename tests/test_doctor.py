"""`keystow doctor`: verdicts against what the machine itself says, nothing left, exit statuses.

Method: the command in this process and in children with less than we have (no capabilities, no
locked memory, no packages); facts are read again by other ways than the command's own.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import keystow
from disk import files_below, open_store, put, there
from keystow import cli, doctor, doctor_command, doctor_disk, doctor_machine
from keystow.doctor import Finding

if TYPE_CHECKING:
    from collections.abc import Callable

OF_DIRECTORY = ["directory", "disk", "direct-io", "fallocate"]
OF_MACHINE = (
    "io-uring ram cgroup huge-pages shared-huge-pages memlock numa cpu buffers torch cuda".split()
)
FIELDS = ["name", "verdict", "found", "why", "fix"]
PACKAGE = Path(keystow.__file__).parent.parent
SHARED_MEMORY = str(Path("/dev") / "shm")
ALL_CAPABILITIES = range(64)
PR_CAPBSET_DROP = 24
# Becomes the command, without capabilities and without locked memory where it is told so.
RESTRICTED = f"""
import ctypes, os, resource, sys
libc = ctypes.CDLL(None)
for capability in {list(ALL_CAPABILITIES)}:
    libc.prctl({PR_CAPBSET_DROP}, capability, 0, 0, 0)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
os.execv(sys.executable, [sys.executable, "-m", "keystow", "doctor", *sys.argv[1:]])
"""


def told(*arguments: object, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    """The findings as JSON, by name; the exit status fits them."""
    status = cli.main(["doctor", "--json", *map(str, arguments)])
    return by_name(status, capsys.readouterr().out)


def by_name(status: int, text: str) -> dict[str, dict[str, str]]:
    findings: list[dict[str, str]] = json.loads(text)
    assert all(list(finding) == FIELDS for finding in findings)
    assert all(text and isinstance(text, str) for finding in findings for text in finding.values())
    verdicts = {finding["verdict"] for finding in findings}
    assert verdicts <= {"ok", "degraded", "missing"}
    assert status == (2 if "missing" in verdicts else int("degraded" in verdicts))
    return {finding["name"]: finding for finding in findings}


def child(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, **options
    )


def place(**found: Any) -> doctor_disk.Place:
    """A directory in which the core found this, and else nothing amiss."""
    good = {
        "unnamed": True,
        "fallocate_errno": None,
        "reserved_bytes": (65536, 65536),
        "in_memory": False,
        "align": (512, 512),
        "direct": True,
        "cached_pages": 0,
        "in_place": False,
        "failed": None,
        "fallbacks": [],
    }
    return doctor_disk.Place("/", "/", good | found, None)


def test_every_line_is_there_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(told(capsys=capsys)) == OF_MACHINE
    findings = told(tmp_path, capsys=capsys)
    assert list(findings) == OF_DIRECTORY + OF_MACHINE
    assert findings["directory"]["verdict"] == "ok"
    assert [finding.name for finding in doctor.examine(tmp_path)] == list(findings)


def test_the_exit_status_is_the_worst_verdict() -> None:
    def status(*verdicts: Any) -> int:
        return doctor.exit_status([Finding("x", verdict, "", "", "") for verdict in verdicts])

    assert status("ok", "ok") == 0
    assert status("ok", "degraded", "ok") == 1
    assert status("missing", "degraded") == 2


def test_io_uring_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    finding = told(capsys=capsys)["io-uring"]
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(425, 2, (ctypes.c_uint64 * 16)())
    if ring >= 0:
        os.close(ring)
    assert finding["verdict"] == ("ok" if ring >= 0 else "degraded")
    sysctl = Path("/proc/sys/kernel/io_uring_disabled")
    setting = sysctl.read_text().strip() if sysctl.exists() else "unknown to this kernel"
    assert f"kernel.io_uring_disabled = {setting}" in finding["found"]
    if ring < 0:
        assert errno.errorcode[ctypes.get_errno()] in finding["found"]


@pytest.mark.parametrize(
    ("number", "disabled", "status", "fix"),
    [
        (errno.EPERM, "2", "", "sysctl kernel.io_uring_disabled=0"),
        (errno.EPERM, "1", "", "io_uring_group"),
        (errno.EPERM, "0", "Seccomp:\t2", "seccomp profile"),
        (errno.ENOSYS, "", "Seccomp:\t2", "seccomp profile"),
        (errno.ENOSYS, "", "Seccomp:\t0", "5.1 or newer"),
        (errno.ENOMEM, "0", "", "ulimit -l"),
        (errno.EIO, "0", "", "see the error"),
    ],
)
def test_a_refused_ring_says_its_way_out(
    number: int, disabled: str, status: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"io_uring_disabled": disabled, "status": f"Name:\tx\n{status}"}
    monkeypatch.setattr(doctor_disk, "_read", lambda path: files[path.name])
    monkeypatch.setattr(doctor_disk._core, "io_uring_refusal", lambda _: (number, "a step"))
    finding = doctor_disk.io_uring(None)
    assert finding.verdict == "degraded"
    assert finding.found.startswith(f"a step: {errno.errorcode[number]} ({number}, ")
    assert fix in finding.fix


def test_io_uring_is_tried_in_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(doctor_disk._core, "io_uring_refusal", asked.append)
    doctor.examine(tmp_path)
    doctor.examine(tmp_path / "absent")
    doctor.examine(tmp_path / "absent" / "absent")
    doctor.examine()
    assert asked == [str(tmp_path), str(tmp_path), None, None]


def test_memory_in_place_of_a_disk_is_degraded(capsys: pytest.CaptureFixture[str]) -> None:
    if doctor_disk.file_system(SHARED_MEMORY)[0] != "tmpfs":
        pytest.skip(f"{SHARED_MEMORY} is no tmpfs here")
    findings = told(SHARED_MEMORY, capsys=capsys)
    assert findings["direct-io"]["verdict"] == "degraded"
    assert findings["direct-io"]["found"].startswith("tmpfs: memory, not a disk")


@pytest.mark.parametrize(
    ("found", "on", "verdict", "says"),
    [
        ({}, ("ext4", "rw"), "ok", "memory aligned to 512, offsets to 512"),
        ({"align": None, "cached_pages": None}, ("xfs", "rw"), "ok", "alignment not told"),
        ({"in_memory": True}, ("tmpfs", "rw"), "degraded", "memory, not a disk"),
        ({"direct": False, "fallbacks": ["/: no O_DIRECT."]}, ("x", ""), "degraded", "no O_DIRECT"),
        ({}, ("btrfs", "rw,compress=zstd"), "degraded", "checksums"),
        ({"in_place": True}, ("btrfs", "rw"), "ok", "read back and equal"),
        ({}, ("ext4", "rw,data=journal"), "degraded", "data=journal"),
        ({"cached_pages": 16}, ("zfs", "rw"), "degraded", "16 of 16 pages"),
        ({"failed": ("write", errno.EIO)}, ("ext4", "rw"), "missing", "write: EIO"),
        ({"failed": ("compare", 0)}, ("ext4", "rw"), "missing", "other bytes came back"),
    ],
)
def test_what_is_buffered_is_told(
    found: dict[str, Any],
    on: tuple[str, str],
    verdict: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_disk, "file_system", lambda _: on)
    finding = doctor_disk.direct_io(place(**found))
    assert finding.verdict == verdict
    assert finding.found.startswith(f"{on[0]}: ")
    assert says in finding.found


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({}, "ok"),
        ({"fallocate_errno": errno.EOPNOTSUPP}, "degraded"),
        ({"reserved_bytes": (0, 65536)}, "degraded"),
    ],
)
def test_room_that_is_not_reserved_is_told(found: dict[str, Any], verdict: str) -> None:
    assert doctor_disk.fallocate(place(**found)).verdict == verdict


def test_the_file_system_is_the_mount_below_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = """22 1 0:1 / / rw,relatime shared:1 - ext4 /dev/a rw,data=ordered
23 22 0:2 / /data rw - xfs /dev/b rw
24 23 0:3 / /data rw - btrfs /dev/c rw,compress=zstd
25 23 0:4 / /data/with\\040space rw - tmpfs tmpfs rw"""
    monkeypatch.setattr(doctor_disk, "_read", lambda _: mounts)
    assert doctor_disk.file_system("/datafile") == ("ext4", "rw,data=ordered")
    assert doctor_disk.file_system("/data/x") == ("btrfs", "rw,compress=zstd")
    assert doctor_disk.file_system("/data/with space/x") == ("tmpfs", "rw")


def absent(root: Path) -> str:
    return str(root / "absent" / "absent")


def a_file(root: Path) -> str:
    (root / "file").write_bytes(b"mine")
    return str(root / "file")


def a_link_to_nothing(root: Path) -> str:
    (root / "link").symlink_to(root / "absent")
    return str(root / "link")


@pytest.mark.parametrize("make", [absent, a_file, a_link_to_nothing])
def test_what_can_be_no_directory_is_missing(
    make: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path)
    before = files_below(tmp_path)
    findings = told(path, capsys=capsys)
    assert [findings[name]["verdict"] for name in OF_DIRECTORY] == ["missing"] * 4
    assert str(tmp_path) in findings["directory"]["found"]
    assert cli.main(["doctor", path]) == 2
    assert files_below(tmp_path) == before


def test_what_a_store_would_make_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = told(tmp_path / "new", capsys=capsys)["directory"]
    assert finding["verdict"] == "ok"
    assert f"{tmp_path / 'new'} does not exist; a store would make it" in finding["found"]
    assert files_below(tmp_path) == {}
    # It does.
    with open_store(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()


def test_a_directory_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    done = child(["-c", RESTRICTED, "--json", str(tmp_path / "closed")])
    findings = by_name(done.returncode, done.stdout)
    assert done.returncode == 2
    assert findings["directory"]["verdict"] == "missing"
    assert "EACCES (13" in findings["directory"]["found"]
    assert str(os.geteuid()) in findings["directory"]["fix"]


def test_a_directory_that_others_can_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode, verdict in ((0o777, "degraded"), (0o1777, "ok"), (0o755, "ok")):
        tmp_path.chmod(mode)
        finding = told(tmp_path, capsys=capsys)["directory"]
        assert (finding["verdict"], f"mode {mode:o}" in finding["found"]) == (verdict, True)


def test_nothing_is_left_or_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(tmp_path) as store:
        assert put(store, range(8)) == 8
        store.flush()
        before = files_below(tmp_path)
        assert told(tmp_path, capsys=capsys)["directory"]["verdict"] == "ok"
        assert files_below(tmp_path) == before
        assert len(there(store, range(8))) == 8
    with open_store(tmp_path) as store:
        assert len(there(store, range(8))) == 8


def test_memory_that_may_not_be_locked_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    done = child(["-c", RESTRICTED, "--json"])
    finding = by_name(done.returncode, done.stdout)["memlock"]
    assert finding["verdict"] == "degraded"
    assert "limit 0 bytes, no CAP_IPC_LOCK" in finding["found"]
    assert "1.0 MiB locked" not in finding["found"]
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    ours = told(capsys=capsys)["memlock"]["found"]
    said = "no limit" if limit == resource.RLIM_INFINITY else "limit "
    assert ours.startswith(said)


def test_without_packages_and_path() -> None:
    done = child(["-S", "-m", "keystow", "doctor", "--json"], env={"PYTHONPATH": str(PACKAGE)})
    findings = by_name(done.returncode, done.stdout)
    assert findings["torch"]["verdict"] == "degraded"
    assert findings["torch"]["found"].startswith("not installed")
    assert findings["buffers"]["verdict"] == "ok"
    assert "numpy not installed" in findings["buffers"]["found"]


def test_packages_are_told_by_their_versions(capsys: pytest.CaptureFixture[str]) -> None:
    findings = told(capsys=capsys)
    assert metadata.version("torch") in findings["torch"]["found"]
    assert metadata.version("numpy") in findings["buffers"]["found"]
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert findings["cuda"]["verdict"] == "degraded"
        assert "libcuda.so.1" in findings["cuda"]["found"]


def test_torch_and_the_driver_stay_outside() -> None:
    script = (
        "import sys; from keystow import doctor; doctor.examine();"
        "maps = open('/proc/self/maps').read();"
        "sys.exit('torch' in sys.modules or 'libcuda' in maps)"
    )
    assert child(["-c", script]).returncode == 0


def test_numbers_of_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = told(tmp_path, capsys=capsys)
    status = Path("/proc/self/status").read_text()
    flags = Path("/proc/cpuinfo").read_text()
    if os.uname().machine == "x86_64":
        for word, flag in (("AVX2", "avx2"), ("AVX-512", "avx512vl"), ("VAES", "vaes")):
            assert f"{word} {'yes' if f' {flag} ' in flags else 'no'}" in findings["cpu"]["found"]
    assert f" of {os.cpu_count()} cores" in findings["cpu"]["found"]
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))
    assert findings["numa"]["found"].startswith(f"{max(nodes, 1)} node")
    assert nodes <= 1 or status.partition("Mems_allowed_list:\t")[2].split()[0]
    free = next(
        int(line.split()[1]) >> 20
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    assert f"of {free}." in findings["ram"]["found"]
    there_is = os.statvfs(tmp_path)
    size = doctor_disk.size_text(there_is.f_blocks * there_is.f_frsize)
    assert f"of {size} free" in findings["disk"]["found"]
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    if "[never]" in huge:
        assert findings["huge-pages"]["verdict"] == "degraded"
    shared = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text()
    if "[never]" in shared or "[deny]" in shared:
        assert findings["shared-huge-pages"]["verdict"] == "degraded"
        assert findings["shared-huge-pages"]["found"].startswith("0 of 8 MiB")


@pytest.mark.parametrize(
    ("online", "probe", "verdict", "says"),
    [
        ("0", ("interleave:0", ["one node"]), "ok", "1 node (tried: interleave:0)"),
        ("0", ("", ["mbind refused"]), "ok", "1 node (mbind refused)"),
        ("0-1", ("interleave:0-1", []), "ok", "2 nodes (0-1), 2 of them allowed here (0-1)"),
        ("0-1", ("", ["mbind refused"]), "degraded", "(0-1); mbind refused"),
    ],
)
def test_memory_nodes(
    online: str, probe: Any, verdict: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"online": online, "status": f"Mems_allowed_list:\t{online}"}
    monkeypatch.setattr(doctor_machine, "_read", lambda path: files[path.name])
    monkeypatch.setattr(doctor_machine._core, "_probe_numa", lambda: probe)
    finding = doctor_machine.numa()
    assert finding.verdict == verdict
    assert says in finding.found


def test_numbers_of_a_list_of_the_kernel() -> None:
    assert doctor_machine._numbers("0-2,5") == {0, 1, 2, 5}
    assert doctor_machine._numbers("7") == {7}
    assert doctor_machine._numbers("") == set()


@pytest.mark.parametrize(
    ("limits", "verdict", "says"),
    [
        (("v2", (3 << 30, "memory.max of cgroup /a"), None), "ok", "/a leaves 3.0 GiB, no limit"),
        (("v2", (1 << 20, "memory.max of cgroup /a"), None), "degraded", "leaves 1.0 MiB"),
        (("v1", None, (500, "cpu.cfs_quota_us of cgroup /b")), "degraded", "v1, no limit on mem"),
        (("v1", None, (1500, "cpu.cfs_quota_us of cgroup /b")), "ok", "/b gives 1.50 of"),
        (("none", None, None), "ok", "no memory controller"),
    ],
)
def test_limits_of_cgroups(
    limits: Any, verdict: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_machine._core, "_cgroup_limits", lambda: limits)
    finding = doctor_machine.cgroup()
    assert finding.verdict == verdict
    assert says in finding.found


def test_one_look_that_fails_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> Finding:
        raise OSError(errno.EIO, "no /proc")

    monkeypatch.setattr(doctor_machine, "ram", gone)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert list(findings) == OF_MACHINE
    assert findings["ram"].verdict == "degraded"
    assert "no /proc" in findings["ram"].found


@pytest.mark.parametrize("columns", [1, 30, 40, 71, 72, 100, 200])
def test_the_text_fits_and_says_the_same(columns: int, tmp_path: Path) -> None:
    findings = [
        *doctor.examine(tmp_path),
        Finding("x", "degraded", "less.", "because it is so.", "do that."),
        Finding("y", "missing", "nothing at all.", "because.", "do the other."),
    ]
    text = doctor_command.described(findings, columns)
    for line in text.splitlines():
        assert len(line) <= max(columns, 30) or len(line.split()) <= 3, line
    said = " ".join(text.split())
    for finding in findings:
        assert f"{finding.verdict} {finding.name} {finding.found}" in said
        spoken = f"why: {finding.why} fix: {finding.fix}" in said
        assert spoken == (finding.verdict != "ok")
    assert text.endswith(" missing.")


def test_the_width_is_the_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    widest = {}
    for columns in (40, 160):
        monkeypatch.setenv("COLUMNS", str(columns))
        cli.main(["doctor"])
        widest[columns] = max(map(len, capsys.readouterr().out.splitlines()))
    assert 72 < widest[160] <= 160
    assert widest[40] < 72


def test_an_empty_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", ""])
    assert ended.value.code == 2
    assert "an empty path names nothing" in capsys.readouterr().err


def test_help_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "0 if all is ok, 1 if something is degraded, 2 if something is missing" in said
