"""The demo's kill: what it counts, what it can't miss, and that nothing is left behind.

Method: small stores in a directory of the test; owners that lie, crash or are killed by somebody
else in place of the real one; signals to a demo at work, and then a look at the processes that name
the directory, and into it.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from keystow import KeystowError, StoreLockedError, cli, demo, demo_owner, trace
from keystow.demo_figures import FAULTS, WINDOW_S, Tally, figures, ssd_rows
from keystow.demo_owner import Flushed, Opened, Owner, Task
from keystow.demo_replay import COUNTERS, Served, State

REQUESTS = 200
BLOCK_BYTES = 16 << 10
ROOMY = ["--ram", "8MiB", "--ssd", "128MiB", "--block-bytes", "16KiB"]
DEADLINE_S = 30.0


def arguments(folder: Path, *more: str) -> list[str]:
    return ["demo", "--requests", str(REQUESTS), *ROOMY, "--dir", str(folder), *more]


def run_json(
    folder: Path, *more: str, command: tuple[str, ...] = demo_owner.COMMAND
) -> tuple[int, dict[str, Any]]:
    """Run the demo in this process, its owners in theirs; return exit status and report."""
    out = io.StringIO()
    options = cli.parser().parse_args(arguments(folder, "--json", *more))
    status = demo.run(options, command=command, out=out, progress_out=io.StringIO())
    return status, json.loads(out.getvalue())


def named(folder: Path) -> set[int]:
    """Return the processes, but this one, whose command line names a folder."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            line = (process / "cmdline").read_bytes() if process.name.isdecimal() else b""
        except OSError:
            continue
        if str(folder).encode() in line and int(process.name) != os.getpid():
            found.add(int(process.name))
    return found


def until(what: Any) -> Any:
    """Return the first true value of `what()`, or fail."""
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        if value := what():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


def hits(requests: int, cold_at: int | None = None) -> int:
    """Return the leading blocks seen before, by a cache without limit that is emptied once."""
    seen: set[int] = set()
    total = 0
    for number, request in enumerate(trace.packaged("conversation")):
        if number == requests:
            break
        if number == cold_at:
            seen.clear()
        known = [block in seen for block in request.blocks]
        total += known.index(False) if False in known else len(known)
        seen.update(request.blocks)
    return total


def owner_command(body: str) -> tuple[str, ...]:
    """Return the command of an owner whose own `open_store` is that of `body`."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    head += "import os, signal, keystow, test_demo\nfrom keystow import demo_owner\n"
    tail = "\nsys.exit(demo_owner.main(sys.argv[1], open_store))\n"
    return (sys.executable, "-c", head + body + tail)


# A pause long enough for what was written by then to be promised after a kill.
PAUSING = """
import time

class Pausing(test_demo.Lying):
    calls = 0
    def put(self, keys, rows):
        Pausing.calls += 1
        if Pausing.calls == 60:
            time.sleep(1.5)
        return self._store.put(keys, rows)

def open_store(**options):
    # On a busy machine a slow disk is no fault here.
    return Pausing(lambda rows: None, io_timeout_s=30.0, put_wait_s=30.0, **options)
"""


def test_a_kill_half_way(tmp_path: Path) -> None:
    status, report = run_json(tmp_path, command=owner_command(PAUSING))
    assert status == 0
    assert report["wrong_blocks"] == 0
    assert report["requests"] == REQUESTS
    killed_at = report["killed_at_request"]
    assert REQUESTS // 2 <= killed_at <= REQUESTS // 2 + demo.RUN_ON_REQUESTS
    warm, lost, before = (
        report[name]
        for name in ("warm_blocks_after_kill", "dirty_blocks_lost", "blocks_before_kill")
    )
    assert warm > before // 4, "most was put before the pause, and the disk was idle in it"
    assert lost == max(0, before - warm)
    assert report["stale_blocks_read"] == report["ssd_faults"]["bad_tags"]
    assert 0 < report["restart_s"] < 30
    # What was warm was found: more hits than a cold start has, never more than if none was lost
    # but for the one request that was served twice.
    longest = max(len(r.blocks) for r in islice(trace.packaged("conversation"), REQUESTS))
    assert hits(REQUESTS, cold_at=killed_at) < report["blocks_hit"] <= hits(REQUESTS) + longest
    assert report["hits_ram"] + report["hits_ssd"] == report["blocks_hit"]
    assert report["hits_ssd"] > 0
    assert report["flush"]["blocks_left"] == 0
    assert report["engine"] != ""
    assert set(report["ssd_faults"]) == set(FAULTS)
    assert list(tmp_path.iterdir()) == []
    assert named(tmp_path) == set()


def test_what_had_no_room_on_ssd_is_lost_and_counted(tmp_path: Path) -> None:
    sizes = ["--ram", "64MiB", "--ssd", "8MiB"]
    status, report = run_json(tmp_path, *sizes, command=owner_command(PAUSING))
    assert status == 0
    warm, before = report["warm_blocks_after_kill"], report["blocks_before_kill"]
    assert 0 < warm <= (8 << 20) // BLOCK_BYTES
    assert report["dirty_blocks_lost"] == before - warm > 0


@pytest.mark.parametrize("requests", ["1", "2", "3"])
def test_hardly_any_requests(requests: str, tmp_path: Path) -> None:
    status, report = run_json(tmp_path, "--requests", requests)
    assert status == 0
    assert report["requests"] == int(requests)
    assert report["killed_at_request"] >= 1
    assert report["warm_blocks_after_kill"] is not None


def test_table_and_progress_tell_of_the_kill(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(tmp_path)) == 0
    shown = capfd.readouterr()
    assert "\n  killed " in shown.out
    assert "\n  warm after it " in shown.out
    assert "killed the owner of the store at request" in shown.err
    assert "Traceback" not in shown.err


# ---- owners in place of the real one ----


LATE = """
class Late(test_demo.Lying):
    calls = 0
    def get(self, keys, rows):
        Late.calls += 1
        return super().get(keys, rows) if Late.calls > 20 else self._store.get(keys, rows)

