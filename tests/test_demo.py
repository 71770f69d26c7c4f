"""The demo tells the truth: right figures over a right store, wrong bytes over a wrong one.

Method: the packaged trace's first requests through the command line, in this process and in a
child, with one tier and with two; the hit ratio against a set of ids; and stores that lie in ways a
cache can lie, each of which must be reported. What a kill changes is in `test_demo_kill.py`.
"""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

import keystow
from keystow import cli, demo, trace

REQUESTS = 200
RAM = "512MiB"
BLOCK_BYTES = 64 << 10
ONE_TIER = ["--ram", RAM, "--ssd", "0"]
JSON = ["demo", "--requests", str(REQUESTS), *ONE_TIER, "--json"]
SMALL_BYTES = 16 << 10
# All blocks of these requests have room on SSD, a tenth of them in RAM.
SMALL_TIER = ["--ram", "128MiB", "--ssd", "0", "--block-bytes", "16KiB"]
TWO_TIERS = ["--ram", "8MiB", "--ssd", "128MiB", "--block-bytes", "16KiB", "--no-kill"]


def run_json(
    arguments: list[str], open_store: Callable[..., Any] = keystow.Store
) -> tuple[int, dict[str, Any]]:
    """Run the demo with `arguments` in this process; return exit status and report."""
    out = io.StringIO()
    options = cli.parser().parse_args(arguments)
    status = demo.run(options, open_store=open_store, out=out, progress_out=io.StringIO())
    return status, json.loads(out.getvalue())


def ideal_hits(requests: int) -> tuple[int, int]:
    """Return blocks asked and leading blocks seen before, as a cache without limit has them."""
    seen: set[int] = set()
    asked = hits = 0
    for number, request in enumerate(trace.packaged("conversation")):
        if number == requests:
            break
        known = [block in seen for block in request.blocks]
        asked += len(known)
        hits += known.index(False) if False in known else len(known)
        seen.update(request.blocks)
    return asked, hits


def test_figures_are_those_of_the_trace() -> None:
    status, report = run_json(JSON)
    asked, hits = ideal_hits(REQUESTS)
    assert status == 0
    assert report["evictions"] == 0, "the store holds these requests: the ideal applies"
    assert (report["requests"], report["blocks"]) == (REQUESTS, asked)
    assert report["blocks_hit"] == report["blocks_verified"] == hits > 0
    assert report["prefix_hit_ratio"] == pytest.approx(hits / asked, abs=1e-6)
    assert report["blocks_stored"] == asked - hits
    assert report["wrong_blocks"] == report["wrong_bytes"] == 0
    assert report["bytes_verified"] == report["get"]["bytes"] == hits * BLOCK_BYTES
    assert report["put"]["bytes"] == (asked - hits) * BLOCK_BYTES
    for verb in ("put", "get"):
        assert 0 < report[verb]["p50_ms"] <= report[verb]["p99_ms"]
    assert (report["hits_ram"], report["hits_ssd"], report["engine"]) == (hits, 0, "")
    assert all(isinstance(line, str) for line in report["fallbacks"])


