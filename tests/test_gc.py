"""`keystow gc`: what it lists, what it removes, and what it never touches.

Method: stores of two layouts under one root, some held by children or by this process; the command
line's own functions are called, and what is on disk afterwards is compared file by file.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

import keystow
from disk import (
    BLOCK_BYTES,
    LAYOUT,
    block,
    child,
    files_below,
    keys_of,
    member_folder,
    open_store,
    put,
    said,
    there,
)
from keystow import cli
from keystow.config import parse_duration

if TYPE_CHECKING:
    from pathlib import Path

OTHER = keystow.Layout.opaque("other", block_bytes=BLOCK_BYTES, block_tokens=1)
MINE, THEIRS = LAYOUT.fingerprint.hex(), OTHER.fingerprint.hex()
DAY_S = 86_400
FIELDS = {
    "path",
    "fingerprint",
    "member",
    "name",
    "half_removed",
    "locked",
    "bytes",
    "last_opened_unix_s",
    "error",
    "fate",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Members 0 and 1 of our layout, member 0 of another one; each with five blocks."""
    root = tmp_path / "kv"
    for layout, member in ((LAYOUT, "0"), (LAYOUT, "1"), (OTHER, "0")):
        with open_store(root, layout=layout, member=member, capacity="1MiB") as store:
            assert put(store, range(5)) == 5
    return root


def gc(root: Path, *arguments: str, status: int = 0) -> int:
    """Run the command."""
    found = cli.main(["gc", str(root), *arguments])
    assert found == status
    return found


def fates(
    capsys: pytest.CaptureFixture[str], root: Path, *arguments: str, status: int = 0
) -> dict[tuple[str, str], str]:
    """What the command says becomes of each directory, by layout and name."""
    capsys.readouterr()
    gc(root, "--json", *arguments, status=status)
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"root", "directories", "bytes_removed", "bytes_to_go"}
    assert all(it.keys() == FIELDS for it in told["directories"])
    names = {MINE: "mine", THEIRS: "theirs"}
    return {(names[it["fingerprint"]], it["name"]): it["fate"] for it in told["directories"]}


def aged(root: Path, days: float, member: str = "0", layout: keystow.Layout = LAYOUT) -> None:
    """As if a store had opened it last so long ago."""
    opened_s = time.time() - days * DAY_S
    os.utime(member_folder(root, member, layout) / "LOCK", (opened_s, opened_s))


def half_removed(root: Path, *names: str, member: str = "0") -> Path:
    """As a removal leaves it that was killed after so many files."""
    folder = member_folder(root, member)
    gone = folder.with_name(f"{member}~{folder.stat().st_ino:x}")
    folder.rename(gone)
    for name in names:
        (gone / name).unlink()
    return gone


def test_it_lists_and_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(root)
    gc(root, "--json")
    told = json.loads(capsys.readouterr().out)
    assert files_below(root) == before
    assert (told["root"], told["bytes_removed"]) == (str(root), 0)
    found = {(it["fingerprint"], it["member"]): it for it in told["directories"]}
    assert list(found) == sorted([(MINE, "0"), (MINE, "1"), (THEIRS, "0")])
    assert told["bytes_to_go"] == sum(it["bytes"] for it in told["directories"])
    for (fingerprint, member), it in found.items():
        folder = root / fingerprint / member
        assert (it["path"], it["name"]) == (str(folder), member)
        assert it["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        assert abs(time.time() - it["last_opened_unix_s"]) < DAY_S
        assert (it["locked"], it["half_removed"], it["error"]) == (False, False, None)
        assert it["fate"] == "to go"


def test_the_text_says_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(root, layout=OTHER, capacity="1MiB"):
        gc(root, "--keep", f"{MINE}/1")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[:3]}
    assert rows.keys() == {f"{MINE}/0", f"{MINE}/1", f"{THEIRS}/0"}
    assert rows[f"{MINE}/0"].endswith("to go")
    assert rows[f"{MINE}/1"].endswith("kept")
    assert rows[f"{THEIRS}/0"].endswith("in use")
    assert " UTC  " in rows[f"{MINE}/0"]
    size = sum(path.stat().st_size for path in member_folder(root).iterdir()) / 1024
    assert lines[3] == f"--remove would remove {size:.1f} KiB"
    gc(root, "--remove", "--all")
    assert capsys.readouterr().out.splitlines()[3].startswith("removed ")
    gc(root)
    assert capsys.readouterr().out == f"{root} holds no store.\n"


