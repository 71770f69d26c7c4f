"""`keystow verify` and `store.verify`: rotten bytes are found, exactly; a busy owner has none.

Method: bytes of real files are changed behind a store, closed or open; figures are compared with
the number of blocks changed.
"""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import keystow
from disk import (
    BLOCK_BYTES,
    PAGE_RECORDS,
    capacity_for,
    child,
    keys_of,
    member_folder,
    put,
    said,
    there,
)
from disk import open_store as open_slots
from keystow import cli, inspect_command
from keystow.inspection import verify
from model import raw_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SLOTS = 84
BLOCKS = 50
FIGURES = {
    "path",
    "blocks",
    "bytes",
    "good",
    "bad",
    "unreadable",
    "changed",
    "pages_unreadable",
    "failed",
    "sound",
    "seconds",
}


def open_store(root: Path, **options: Any) -> keystow.Store:
    return open_slots(root, capacity=capacity_for(SLOTS), **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one closed store of 50 blocks."""
    with open_store(tmp_path) as store:
        assert put(store, range(BLOCKS)) == BLOCKS
    return tmp_path


def rot(root: Path, numbers: Iterable[int]) -> None:
    """Flip a bit in the payload of each block, in the slot that its record names."""
    folder = member_folder(root)
    table = (folder / "table").read_bytes()
    payloads = bytearray((folder / "slots.0000").read_bytes())
    for number in numbers:
        page, at = divmod(table.index(raw_key(number)), 4096)
        slot = page * PAGE_RECORDS + (at - 64) // 96
        payloads[slot * BLOCK_BYTES + number % BLOCK_BYTES] ^= 0x40
    # In place: an open store has the file itself.
    with (folder / "slots.0000").open("r+b") as file:
        file.write(payloads)
        file.flush()
        os.fsync(file.fileno())


def told(root: Path, capsys: pytest.CaptureFixture[str], status: int = 0) -> dict[str, Any]:
    """What the command says as JSON."""
    assert cli.main(["verify", str(root), "--json"]) == status
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert figures.keys() == FIGURES
    assert figures["sound"] == (status == 0)
    return figures


def counts(figures: dict[str, Any]) -> list[int]:
    return [figures[name] for name in ("blocks", "good", "bad", "unreadable", "changed")]


def test_a_clean_directory_verifies(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = told(root, capsys)
    assert counts(figures) == [BLOCKS, BLOCKS, 0, 0, 0]
    assert figures["bytes"] == BLOCKS * BLOCK_BYTES
    assert cli.main(["verify", str(member_folder(root))]) == 0
    out = capsys.readouterr().out
    assert "50 blocks, 200.0 KiB in " in out
    assert "  50 good, 0 bad, 0 unreadable, 0 changed meanwhile, 0 table pages unreadable" in out


def test_flipped_bits_are_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rotten = [0, 7, 8, 41, 49]
    rot(root, rotten)
    assert counts(told(root, capsys, status=1)) == [BLOCKS, BLOCKS - 5, 5, 0, 0]
    assert cli.main(["verify", str(root)]) == 1
    assert "45 good, 5 bad" in capsys.readouterr().out
    # The store says the same: they are misses.
    with open_store(root) as store:
        assert there(store, range(BLOCKS)).keys() == set(range(BLOCKS)) - set(rotten)


def test_missing_parts_are_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = member_folder(root)
    with (folder / "slots.0000").open("r+b") as file:
        file.truncate(0)
    assert counts(told(root, capsys, status=1)) == [BLOCKS, 0, 0, BLOCKS, 0]
    with (folder / "table").open("r+b") as file:
        file.truncate(4096 + 100)
    figures = told(root, capsys, status=1)
    assert figures["pages_unreadable"] == 1
    assert figures["blocks"] < BLOCKS
    (folder / "SUPER").write_bytes(b"mine")
    figures = told(root, capsys, status=1)
    assert [failed["code"] for failed in figures["failed"]] == ["KS-FMT-002"]
    assert figures["failed"][0]["path"] == str(folder.resolve())


def test_nothing_to_verify_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, code in ((tmp_path, "KS-CFG-404"), (tmp_path / "absent", "KS-CFG-401")):
        assert cli.main(["verify", str(path)]) == 2
        assert code in capsys.readouterr().err


def test_a_busy_owner_has_no_bad_blocks(root: Path) -> None:
    script = """
store = open_store(sys.argv[1], capacity=capacity_for(84))
print("open", flush=True)
version = 0
while True:
    version += 1
    put(store, range(version * 20, version * 20 + 20), version)
"""
    with child(script, root) as owner:
        assert said(owner) == "open"
        time.sleep(0.5)
        changed, began_s = 0, time.monotonic()
        while not changed and time.monotonic() - began_s < 30:
            figures = verify(root, "500kB")
            assert (figures["bad"], figures["unreadable"], figures["failed"]) == (0, 0, [])
            changed = figures["changed"]
        assert changed, "nothing changed: this tests nothing"


def test_pace_progress_and_interruption(root: Path) -> None:
    heard: list[tuple[int, int]] = []
    began_s = time.monotonic()
    verify(root, BLOCKS * BLOCK_BYTES * 2, lambda done, total: heard.append((done, total)))
    assert time.monotonic() - began_s > 0.4
    assert len(heard) > 3
    assert heard == sorted(heard)
    assert heard[-1] == (BLOCKS, BLOCKS)

    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError((done, total))

    with pytest.raises(ZeroDivisionError):
        verify(root, "100kB", stop)
    with pytest.raises(keystow.ConfigError) as refused:
        verify(root, 0)
    assert refused.value.code == "KS-CFG-155"
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        verify(root, 1)
    timer.join()


def test_the_progress_line_is_for_terminals_and_for_what_takes_longer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    options = cli.parser().parse_args(["verify", str(root), "--bytes-per-s", "400kB"])
    quick, pipe, slow = Terminal(), io.StringIO(), Terminal()
    assert inspect_command.run_verify(options, out=io.StringIO(), progress_out=quick) == 0
    assert quick.getvalue() == ""
    monkeypatch.setattr(inspect_command, "PATIENCE_S", 0.1)
    assert inspect_command.run_verify(options, out=io.StringIO(), progress_out=pipe) == 0
    assert pipe.getvalue() == ""
    assert inspect_command.run_verify(options, out=io.StringIO(), progress_out=slow) == 0
    assert " of 50 blocks (" in slow.getvalue()
    assert slow.getvalue().endswith("\r\x1b[K")


def test_an_open_store_scrubs_itself(root: Path) -> None:
    with open_store(root, ram=64 * BLOCK_BYTES) as store:
        assert store.verify() == store.verify()
        found = store.verify()
        assert (found.blocks, found.bytes) == (BLOCKS, BLOCKS * BLOCK_BYTES)
        assert (found.bad, found.skipped, found.done) == (0, 0, True)
        assert repr(found) == "Scrubbed(blocks=50, bytes=204800, bad=0, skipped=0, done=True)"
        rot(root, [3, 49])
        found = store.verify()
        assert (found.blocks, found.bad, found.skipped) == (BLOCKS - 2, 2, 0)
        assert there(store, range(BLOCKS)).keys() == set(range(BLOCKS)) - {3, 49}
        assert store.stats().ssd_lost == 2
        # In RAM too now: the bad copies are written again.
        rot(root, [5, 6])
        assert store.verify().bad == 2
        assert store.flush() == 0
        found = store.verify()
        assert (found.blocks, found.bad) == (BLOCKS - 2, 0)
        assert there(store, [5, 6]).keys() == {5, 6}
        store._validate()


def test_a_scrub_keeps_its_pace_and_ends_in_time(root: Path) -> None:
    with open_store(root) as store:
        began_s = time.monotonic()
        found = store.verify(10 * BLOCK_BYTES, timeout_s=0.5)
        assert 0.4 < time.monotonic() - began_s < 5
        assert not found.done
        assert 3 <= found.blocks <= 7
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            store.verify(1)
        timer.join()
        with pytest.raises(keystow.ConfigError):
            store.verify(0)
        with pytest.raises(keystow.ConfigError):
            store.verify(timeout_s=-1)
        assert store.match_prefix(keys_of(range(BLOCKS))) == BLOCKS
    with pytest.raises(keystow.StoreClosedError):
        store.verify()
    with keystow.Store(block_bytes=4096, ram="1MiB") as store:
        assert store.verify().done


def test_a_scrub_beside_a_busy_store(root: Path) -> None:
    with open_store(root) as store:
        stop = threading.Event()

        def busy() -> None:
            version = 0
            while not stop.is_set():
                version += 1
                put(store, range(version * 20, version * 20 + 20), version)
                there(store, range(version * 20 - 20, version * 20), version + 1)

        threads = [threading.Thread(target=busy) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                found = store.verify()
                assert (found.bad, found.done) == (0, True)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert store.stats().ssd_bad_tags == 0
        store._validate()