def open_store(**options):
    return Late(test_demo.flip_last_byte, **options)
"""


def test_wrong_bytes_of_either_owner_are_told(tmp_path: Path) -> None:
    status, report = run_json(tmp_path, command=owner_command(LATE))
    assert status == 1
    # Twenty gets of each process were right, every one after them had one wrong byte.
    assert report["wrong_bytes"] == report["wrong_blocks"] == report["get"]["calls"] - 2 * 20
    assert report["first_wrong"].startswith("key ")


ENDING = """
class Ending(test_demo.Lying):
    calls = 0
    def get(self, keys, rows):
        Ending.calls += 1
        if Ending.calls == 20:
            {how}
        return self._store.get(keys, rows)

def open_store(**options):
    return Ending(test_demo.flip_last_byte, **options)
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("os._exit(0)", "status 0"),
        ("os._exit(7)", "status 7"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "status -6"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "status -9"),
        ("raise keystow.StoreLockedError('no', code='KS-X', hint='go.')", "no Hint: go."),
    ],
)
def test_an_owner_that_ends_by_itself_is_an_error(how: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(KeystowError, match=said) as raised:
        run_json(tmp_path, command=owner_command(ENDING.replace("{how}", how)))
    assert isinstance(raised.value, StoreLockedError) == ("Locked" in how)
    assert list(tmp_path.iterdir()) == []
    assert named(tmp_path) == set()


def test_a_line_cut_by_the_kill_is_dropped(tmp_path: Path) -> None:
    whole = demo_owner.encode(Served(state_at(1.0), blocks=3))
    script = f"import os, time; os.write(1, {whole + whole[:-20]!r}); time.sleep(60)"
    task = Task("conversation", 0, 1, BLOCK_BYTES, 0, 0, str(tmp_path), "lru")
    told = []
    with Owner(task, (sys.executable, "-c", script)) as owner:
        for message in owner.messages():
            told.append(message)
            owner.kill()
    assert [message.blocks for message in told if isinstance(message, Served)] == [3]


# ---- signals ----


# Started in the background or by nohup, these tests have children that ignore two of the signals.
START = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from keystow import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def at_work(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A demo, in a session of its own, whose store is open and serving."""
    mode = getattr(request, "param", [])
    command = [sys.executable, "-c", START, *arguments(tmp_path), *mode, "--requests", "12031"]
    with subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        try:
            until(lambda: list(tmp_path.glob("keystow-demo-*/*/*/slots*")))
            assert child.poll() is None
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("at_work", [[], ["--no-kill"]], indirect=True, ids=["owner", "alone"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(
    at_work: subprocess.Popen[bytes], number: signal.Signals, tmp_path: Path
) -> None:
    # To the whole group, as a terminal does; an owner is in none but its own.
    assert all(os.getpgid(owner) == owner for owner in named(tmp_path))
    os.killpg(at_work.pid, number)
    said = at_work.communicate(timeout=DEADLINE_S)
    assert at_work.returncode == 128 + number
    assert said[0] == b""
    assert b"Traceback" not in said[1]
    assert list(tmp_path.iterdir()) == []
    assert named(tmp_path) == set()


def test_an_owner_ends_when_the_demo_is_killed(
    at_work: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert named(tmp_path) - {at_work.pid}
    at_work.kill()
    at_work.wait()
    until(lambda: not named(tmp_path))


def test_an_owner_that_waits_for_its_kill_ends_with_the_demo(tmp_path: Path) -> None:
    task = Task("conversation", 0, 2, BLOCK_BYTES, 8 << 20, 16 << 20, str(tmp_path), "lru")
    with Owner(replace(task, await_kill=True)) as owner:
        told = [next(messages) for messages in [owner.messages()] for _ in range(3)]
        assert [type(message) for message in told] == [Opened, Served, Served]
        time.sleep(0.2)
        assert owner._process.poll() is None
        assert owner._process.stdin is not None
        owner._process.stdin.close()
        assert owner._process.wait(DEADLINE_S) == demo_owner.EXIT_ALONE


# ---- figures ----


def state_at(at_s: float, blocks: int = 0, **counters: int) -> State:
    counted = {**dict.fromkeys(COUNTERS, 0), **counters}
    return {"at_s": at_s, "blocks": blocks, "counters": counted, "fallbacks": []}


def opened(at_s: float, recovered: int = 0) -> Opened:
    return Opened(state_at(at_s), 0.5, frames=8, recovered=recovered, engine="pool", direct=True)


def test_counters_are_summed_over_the_kill() -> None:
    tally = Tally()
    tally.add(opened(0.0))
    tally.add(Served(state_at(1.0, blocks=90, evictions=5, bytes_in=70, ssd_write_bytes=10**9)))
    tally.end(killed=True)
    tally.add(opened(9.0, recovered=60))
    tally.add(Served(state_at(10.0, blocks=80, evictions=2, bytes_in=7, ssd_write_bytes=10**9)))
    tally.add(
        Flushed(state_at(12.0, evictions=3, bytes_in=7, ssd_write_bytes=2 * 10**9), 2.0, 10**9, 0)
    )
    tally.end()
    report = figures(tally, 64, tiers=2)
    assert (report["evictions"], report["put"]["bytes"]) == (8, 77)
    assert (report["killed_at_request"], report["restart_s"]) == (1, 0.5)
    assert (report["blocks_before_kill"], report["dirty_blocks_lost"]) == (90, 30)
    # Neither the time between the two processes nor the flush counts as write-behind.
    behind = report["write_behind"]
    assert (behind["bytes"], behind["seconds"], behind["gb_per_s"]) == (2 * 10**9, 2.0, 1.0)
    assert report["flush"]["gb_per_s"] == 0.5


def test_faults_of_the_device_are_told() -> None:
    """Figures of a store whose device was too slow are no figures of two tiers."""
    tally = Tally()
    tally.add(opened(0.0))
    tally.add(Served(state_at(1.0, ssd_late=3, ssd_dropped_off=2000)))
    tally.end(killed=True)
    tally.add(opened(2.0))
    tally.add(Flushed(state_at(3.0, ssd_late=4), 0.1, 0, 5))
    report = figures(tally, 64, tiers=2)
    assert {name: n for name, n in report["ssd_faults"].items() if n} == {
        "late": 7,
        "dropped_off": 2000,
    }
    rows = ssd_rows(report)
    assert rows["SSD faults"].startswith("7 requests took longer")
    assert "2,000 blocks left RAM unwritten, the device was left alone" in rows["SSD faults"]
    assert "5 blocks left in RAM alone" in rows["flush at the end"]


def test_stale_blocks_are_those_read_after_the_kill() -> None:
    tally = Tally()
    tally.add(opened(0.0))
    tally.add(Served(state_at(1.0, ssd_bad_tags=2, ssd_lost=2)))
    tally.end(killed=True)
    tally.add(opened(2.0))
    tally.add(Flushed(state_at(3.0, ssd_bad_tags=40, ssd_lost=41), 0.1, 0, 0))
    tally.end()
    report = figures(tally, 64, tiers=2)
    assert report["stale_blocks_read"] == 40
    rows = ssd_rows(report)
    assert "40 stale" in rows["warm after it"]
    assert rows["SSD faults"].split("; ") == [f"2 {FAULTS['bad_tags']}", f"3 {FAULTS['lost']}"]


def test_more_found_than_told_is_no_loss() -> None:
    tally = Tally()
    tally.add(opened(0.0))
    tally.add(Served(state_at(1.0, blocks=3)))
    tally.end(killed=True)
    tally.add(opened(2.0, recovered=5))
    assert tally.dirty_blocks_lost == 0


def test_windows_of_the_write_behind() -> None:
    tally = Tally()
    tally.add(opened(0.0))
    for number, rate in enumerate([1, 2, 3, 10], start=1):
        # Twice a window: the first look is too early to end it.
        tally.add(Served(state_at((number - 0.5) * WINDOW_S)))
        done = sum([1, 2, 3, 10][:number])
        written = round(done * WINDOW_S * 1e9)
        tally.add(Served(state_at(number * (WINDOW_S + 1e-6), ssd_write_bytes=written)))
        assert len(tally.write_behind.rates) == number
        assert tally.write_behind.rates[-1] == pytest.approx(rate * 1e9, rel=1e-3)
    tally.add(Served(state_at(4.5 * WINDOW_S, ssd_write_bytes=4 * 10**9)))
    tally.end()
    behind = tally.write_behind.figures()
    assert (behind["windows"], behind["bytes"]) == (4, 4 * 10**9)
    assert behind["p50_gb_per_s"] == pytest.approx(2, rel=1e-3)
    assert behind["p99_gb_per_s"] == pytest.approx(10, rel=1e-3)
    assert behind["seconds"] == pytest.approx(4.5 * WINDOW_S, abs=1e-3)