def test_remove_needs_a_choice(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(root)
    gc(root, "--remove", status=2)
    assert "KS-CFG-220" in capsys.readouterr().err
    assert files_below(root) == before


def test_all_that_is_free_goes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
store = open_store(sys.argv[1], member="1", capacity="1MiB")
say("open")
sys.stdin.readline()
say(f"{put(store, range(20))} {store.flush()} {len(there(store, range(20)))}")
"""
    with child(script, root) as holder:
        assert said(holder) == "open"
        found = fates(capsys, root, "--remove", "--all")
        assert found == {
            ("mine", "0"): "removed",
            ("mine", "1"): "in use",
            ("theirs", "0"): "removed",
        }
        assert [path.name for path in root.iterdir()] == [MINE]
        assert [path.name for path in (root / MINE).iterdir()] == ["1"]
        assert holder.stdin
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert said(holder) == "20 0 20"
    with open_store(root, member="1", capacity="1MiB") as store:
        assert len(there(store, range(20))) == 20
    with open_store(root) as store:
        assert there(store, range(5)) == {}


def test_a_store_of_this_process_keeps_its_lock(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store(root, capacity="1MiB") as store:
        for _ in range(2):
            assert fates(capsys, root, "--remove", "--all")["mine", "0"] == "in use"
        script = """
try:
    open_store(sys.argv[1], capacity="1MiB")
except keystow.StoreLockedError as error:
    say(error.code)
"""
        with child(script, root) as other:
            assert said(other) == "KS-LCK-001"
        assert put(store, range(9)) == 9
        assert len(there(store, range(9))) == 9


def test_keep(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {("mine", "0"): "kept", ("mine", "1"): "kept", ("theirs", "0"): "to go"}
    for digits in (MINE, MINE[:8], MINE[:8].upper()):
        assert fates(capsys, root, "--keep", digits) == kept
    both = fates(capsys, root, "--keep", MINE, "--keep", f"{THEIRS[:9]}/0")
    assert set(both.values()) == {"kept"}
    one = fates(capsys, root, "--keep", f"{MINE}/1", "--remove")
    assert one == {("mine", "0"): "removed", ("mine", "1"): "kept", ("theirs", "0"): "removed"}
    with open_store(root, member="1", capacity="1MiB") as store:
        assert len(there(store, range(5))) == 5


def test_a_keep_that_keeps_nothing_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gc(root, "--keep", f"{MINE}/7", "--keep", MINE)
    assert capsys.readouterr().err == f"keystow gc: --keep {MINE}/7: no such directory\n"


@pytest.mark.parametrize("digits", ["", "0123456", "0" * 33, "xyzw0123", "../..", "0123456é"])
def test_a_keep_that_is_none(root: Path, digits: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["gc", str(root), "--keep", digits])
    assert caught.value.code == 2


def test_older_than(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aged(root, 8)
    aged(root, 6, layout=OTHER)
    aged(root, -3, member="1")
    chosen = ("--older-than", "7d")
    expected = {("mine", "0"): "to go", ("mine", "1"): "kept", ("theirs", "0"): "kept"}
    assert fates(capsys, root, *chosen) == expected
    both = fates(capsys, root, "--older-than", "120h", "--keep", MINE, "--remove")
    assert both == {("mine", "0"): "kept", ("mine", "1"): "kept", ("theirs", "0"): "removed"}
    # What nobody ever opened is not old.
    (root / MINE / "empty").mkdir()
    assert fates(capsys, root, *chosen)["mine", "empty"] == "kept"
    (root / MINE / "empty").rmdir()
    # An open makes it young again; a look does not.
    keystow.open_readonly(member_folder(root)).close()
    assert fates(capsys, root, *chosen)["mine", "0"] == "to go"
    open_store(root, capacity="1MiB").close()
    assert fates(capsys, root, *chosen, "--remove")["mine", "0"] == "kept"


def test_times() -> None:
    units = ("s", "min", "h", "d")
    for text, seconds in (("7d", 7 * DAY_S), ("1.5h", 5400), ("30 min", 1800), ("90s", 90)):
        assert parse_duration(text, units) == seconds
    for text in ("7", "d", "7w", "-1d", "0d", "1e3s", "7D", "5ms"):
        assert parse_duration(text, units) is None
        with pytest.raises(SystemExit) as caught:
            cli.main(["gc", "/", "--older-than", text])
        assert caught.value.code == 2


def test_what_is_not_a_stores_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (member_folder(root) / "notes.txt").write_text("mine")
    (member_folder(root, "1") / "SUPER").unlink()
    (root / "0123").mkdir()
    (root / "0123" / "precious").write_text("mine")
    (root / THEIRS / "files").mkdir()
    (root / THEIRS / "files" / "precious").write_text("mine")
    (root / THEIRS / "two words").mkdir()
    before = files_below(root)
    found = fates(capsys, root, "--remove", "--all", status=1)
    assert found == {
        ("mine", "0"): "stays",
        ("mine", "1"): "stays",
        ("theirs", "0"): "removed",
        ("theirs", "files"): "stays",
    }
    gone = f"{THEIRS}/0"
    assert files_below(root) == {k: v for k, v in before.items() if not k.startswith(gone)}
    gc(root, "--remove", "--all", status=1)
    text = capsys.readouterr().out
    assert text.count("[KS-SSD-004]: ") == 2
    assert text.count("[KS-SSD-005]: ") == 1
    assert "notes.txt" in text
    # To list them is no fault; nor is what nobody chose.
    assert set(fates(capsys, root).values()) == {"stays"}
    gc(root, "--remove", "--keep", MINE, "--keep", THEIRS)


def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    member_folder(root).rename(elsewhere)
    member_folder(root).symlink_to(elsewhere)
    before = files_below(elsewhere)
    gc(root, "--remove", "--all")
    assert files_below(elsewhere) == before
    assert member_folder(root).is_symlink()


@pytest.mark.parametrize(
    "files",
    [
        (),
        ("table",),
        ("table", "slots.0000"),
        ("table", "slots.0000", "layout.json", "SUPER"),
        ("table", "slots.0000", "layout.json", "SUPER", "LOCK"),
    ],
    ids=len,
)
def test_a_removal_that_was_killed(
    root: Path, capsys: pytest.CaptureFixture[str], files: tuple[str, ...]
) -> None:
    rest = half_removed(root, *files)
    assert fates(capsys, root)["mine", rest.name] == "to go"
    gc(root)
    assert f"{MINE}/0 " in (text := capsys.readouterr().out)
    assert "half removed" in text
    # An open neither uses it nor minds it; no look takes it for a store.
    with open_store(root, capacity="1MiB") as store:
        assert there(store, range(5)) == {}
        assert put(store, range(7)) == 7
        assert rest.exists()
    assert cli.main(["inspect", str(root), "--json"]) == 0
    members = json.loads(capsys.readouterr().out)["members"]
    assert {(it["fingerprint"], it["member"]) for it in members} == {
        (MINE, "0"),
        (MINE, "1"),
        (THEIRS, "0"),
    }
    # Whatever is chosen, the rest goes; the new store of that name is another.
    found = fates(capsys, root, "--remove", "--keep", MINE, "--keep", THEIRS)
    assert found.pop(("mine", rest.name)) == "removed"
    assert set(found.values()) == {"kept"}
    assert not rest.exists()
    with open_store(root, capacity="1MiB") as store:
        assert len(there(store, range(7))) == 7


def test_a_view_of_what_is_removed_gives_right_bytes_or_none(root: Path) -> None:
    with keystow.open_readonly(member_folder(root)) as view:
        gc(root, "--remove", "--all")
        out = bytearray(5 * BLOCK_BYTES)
        got = view.get(keys_of(range(5)), out)
        assert out[: got * BLOCK_BYTES] == b"".join(block(number) for number in range(got))


def test_stores_that_open_while_their_directories_are_removed(root: Path) -> None:
    """Each gets a whole directory or is told that it is held."""
    script = """
from keystow import cli
say("ready")
while not sys.stdin.closed:
    cli.main(["gc", sys.argv[1], "--remove", "--all", "--json"])
"""
    with child(script, root) as remover:
        assert said(remover) == "ready"
        opened = 0
        for number in range(50):
            try:
                with open_store(root, capacity="1MiB") as store:
                    opened += 1
                    assert put(store, [number]) == 1
                    assert store.flush() == 0
                    assert (member_folder(root) / "SUPER").exists()
            except keystow.StoreLockedError:
                continue
        assert opened > 0


def test_no_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    for name, code in (("absent", "KS-CFG-401"), ("file", "KS-CFG-402")):
        gc(tmp_path / name, status=2)
        assert code in capsys.readouterr().err
    assert fates(capsys, tmp_path) == {}


def test_json_of_a_refusal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (member_folder(root) / "SUPER").write_bytes(b"x" * 8192)
    capsys.readouterr()
    gc(root, "--json", "--remove", "--all", status=1)
    told: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["directories"]
    [stays] = [it for it in told if it["fate"] == "stays"]
    assert stays["error"].keys() == {"code", "message", "hint"}
    assert stays["error"]["code"] == "KS-FMT-002"
