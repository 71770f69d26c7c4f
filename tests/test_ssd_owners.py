"""One owner at a time: another store, another process and a fork are kept out, a dead owner is not.

Method: stores under a temporary directory in this process, in children that are killed, and in
forks that outlive their parent; the next owner must find every block that was flushed.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

import keystow
from disk import BLOCK_BYTES, child, files_below, open_store, put, said, there

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def test_a_second_store_of_this_process_is_refused(root: Path) -> None:
    with open_store(root) as store:
        put(store, range(3))
        before = files_below(root)
        for _ in range(3):
            with pytest.raises(keystow.StoreLockedError, match="this process") as caught:
                open_store(root)
            assert caught.value.code == "KS-LCK-001"
            assert caught.value.hint
        assert files_below(root) == before
        with open_store(root, member="1") as other:
            assert there(other, range(3)) == {}
        assert put(store, range(9)) == 9
    with open_store(root) as store:
        assert len(there(store, range(9))) == 9


def test_a_store_of_another_process_is_refused(root: Path) -> None:
    script = """
store = open_store(Path(sys.argv[1]))
put(store, range(5))
say(f"open {store.flush()}")
sys.stdin.readline()
"""
    with child(script, root) as process:
        assert said(process) == "open 0"
        with pytest.raises(keystow.StoreLockedError) as caught:
            open_store(root)
        assert caught.value.context["pid"] == process.pid
        assert str(process.pid) in str(caught.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open_store(root) as store:
            assert len(there(store, range(5))) == 5


def test_a_forked_child_neither_uses_nor_holds_the_directory(root: Path) -> None:
    script = """
import os, time
store = open_store(Path(sys.argv[1]))
put(store, range(30))
store.flush()
parent = os.getpid()
if os.fork() == 0:
    try:
        put(store, [1])
        say("no error")
    except keystow.StoreClosedError as error:
        say(f"{os.getpid()} {error.code} {store.stats().state}")
    while os.getppid() == parent: time.sleep(0.01)
    say("orphan")
    sys.stdin.readline()
    os._exit(0)
put(store, range(30, 60))
say(f"left {store.flush()}")
time.sleep(60)
"""
    with child(script, root) as process:
        first, second = sorted([said(process), said(process)])
        orphan, code, state = first.split()
        assert (code, state, second) == ("KS-CLO-002", "closed", "left 0")
        try:
            process.send_signal(signal.SIGKILL)
            assert said(process) == "orphan"
            with open_store(root) as store:
                assert len(there(store, range(60))) == 60
                os.kill(int(orphan), 0)
        finally:
            os.kill(int(orphan), signal.SIGKILL)


def test_a_fork_while_the_store_works(root: Path) -> None:
    """A child that ends in every way a process may does nothing to its parent's store."""
    with open_store(root, ram=32 * BLOCK_BYTES) as store:
        stop = threading.Event()

        def work() -> None:
            for start in range(0, 4000, 20):
                put(store, range(start, start + 20))
                if stop.is_set():
                    return

        thread = threading.Thread(target=work)
        thread.start()
        for way in range(4):
            pid = os.fork()
            if pid == 0:
                if way == 1:
                    store.close()
                elif way == 2:
                    del store
                elif way == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(0)
            status = os.waitpid(pid, 0)[1]
            assert status == (signal.SIGKILL if way == 3 else 0)
        stop.set()
        thread.join()
        assert put(store, range(5000, 5040)) == 40
        assert len(there(store, range(5000, 5040))) == 40
        store._validate()
