"""What `ssd=` refuses, with which error, and that it leaves everything as it was.

Method: one case a mistake: values that can't be meant, directories that can't be used, disks
without room, other owners. Each error has its code, its numbers and a way out; what was on disk
before is there after it, and nothing else.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import keystow
from disk import BLOCK_BYTES, LAYOUT, capacity_for, files_below, open_store, put, there

AS_ROOT = os.geteuid() == 0
NOBODY = 65534
SIM = {"engine": "sim", "path": "", "capacity": "1MiB"}


@pytest.mark.parametrize(
    ("ssd", "code", "says"),
    [
        ("/nvme/kv", "KS-CFG-214", "how much room"),
        ("/nvme/kv:", "KS-CFG-214", "after the last colon"),
        ("/nvme/kv:many", "KS-CFG-214", "'many'"),
        ("/nvme:1GiB/kv", "KS-CFG-214", "'1GiB/kv'"),
        (":1GiB", "KS-CFG-214", "names no directory"),
        ("", "KS-CFG-214", "how much room"),
        (b"/nvme/kv:1GiB", "KS-CFG-214", "bytes"),
        (Path("/nvme/kv"), "KS-CFG-214", "no device"),
        (1 << 30, "KS-CFG-214", "int"),
        ({"path": "/nvme/kv"}, "KS-CFG-214", "dict"),
        ([["/nvme/a:1GiB"]], "KS-CFG-214", "list"),
    ],
    ids=str,
)
def test_no_device(ssd: Any, code: str, says: str) -> None:
    with pytest.raises(keystow.ConfigError, match=re.escape(says)) as caught:
        keystow.Store(LAYOUT, ram="1MiB", ssd=ssd)
    assert caught.value.code == code
    assert caught.value.hint
    assert caught.value.context


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"capacity": "1 potato"}, "KS-CFG-202", "capacity='1 potato'"),
        ({"capacity": -1}, "KS-CFG-202", "capacity=-1"),
        ({"capacity": None}, "KS-CFG-202", "capacity=None"),
        ({"path": None}, "KS-CFG-214", "NoneType"),
        ({"path": 7}, "KS-CFG-214", "int"),
        ({"path": ""}, "KS-CFG-214", "empty"),
        ({"engine": "urin"}, "KS-CFG-204", "Did you mean 'uring'?"),
        ({"engine": "pol"}, "KS-CFG-204", "Did you mean 'pool'?"),
        ({"engine": None}, "KS-CFG-204", "engine=None"),
        ({"engine": "sim"}, "KS-CFG-215", "no path"),
        ({"seed": -1}, "KS-CFG-217", "seed=-1"),
        ({"seed": 1 << 64}, "KS-CFG-217", "seed=18446744073709551616"),
        ({"seed": True}, "KS-CFG-217", "seed=True"),
        ({"member": 0}, "KS-CFG-218", "member=0"),
        ({"write_bytes_per_s": 0}, "KS-CFG-216", "write_bytes_per_s=0"),
        ({"write_bytes_per_s": "fast"}, "KS-CFG-202", "write_bytes_per_s='fast'"),
        ({"dwpd": 0}, "KS-CFG-216", "dwpd=0"),
        ({"dwpd": float("nan")}, "KS-CFG-216", "dwpd=nan"),
        ({"dwpd": float("inf")}, "KS-CFG-216", "dwpd=inf"),
        ({"dwpd": "1"}, "KS-CFG-216", "dwpd='1'"),
        ({"dwpd": 1.0, "write_bytes_per_s": "1MB"}, "KS-CFG-216", "twice"),
        ({"on_mismatch": "rest"}, "KS-CFG-204", "Did you mean 'reset'?"),
        ({"follow": "/nvme/other"}, "KS-CFG-222", "follow='/nvme/other' is unknown"),
        ({"follow": []}, "KS-CFG-222", "names no directory"),
        ({"follow": ["/nvme/other", 7]}, "KS-CFG-222", "7 is no path"),
        ({"follow": [""]}, "KS-CFG-222", "'' is no path"),
        ({"follow": 1}, "KS-CFG-222", "follow=1"),
        ({"path": "", "engine": "sim", "follow": "siblings"}, "KS-CFG-222", "sim"),
        ({"replicated": True}, "KS-CFG-223", "without follow="),
        ({"follow": "siblings", "replicated": "yes"}, "KS-CFG-223", "replicated='yes'"),
        ({"on_locked": "wait"}, "KS-CFG-219", "on_locked='wait'"),
        ({"on_locked": "rm"}, "KS-CFG-219", "on_locked='rm'"),
        ({"reclaim": "always"}, "KS-CFG-204", "reclaim='always'"),
        ({"reclaim": "unlock"}, "KS-CFG-204", "Did you mean 'unlocked'?"),
        ({"encryption": b"key"}, "KS-CFG-207", "encryption="),
        ({"writebytes_per_s": 1}, "KS-CFG-201", "Did you mean 'write_bytes_per_s'?"),
    ],
    ids=str,
)
def test_no_such_option_of_a_device(options: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(keystow.ConfigError, match=re.escape(says)) as caught:
        keystow.Ssd(**{"path": "/nvme/kv", "capacity": "1GiB", **options})
    assert caught.value.code == code
    assert caught.value.hint


def test_a_device_is_a_plain_value() -> None:
    device = keystow.Ssd(Path("/nvme/kv"), "1GiB", dwpd=0.5, member="rank-3")
    assert (device.path, device.capacity, device.member) == ("/nvme/kv", 1 << 30, "rank-3")
    assert device.budget_bytes_per_s == round((1 << 30) * 0.5 / 86400)
    assert keystow.Ssd("/nvme/kv", 1, dwpd=1e-9).budget_bytes_per_s == 1
    assert keystow.Ssd("/nvme/kv", 1, write_bytes_per_s="2MB").budget_bytes_per_s == 2_000_000
    assert keystow.Ssd("/nvme/kv", 1).budget_bytes_per_s is None
    assert pickle.loads(pickle.dumps(device)) == device  # noqa: S301 - our own bytes
    assert dataclasses.replace(device, capacity="2GiB").capacity == 2 << 30
    with pytest.raises(dataclasses.FrozenInstanceError):
        device.capacity = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "KS-CFG-004"),
        ({"deterministic": True}, "KS-CFG-004"),
        ({"deterministic": True, "clock": "manual", "io_timeout_s": 0}, "KS-CFG-203"),
        ({"deterministic": True, "clock": "manual", "ram": None}, "KS-CFG-205"),
    ],
    ids=str,
)
def test_no_such_store_on_a_simulated_disk(options: dict[str, Any], code: str) -> None:
    with pytest.raises(keystow.ConfigError) as caught:
        keystow.Store(**{"layout": LAYOUT, "ram": "1MiB", "ssd": keystow.Ssd(**SIM), **options})
    assert caught.value.code == code


def test_a_real_disk_needs_a_real_clock(tmp_path: Path) -> None:
    with pytest.raises(keystow.ConfigError) as caught:
        open_store(tmp_path, deterministic=True, clock="manual")
    assert caught.value.code == "KS-CFG-004"
    assert not files_below(tmp_path)


def test_only_a_simulated_disk_can_be_crashed(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv") as store:
        with pytest.raises(keystow.ConfigError, match="simulated"):
            store._crash(1)
        assert put(store, range(3)) == 3


@pytest.mark.parametrize("form", ["text", "list", "tuple", "Ssd", "Ssd in a list", "PathLike"])
def test_forms_of_one_device(tmp_path: Path, form: str) -> None:
    root = tmp_path / "a:b" / "kv"
    root.parent.mkdir()
    ssd: Any = {
        "text": f"{root}:1MiB",
        "list": [f"{root}:1MiB"],
        "tuple": (f"{root}:1MiB",),
        "Ssd": keystow.Ssd(str(root), "1MiB"),
        "Ssd in a list": [keystow.Ssd(str(root), 1 << 20)],
        "PathLike": keystow.Ssd(root, 1 << 20),
    }[form]
    with keystow.Store(LAYOUT, ram=0, ssd=ssd) as store:
        assert put(store, range(20)) == 20
        assert len(there(store, range(20))) == 20
        assert store.stats().frames_total == 0
    assert sum(length for length in files_below(root).values() if length > 0) <= 1 << 20


def test_an_empty_list_is_no_device() -> None:
    assert keystow.Store(LAYOUT, ram="64KiB", ssd=[]).stats().ssd_state == ""


# Directories and disks


def refused(root: Path, kind: type[keystow.KeystowError], code: str, **options: Any) -> Any:
    """Try to open; the error, after a look that nothing has changed."""
    above = root.parent
    before = files_below(above)
    begun = time.monotonic()
    with pytest.raises(kind) as caught:
        open_store(root, **options)
    assert time.monotonic() - begun < 5
    assert caught.value.code == code
    assert caught.value.hint
    assert files_below(above) == before
    return caught.value


def test_the_path_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "kv"
    root.write_text("precious")
    refused(root, keystow.ConfigError, "KS-CFG-302")
    assert root.read_text() == "precious"


def test_the_directory_above_is_missing(tmp_path: Path) -> None:
    error = refused(tmp_path / "typo" / "kv", keystow.ConfigError, "KS-CFG-303")
    assert "typo" in str(error)


def test_a_path_that_no_system_takes(tmp_path: Path) -> None:
    refused(tmp_path / ("n" * 300), keystow.SsdError, "KS-SSD-001")
    refused(tmp_path / "a\0b", keystow.SsdError, "KS-SSD-001")


@pytest.mark.skipif(AS_ROOT, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    root = tmp_path / "kv"
    root.mkdir(mode=0o500)
    error = refused(root, keystow.SsdError, "KS-SSD-001")
    assert error.context["errno"] == errno.EACCES


@pytest.mark.skipif(not AS_ROOT, reason="only root gives directories away")
@pytest.mark.parametrize("depth", [0, 1])
def test_somebody_elses_directory(tmp_path: Path, depth: int) -> None:
    root = tmp_path / "kv"
    with open_store(root) as store:
        put(store, range(3))
    theirs = root / LAYOUT.fingerprint.hex()
    os.chown(theirs / "0" if depth else theirs, NOBODY, NOBODY)
    error = refused(root, keystow.SsdError, "KS-SSD-003")
    assert error.context["owner"] == NOBODY


@pytest.mark.parametrize("capacity", [0, 1, capacity_for(1) - 1])
def test_room_for_no_block(tmp_path: Path, capacity: int) -> None:
    error = refused(tmp_path / "kv", keystow.ConfigError, "KS-CFG-305", capacity=capacity)
    assert error.context == {"capacity_bytes": capacity, "least_bytes": capacity_for(1)}


def test_room_for_one_block(tmp_path: Path) -> None:
    with open_store(tmp_path / "kv", capacity=capacity_for(1), ram=0) as store:
        assert store.stats().ssd_slots_total == 1
        assert put(store, [1]) == 1
        assert there(store, [1]) == {1: 0}


@pytest.mark.parametrize("place", ["tmp_path", "/dev/shm"])  # noqa: S108 - a disk that is RAM
def test_more_than_the_disk_has(tmp_path: Path, place: str) -> None:
    above = tmp_path if place == "tmp_path" else Path(place) / f"keystow-{os.getpid()}"
    above.mkdir(exist_ok=True)
    try:
        # Root may have what is set aside for it.
        disk = os.statvfs(above)
        free = disk.f_frsize * (disk.f_bfree if AS_ROOT else disk.f_bavail)
        wanted = free + (64 << 20)
        error = refused(above / "kv", keystow.SsdError, "KS-SSD-002", capacity=wanted)
        assert wanted - (1 << 20) < error.context["needed_bytes"] <= wanted
        assert error.context["free_bytes"] < error.context["needed_bytes"]
    finally:
        if above != tmp_path:
            shutil.rmtree(above)


def test_more_than_any_disk_has(tmp_path: Path) -> None:
    refused(tmp_path / "kv", keystow.SsdError, "KS-SSD-002", capacity=1 << 60)


@pytest.mark.parametrize("member", ["", ".", "..", "a/b", "m" * 65, "é", "a\0b"])
def test_a_member_that_is_no_name(tmp_path: Path, member: str) -> None:
    refused(tmp_path / "kv", keystow.ConfigError, "KS-CFG-304", member=member)


@pytest.mark.parametrize("where", ["fingerprint", "member"])
def test_a_link_below_the_root(tmp_path: Path, where: str) -> None:
    root, elsewhere = tmp_path / "kv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = root / LAYOUT.fingerprint.hex()
    if where == "member":
        link.mkdir(parents=True, mode=0o700)
        link /= "0"
    else:
        root.mkdir()
    link.symlink_to(elsewhere)
    refused(root, keystow.SsdError, "KS-SSD-001")
    assert not list(elsewhere.iterdir())


def test_modes(tmp_path: Path) -> None:
    root = tmp_path / "kv"
    with open_store(root):
        for path in [root, *root.rglob("*")]:
            mode = path.lstat().st_mode & 0o777
            assert mode == (0o700 if path.is_dir() else 0o600), path


def test_the_whole_is_within_the_capacity(tmp_path: Path) -> None:
    for blocks in (1, 41, 42, 43, 85, 1000):
        capacity = capacity_for(blocks)
        for ask in (capacity, capacity + BLOCK_BYTES - 1):
            root = tmp_path / f"{ask}"
            with open_store(root, capacity=ask) as store:
                assert store.stats().ssd_slots_total == blocks
                put(store, range(30))
            assert sum(n for n in files_below(root).values() if n > 0) <= ask
