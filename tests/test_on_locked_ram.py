"""A store whose directory another one has begins in RAM, and takes the directory once it is free.

Method: owners in this process and in children that close or are killed, on real files; the store
that waits is used meanwhile, and everything of both must be there afterwards, and nothing that was
removed.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

import keystow
from disk import child, keys_of, member_folder, open_store, put, said, there

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

# A wait that takes longer has failed.
_WAIT_S = 60.0

OWNER = """
store = open_store(Path(sys.argv[1]))
put(store, range(40))
say(f"open {store.flush()}")
sys.stdin.readline()
say(f"closed {store.close().left}")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def until(store: keystow.Store, *states: str) -> keystow.Stats:
    """The stats once the tier is in one of these states."""
    end = time.monotonic() + _WAIT_S
    while (stats := store.stats()).ssd_state not in states:
        assert time.monotonic() < end, stats.ssd_state
        time.sleep(0.005)
    return stats


@pytest.mark.parametrize("killed", [False, True])
def test_blocks_of_the_owner_before_come_in_beside_our_own(
    root: Path, *, killed: bool, engine: str
) -> None:
    with child(OWNER, root) as owner:
        assert said(owner) == "open 0"
        store = open_store(root, on_locked="ram")
        stats = store.stats()
        assert (stats.ssd_state, stats.ssd_engine, stats.recovery_all) == ("waiting", "", 0)
        assert str(owner.pid) in stats.fallbacks[0]
        assert put(store, range(100, 110)) == 10
        assert len(there(store, range(100, 110))) == 10
        assert there(store, range(40)) == {}
        assert store.flush() == 10
        if killed:
            owner.send_signal(signal.SIGKILL)
        else:
            assert owner.stdin
            owner.stdin.write("\n")
            owner.stdin.flush()
            assert said(owner) == "closed 0"
        stats = until(store, "ok")
    assert (stats.recovered, stats.recovery_all, stats.ssd_engine) == (40, 40, engine)
    assert not [text for text in stats.fallbacks if "RAM only" in text]
    store._validate()
    assert len(there(store, [*range(40), *range(100, 110)])) == 50
    assert store.flush() == 0
    assert store.close().left == 0
    with open_store(root) as store:
        assert len(there(store, [*range(40), *range(100, 110)])) == 50


def test_a_store_of_this_process_is_followed_as_well(root: Path) -> None:
    first = open_store(root)
    put(first, range(10))
    with open_store(root, on_locked="ram") as second:
        assert "this process" in second.stats().fallbacks[0]
        put(second, range(20, 30))
        first.close()
        assert until(second, "ok").recovered == 10
        assert len(there(second, [*range(10), *range(20, 30)])) == 20
        with pytest.raises(keystow.StoreLockedError):
            open_store(root)


def test_a_free_directory_is_taken_at_once(root: Path) -> None:
    with open_store(root) as store:
        put(store, range(10))
    with open_store(root, on_locked="ram") as store:
        stats = store.stats()
        assert (stats.ssd_state, stats.recovered) == ("ok", 10)


def test_a_store_that_closes_while_it_waits_leaves_the_owner_alone(root: Path) -> None:
    with open_store(root) as owner:
        put(owner, range(10))
        waiting = open_store(root, on_locked="ram")
        put(waiting, range(50, 57))
        closed = waiting.close()
        assert (closed.written, closed.left) == (0, 7)
        forgotten = open_store(root, on_locked="ram")
        put(forgotten, range(50, 57))
        del forgotten
        assert put(owner, range(10, 20)) == 10
    with open_store(root) as store:
        assert sorted(there(store, [*range(20), *range(50, 57)])) == list(range(20))
    assert waiting.stats().state == "closed"


def test_what_was_removed_or_cleared_meanwhile_stays_gone(root: Path) -> None:
    owner = open_store(root)
    put(owner, range(10))
    owner.flush()
    with open_store(root, on_locked="ram") as store:
        put(store, range(20, 30))
        assert store.remove(keys_of([3, 4, 29]), durable=False) == 1
        with pytest.raises(keystow.SsdError, match="not taken yet") as caught:
            store.remove(keys_of([28, 5]))
        assert (caught.value.code, caught.value.context["removed"]) == ("KS-SSD-109", 1)
        owner.close()
        until(store, "ok")
        left = [*(n for n in range(10) if n not in {3, 4, 5}), *range(20, 28)]
        assert sorted(there(store, range(30))) == left
        store._validate()
    with open_store(root) as store:
        assert sorted(there(store, range(30))) == left
        waiting = open_store(root, on_locked="ram")
        put(waiting, range(40, 45))
        with pytest.raises(keystow.SsdError, match="not taken yet"):
            waiting.clear()
        put(waiting, range(50, 55))
    until(waiting, "ok")
    assert sorted(there(waiting, range(60))) == list(range(50, 55))
    waiting.close()
    with open_store(root) as store:
        assert sorted(there(store, range(60))) == list(range(50, 55))


