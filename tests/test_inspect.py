"""`keystow inspect`: what it says of directories in use, broken, foreign or empty.

Method: small stores under a temporary directory, looked into by the command line's own functions
and by a process of its own; what is told is compared with what was put.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

import keystow
from disk import BLOCK_BYTES, LAYOUT, capacity_for, child, files_below, member_folder, put, said
from disk import open_store as open_slots
from keystow import cli

if TYPE_CHECKING:
    from pathlib import Path

SLOTS = 84
KEYS = {
    "path",
    "fingerprint",
    "member",
    "locked",
    "bytes",
    "error",
    "contents",
}
CONTENTS = {
    "format_version",
    "layout",
    "block_bytes",
    "stride_bytes",
    "slots",
    "slots_used",
    "live",
    "live_bytes",
    "chains",
    "orphans",
    "stale",
    "insane",
    "losers",
    "cycles",
    "epoch",
    "clear_epoch",
    "clean",
    "pages",
    "pages_unreadable",
    "oldest_use_unix_s",
    "newest_use_unix_s",
    "warnings",
}


def open_store(root: Path, **options: Any) -> keystow.Store:
    return open_slots(root, capacity=capacity_for(SLOTS), **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one closed store: a chain of 10 and one of 5."""
    with open_store(tmp_path) as store:
        assert put(store, range(10)) == 10
        assert put(store, range(10, 15)) == 5
    return tmp_path


def told(path: Path, capsys: pytest.CaptureFixture[str], status: int = 0) -> list[dict[str, Any]]:
    """What the command says as JSON."""
    assert cli.main(["inspect", str(path), "--json"]) == status
    said = json.loads(capsys.readouterr().out)
    assert said.keys() == {"path", "members"}
    assert said["path"] == str(path)
    assert all(member.keys() == KEYS for member in said["members"])
    members: list[dict[str, Any]] = said["members"]
    return members


def test_a_closed_store(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [member] = told(root, capsys)
    assert member["path"] == str(member_folder(root).resolve())
    assert (member["fingerprint"], member["member"]) == (LAYOUT.fingerprint.hex(), "0")
    assert (member["locked"], member["error"]) == (False, None)
    assert member["bytes"] == sum(max(size, 0) for size in files_below(root).values())
    contents = member["contents"]
    assert contents.keys() == CONTENTS
    assert (contents["live"], contents["live_bytes"]) == (15, 15 * BLOCK_BYTES)
    assert (contents["chains"], contents["slots"], contents["slots_used"]) == (2, SLOTS, 15)
    assert (contents["layout"], contents["clean"]) == (LAYOUT.describe(), True)
    for use in (contents["oldest_use_unix_s"], contents["newest_use_unix_s"]):
        assert use is None or time.time() - 200 < use <= time.time()


def test_the_text_says_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = sum(max(size, 0) for size in files_below(root).values()) / 1024
    assert lines[0] == f"{member_folder(root).resolve()}: {size:.1f} KiB on disk"
    words = [line.split() for line in lines[1:]]
    assert [word[0] for word in words] == [
        "layout",
        "format",
        "slots",
        "blocks",
        "void",
        "last",
        "pages",
    ]
    assert "closed in order" in lines[2]
    assert "15 of 84 used, 4,096 bytes each, blocks up to 4,096" in lines[3]
    assert "15 live (60.0 KiB), 2 begin a chain, 0 lack their parent, 0 circles cut" in lines[4]
    assert lines[7].split() == ["pages", "2,", "0", "unreadable"]


def test_a_store_in_use_stays_locked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(root) as store:
        for _ in range(2):
            [member] = told(root, capsys)
            assert member["locked"]
            assert member["contents"]["live"] == 15
        # Looking into it here must not have dropped this process's lock.
        script = """
try:
    open_store(sys.argv[1], capacity=capacity_for(84))
except keystow.StoreLockedError as error:
    print(error.code, flush=True)
"""
        with child(script, root) as other:
            assert said(other) == "KS-LCK-001"
        assert put(store, range(20, 25)) == 5
    [member] = told(root, capsys)
    assert not member["locked"]
    assert member["contents"]["live"] == 20


def test_another_process_sees_it_in_use(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
store = open_store(sys.argv[1], capacity=capacity_for(84))
put(store, range(100, 103))
print(store.flush(), flush=True)
sys.stdin.read()
"""
    with child(script, root) as owner:
        assert said(owner) == "0"
        [member] = told(root, capsys)
        assert member["locked"]
        assert member["contents"]["live"] == 18
        assert not member["contents"]["clean"]
    [member] = told(root, capsys)
    assert (member["locked"], member["contents"]["clean"]) == (False, False)


def test_nothing_is_changed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def times() -> dict[str, int]:
        return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}

    before = (files_below(root), times())
    told(root, capsys)
    told(member_folder(root), capsys)
    assert (files_below(root), times()) == before


def test_broken_members_are_told_beside_the_others(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store(root, member="second") as store:
        put(store, range(3))
    (member_folder(root, "second") / "SUPER").write_bytes(b"mine")
    first, second = told(root, capsys, status=1)
    assert first["contents"]["live"] == 15
    assert second["contents"] is None
    assert second["error"]["code"] == "KS-FMT-002"
    assert second["error"].keys() == {"code", "message", "hint"}
    assert cli.main(["inspect", str(root)]) == 1
    assert "[KS-FMT-002]: " in capsys.readouterr().out


def test_a_rotten_page_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = member_folder(root) / "table"
    rotten = bytearray(table.read_bytes())
    rotten[100] ^= 1
    table.write_bytes(rotten)
    [member] = told(root, capsys, status=1)
    assert (member["contents"]["pages_unreadable"], member["contents"]["live"]) == (1, 0)


def test_an_empty_root_and_no_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(tmp_path, capsys) == []
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path} holds no store.\n"
    (tmp_path / "notes.txt").write_text("mine")
    assert told(tmp_path, capsys) == []
    for path, code in ((tmp_path / "absent", "KS-CFG-401"), (tmp_path / "notes.txt", "KS-CFG-402")):
        assert cli.main(["inspect", str(path)]) == 2
        assert code in capsys.readouterr().err