def test_figures_of_two_tiers(tmp_path: Path) -> None:
    arguments = ["demo", "--json", "--requests", str(REQUESTS), *TWO_TIERS, "--dir", str(tmp_path)]
    last: list[keystow.Stats] = []

    class Watched(Lying):
        def __exit__(self, *_: object) -> None:
            last.append(self._store.stats())
            super().__exit__()

    # On a busy machine a slow disk is no fault here.
    def watched(**options: Any) -> Watched:
        return Watched(lambda _: None, io_timeout_s=30.0, put_wait_s=30.0, **options)

    status, report = run_json(arguments, watched)
    asked, hits = ideal_hits(REQUESTS)
    assert status == 0
    assert (report["blocks"], report["blocks_hit"], report["evictions"]) == (asked, hits, 0)
    assert report["hits_ram"] + report["hits_ssd"] == hits
    assert min(report["hits_ram"], report["hits_ssd"]) > 0
    assert report["get"]["bytes"] == report["bytes_verified"] == hits * SMALL_BYTES
    calls = [report[name]["calls"] for name in ("get_ram", "get_ssd", "get")]
    assert calls[0] + calls[1] == calls[2]
    assert report["get_ssd"]["bytes"] == report["hits_ssd"] * SMALL_BYTES
    assert report["get_ram"]["bytes"] <= report["hits_ram"] * SMALL_BYTES
    assert 0 < report["get_ssd"]["p50_ms"] <= report["get_ssd"]["p99_ms"]
    # Match tells where blocks are before the get; what leaves RAM in between is read from SSD.
    assert last[0].ssd_reads * 0.7 <= report["hits_ssd"] <= last[0].ssd_reads
    # Nothing left RAM unwritten, nothing is written twice, and the flush finds the rest.
    written = report["write_behind"]["bytes"] + report["flush"]["bytes"]
    assert written == report["put"]["bytes"] == (asked - hits) * SMALL_BYTES
    assert report["write_behind"]["bytes"] > 0
    assert report["flush"]["blocks_left"] == 0
    assert report["engine"] in keystow._core.ENGINES
    for name in ("restart_s", "warm_blocks_after_kill", "dirty_blocks_lost", "killed_at_request"):
        assert report[name] is None
    assert list(tmp_path.iterdir()) == []


def test_child_process_prints_one_object() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "keystow", *JSON], capture_output=True, check=False, timeout=100
    )
    assert child.returncode == 0, child.stderr.decode()
    report = json.loads(child.stdout)
    asked, hits = ideal_hits(REQUESTS)
    assert (report["blocks"], report["blocks_hit"], report["wrong_blocks"]) == (asked, hits, 0)


@pytest.mark.parametrize("ram", ["64KiB", "1MiB", "3MiB"])
def test_chains_longer_than_memory(ram: str) -> None:
    status, report = run_json([*JSON, "--ram", ram])
    assert status == 0
    assert report["wrong_blocks"] == 0
    assert report["blocks_unstored"] > 0, "no chain was longer than the memory: raise REQUESTS"
    # One frame holds the head that all chains share, and a piece does not evict its own parent.
    assert (report["evictions"] > 0) == (report["frames"] > 1)
    assert report["blocks_hit"] > 0


@pytest.mark.parametrize("block_bytes", ["33", "4096", "5000", "1MiB"])
def test_any_block_size(block_bytes: str) -> None:
    arguments = ["demo", "--json", "--requests", "20", "--ram", "64MiB", "--ssd", "0"]
    status, report = run_json([*arguments, "--block-bytes", block_bytes])
    assert status == 0
    assert report["blocks_verified"] > 0


class Lying:
    """A real store whose get does something to the rows it filled."""

    def __init__(self, spoil: Callable[[list[bytearray]], None], **options: Any) -> None:
        self._store = keystow.Store(**options)
        self._spoil = spoil

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def get(self, keys: keystow.Keys, rows: list[bytearray]) -> int:
        got = self._store.get(keys, rows)
        self._spoil(rows[:got])
        return got


def flip_last_byte(rows: list[bytearray]) -> None:
    rows[-1][-1] ^= 1