def test_a_directory_that_is_deleted_is_made_anew(root: Path) -> None:
    with open_store(root) as owner:
        put(owner, range(10))
        owner.flush()
        store = open_store(root, on_locked="ram")
        put(store, range(20, 30))
        shutil.rmtree(root)
        assert until(store, "ok").recovered == 0
        assert store.close().left == 0
    with open_store(root) as again:
        assert sorted(there(again, range(30))) == list(range(20, 30))


def test_a_directory_that_cannot_be_read_leaves_the_store_in_ram(root: Path) -> None:
    with child(OWNER, root) as owner:
        assert said(owner) == "open 0"
        store = open_store(root, on_locked="ram")
        put(store, range(100, 110))
        (member_folder(root) / "SUPER").write_bytes(bytes([0xA5]) * 8192)
        owner.send_signal(signal.SIGKILL)
        stats = until(store, "off")
    assert stats.fallbacks[0].startswith("the SSD tier is off: ")
    assert len(there(store, range(100, 110))) == 10
    assert store.flush() == 10
    with pytest.raises(keystow.SsdError, match="could not be opened"):
        store.clear()
    assert put(store, range(200, 205)) == 5
    store._validate()
    assert store.close().left == 5
    # The directory is nobody's: who resets it has it.
    with open_store(root, on_mismatch="reset") as store:
        assert put(store, range(5)) == 5


@pytest.mark.parametrize("passes", [True, False])
def test_a_fault_of_the_open_is_tried_again_for_a_while(root: Path, *, passes: bool) -> None:
    with open_store(root) as owner:
        put(owner, range(10))
        with open_store(root, on_locked="ram") as store:
            put(store, range(20, 30))
            root.rename(root.with_name("aside"))
            root.write_bytes(b"no directory")
            if passes:
                time.sleep(0.3)
                root.unlink()
            assert until(store, "ok", "off").ssd_state == ("ok" if passes else "off")
            assert len(there(store, range(20, 30))) == 10
            assert store.flush() == (0 if passes else 10)


def test_a_waiting_store_that_took_over_is_killed(root: Path) -> None:
    """What it wrote after it had the directory is there, with what it found."""
    script = """
store = open_store(Path(sys.argv[1]), on_locked="ram")
put(store, range(100, 110))
store.remove(keys_of([7]), durable=False)
say(store.stats().ssd_state)
while store.stats().ssd_state != "ok":
    pass
say(f"{store.flush()} {store.remove(keys_of([8]))}")
sys.stdin.readline()
"""
    owner = open_store(root)
    put(owner, range(10))
    with child(script, root) as process:
        assert said(process) == "waiting"
        owner.close()
        assert said(process) == "0 1"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open_store(root) as store:
        found = sorted(there(store, [*range(10), *range(100, 110)]))
        assert found == [0, 1, 2, 3, 4, 5, 6, 9, *range(100, 110)]


def test_threads_use_the_store_while_it_takes_the_directory(root: Path) -> None:
    blocks = 4000
    owner = open_store(root, capacity="32MiB")
    for first in range(0, blocks, 8):
        put(owner, range(first, first + 8))
    assert owner.flush() == 0
    with open_store(root, capacity="32MiB", on_locked="ram") as store:
        stop = threading.Event()
        faults: list[BaseException] = []

        def work(thread: int) -> None:
            turn = 0
            try:
                while not stop.is_set():
                    turn += 1
                    first = (turn * 7 + thread * 1000) % blocks
                    there(store, range(first, first + 8))
                    put(store, range(blocks + first, blocks + first + 4))
                    store.remove(keys_of([first + 3]), durable=False)
            except BaseException as fault:  # noqa: BLE001 - it is raised below
                faults.append(fault)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(3)]
        for thread in threads:
            thread.start()
        owner.close()
        stats = until(store, "ok")
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert 0 < stats.recovered <= stats.recovery_all == blocks
        assert stats.lock_blocks_max <= 128
        store._validate()
        assert len(there(store, range(blocks))) > 0
