"""`on_locked="wait:..."`: a directory that somebody has is waited for, so long and no longer.

Method: children of this interpreter hold a directory and give it up, are killed, or keep it; the
log tells who waits for whom. No test depends on how long anything takes: what must happen is
arranged by what the log says, and what must not by times that are far apart.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

import keystow
from disk import child, files_below, open_store, put, said, there

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

HOLDER = """
store = open_store(Path(sys.argv[1]))
put(store, range(5))
say(f"open {store.flush()}")
sys.stdin.readline()
store.close()
say("closed")
sys.stdin.readline()
"""
WAITER = """
import logging, signal
# Whoever started these tests in the background made it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Tell(logging.Handler):
    def emit(self, record): say(record.getMessage())
logging.getLogger("keystow").addHandler(Tell())
say("ready")
try:
    store = open_store(Path(sys.argv[1]), on_locked=sys.argv[2])
    say("open")
except KeyboardInterrupt:
    say("interrupted")
except keystow.StoreLockedError as error:
    say(error.code)
"""


class OnLog(logging.Handler):
    """Does something at the first line of the log that has a word."""

    def __init__(self, word: str, act: Callable[[], object]) -> None:
        super().__init__()
        self.word, self.act, self.lines = word, act, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if self.word in line and not any(self.word in before for before in self.lines):
            self.act()
        self.lines.append(line)

    def __enter__(self) -> Self:
        logger = logging.getLogger("keystow")
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("keystow").removeHandler(self)

    def about_waiting(self) -> list[str]:
        return [line for line in self.lines if "ait" in line]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    """Let a child go on."""
    assert process.stdin
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def sleeps(process: subprocess.Popen[str], times: int) -> None:
    """Wait until a child has slept so often: it has left what it did before."""

    def slept() -> int:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    enough = slept() + times
    while slept() < enough:
        time.sleep(0.01)


def test_it_opens_when_the_owner_closes(root: Path) -> None:
    with child(HOLDER, root) as holder:
        assert said(holder) == "open 0"
        with (
            OnLog("Waiting", lambda: tell(holder)) as log,
            open_store(root, on_locked="wait:60s") as store,
        ):
            assert len(there(store, range(5))) == 5
            assert put(store, range(9)) == 9
        assert said(holder) == "closed"
        begins, ends = log.about_waiting()
        assert f"process {holder.pid}" in begins
        assert "60 s at most" in begins
        assert str(root) in begins
        assert str(root) in ends
        assert "free after" in ends


def test_it_opens_when_the_owner_is_killed(root: Path) -> None:
    with child(HOLDER, root) as holder:
        assert said(holder) == "open 0"
        with (
            OnLog("Waiting", lambda: holder.send_signal(signal.SIGKILL)) as log,
            open_store(root, on_locked="wait:1min") as store,
        ):
            assert len(there(store, range(5))) == 5
        assert len(log.about_waiting()) == 2


def test_a_store_of_this_process_is_waited_for_too(root: Path) -> None:
    store = open_store(root)
    put(store, range(5))

    def close() -> None:
        threading.Thread(target=store.close).start()

    with (
        OnLog("Waiting", close) as log,
        open_store(root, on_locked="wait:60000ms") as again,
    ):
        assert len(there(again, range(5))) == 5
    assert "this process" in log.about_waiting()[0]


def test_the_time_is_up(root: Path) -> None:
    with child(HOLDER, root) as holder:
        assert said(holder) == "open 0"
        before = files_below(root)
        begun = time.monotonic()
        with (
            OnLog("Waiting", lambda: None) as log,
            pytest.raises(keystow.StoreLockedError) as caught,
        ):
            open_store(root, on_locked="wait:300ms")
        waited_s = time.monotonic() - begun
        assert caught.value.code == "KS-LCK-001"
        assert caught.value.context["pid"] == holder.pid
        assert 300 <= caught.value.context["waited_ms"] <= waited_s * 1000
        assert f"It was waited for {caught.value.context['waited_ms'] / 1000:.1f} s." in str(
            caught.value
        )
        assert len(log.about_waiting()) == 1
        assert files_below(root) == before


@pytest.mark.parametrize("options", [{}, {"on_locked": "error"}])
def test_without_it_nothing_is_waited_for(root: Path, options: dict[str, str]) -> None:
    with (
        open_store(root),
        OnLog("Waiting", lambda: None) as log,
        pytest.raises(keystow.StoreLockedError) as caught,
    ):
        open_store(root, **options)
    assert "waited_ms" not in caught.value.context
    assert not log.lines


def test_a_free_directory_is_not_waited_for(root: Path) -> None:
    with OnLog("ait", lambda: None) as log, open_store(root, on_locked="wait:1440min") as store:
        put(store, range(3))
    assert log.about_waiting() == []


def test_only_the_lock_is_waited_for(root: Path) -> None:
    with OnLog("ait", lambda: None) as log, pytest.raises(keystow.SsdError) as caught:
        open_store(root, on_locked="wait:60min", capacity=1 << 60)
    assert caught.value.code == "KS-SSD-002"
    assert log.about_waiting() == []


def test_ctrl_c_ends_the_wait(root: Path) -> None:
    with child(HOLDER, root) as holder:
        assert said(holder) == "open 0"
        with child(WAITER, root, "wait:1440min") as waiter:
            assert said(waiter) == "ready"
            assert "Waiting" in said(waiter)
            sleeps(waiter, times=5)
            waiter.send_signal(signal.SIGINT)
            assert said(waiter) == "interrupted"
            waiter.wait()
        tell(holder)
        assert said(holder) == "closed"
        with open_store(root) as store:
            assert len(there(store, range(5))) == 5


def test_other_threads_run_while_it_waits(root: Path) -> None:
    """The thread that ends the wait needs the interpreter."""
    store = open_store(root)
    counted = 0
    waits = threading.Event()

    def work() -> None:
        nonlocal counted
        waits.wait()
        for _ in range(200_000):
            counted += 1
        store.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    with OnLog("Waiting", waits.set), open_store(root, on_locked="wait:600s"):
        assert counted == 200_000
    thread.join()


def test_of_many_that_wait_each_gets_it(root: Path) -> None:
    first = open_store(root)
    got = []

    def wait(number: int) -> None:
        with open_store(root, on_locked="wait:60s") as store:
            assert put(store, [number]) == 1
            got.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    first.close()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(4))
    with open_store(root) as store:
        assert len(there(store, range(4))) == 4


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("wait:30s", 30.0),
        ("wait:500ms", 0.5),
        ("wait:1.5min", 90.0),
        ("wait: 2 s ", 2.0),
        ("wait:0.25s", 0.25),
        ("wait:1440min", 86400.0),
        ("wait:86400s", 86400.0),
        ("error", 0.0),
    ],
)
def test_times_to_wait(text: str, seconds: float) -> None:
    device = keystow.Ssd("/nvme/kv", "1GiB", on_locked=text)
    assert device.on_locked == text
    assert device.lock_wait_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("wait:", "wait:30", "wait:s", "wait:0s", "wait:0.0ms", "wait:-1s", "wait:nans"),
        *("wait:infs", "wait:1e3s", "wait:1,000s", "wait:1h", "wait:30 seconds", "wait:1.2.3s"),
        *("wait:86401s", "wait:1441min", "wait:99999999999999999999min", "wait:²s"),
        *("wait:" + "9" * 400 + "s", "Wait:30s", "wait 30s", "30s", "", None, 30, True, b"error"),
    ],
    ids=lambda text: str(text)[:24],
)
def test_no_time_to_wait(text: object) -> None:
    with pytest.raises(keystow.ConfigError) as caught:
        keystow.Ssd("/nvme/kv", "1GiB", on_locked=text)  # type: ignore[arg-type]
    assert caught.value.code == "KS-CFG-219"
    assert '"wait:30s"' in caught.value.hint