def flip_a_middle_byte(rows: list[bytearray]) -> None:
    rows[0][len(rows[0]) // 2 + 7] ^= 0x80


def swap_rows(rows: list[bytearray]) -> None:
    rows[0][:], rows[-1][:] = bytes(rows[-1]), bytes(rows[0])


def swap_pages(rows: list[bytearray]) -> None:
    rows[0][4096:8192], rows[0][8192:12288] = rows[0][8192:12288], rows[0][4096:8192]


def shift_a_page(rows: list[bytearray]) -> None:
    rows[0][:] = rows[0][4096:] + rows[0][:4096]


def forget_the_tail(rows: list[bytearray]) -> None:
    rows[-1][-100:] = bytes(100)


def write_nothing(rows: list[bytearray]) -> None:
    for row in rows:
        row[:] = bytes(len(row))


LIES = (
    flip_last_byte,
    flip_a_middle_byte,
    swap_rows,
    swap_pages,
    shift_a_page,
    forget_the_tail,
    write_nothing,
)


@pytest.mark.parametrize("tiers", [SMALL_TIER, TWO_TIERS], ids=["ram", "ram and ssd"])
@pytest.mark.parametrize("spoil", LIES, ids=lambda lie: lie.__name__)
def test_lies_are_reported(
    spoil: Callable[[list[bytearray]], None], tiers: list[str], tmp_path: Path
) -> None:
    status, report = run_json(
        [*JSON, *tiers, "--dir", str(tmp_path)],
        open_store=lambda **options: Lying(spoil, **options),
    )
    assert status == 1
    assert report["wrong_blocks"] > 0
    assert report["wrong_bytes"] >= report["wrong_blocks"]
    assert report["first_wrong"].startswith("key ")
    if spoil is flip_last_byte:
        assert report["wrong_bytes"] == report["wrong_blocks"] == report["get"]["calls"]


def test_stale_rows_do_not_pass() -> None:
    """A get that leaves the rows of an earlier call in place is as wrong as any other."""

    class Lazy(Lying):
        def get(self, keys: keystow.Keys, rows: list[bytearray]) -> int:
            return self._store.get(keys, [bytearray(row) for row in rows])

    arguments = [*JSON, *SMALL_TIER]
    status, report = run_json(arguments, open_store=lambda **options: Lazy(swap_rows, **options))
    assert status == 1
    assert report["wrong_blocks"] == report["blocks_verified"] > 0


@pytest.mark.parametrize("tiers", [ONE_TIER, TWO_TIERS], ids=["ram", "ram and ssd"])
def test_table_for_people(
    tiers: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--requests", "50", *tiers, "--dir", str(tmp_path)]) == 0
    shown = capfd.readouterr().out
    rows = ["requests", "prefix hits", "prefill tokens saved", "put", "wrong bytes"]
    on_disk = ["get, all from RAM", "get, some from SSD", "write-behind", "SSD faults"]
    for row in [*rows, *(["get"] if tiers is ONE_TIER else on_disk)]:
        assert f"\n  {row} " in shown
    assert ("SSD" in shown) == (tiers is TWO_TIERS)
    assert "killed" not in shown
    assert "GB/s" in shown
    assert "WRONG" not in shown


def test_live_line_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(demo, "TTY_PERIOD_S", 0.0)
    monkeypatch.setattr(demo, "PLAIN_PERIOD_S", 0.0)
    options = cli.parser().parse_args(["demo", "--requests", "5", *ONE_TIER])
    live, plain = Terminal(), io.StringIO()
    for progress_out in (live, plain):
        assert demo.run(options, out=io.StringIO(), progress_out=progress_out) == 0
    assert live.getvalue().count("\r") == 6, "five lines and the one that takes them away"
    assert "\n" not in live.getvalue()
    assert "\r" not in plain.getvalue()
    assert plain.getvalue().count("\n") == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "lrv"], "lru"),
        (["--ram", "900TiB"], "ConfigError"),
        (["--ram", "lots"], "--ram"),
        (["--ssd", "lots"], "--ssd"),
        (["--ssd", "1KiB"], "ConfigError"),
        (["--ssd", "900TiB"], "Ssd"),
        (["--dir", "/proc/self/nowhere"], "--dir"),
        (["--dir", __file__], "--dir"),
        (["--requests", "0"], "--requests"),
        (["--block-bytes", "31"], "--block-bytes"),
        (["--trace", "nobody"], "conversation"),
    ],
)
def test_unusable_arguments(
    arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(["demo", "--requests", "1", *ONE_TIER, *arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == cli.EXIT_UNUSABLE
    shown = capfd.readouterr()
    assert said in shown.err
    assert shown.out == ""
