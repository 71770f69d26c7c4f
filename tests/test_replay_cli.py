"""`keystow replay`: the figures of the library, as JSON with the agreed keys and as a table."""

from __future__ import annotations

import io
import json
import lzma
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import keystow
from keystow import cli, replay_command

if TYPE_CHECKING:
    from pathlib import Path

TOP_KEYS = {"requests", "refs", "unique", "malformed", "results"}
RESULT_KEYS = set(
    "policy ram_blocks ssd_blocks plain_hits prefix_hits prefix_hit_ratio ram_hits ssd_hits "
    "ssd_writes".split()
)
GRID = ["--policy", "lru,arc", "--ram-blocks", "439,2196"]


def run(*arguments: str) -> tuple[int, str]:
    """Run the command in this process; exit status and output."""
    out = io.StringIO()
    options = cli.parser().parse_args(["replay", *arguments])
    return replay_command.run(options, out=out, progress_out=io.StringIO()), out.getvalue()


def run_json(*arguments: str) -> dict[str, Any]:
    status, text = run(*arguments, "--json")
    assert status == 0
    return json.loads(text)


def small_trace(folder: Path) -> Path:
    path = folder / "small.jsonl.xz"
    lines = '{"hash_ids": [1, 2, 3]}\noops\n{"hash_ids": [1, 2, 4]}\n{"hash_ids": []}\n'
    path.write_bytes(lzma.compress(lines.encode()))
    return path


@pytest.mark.parametrize("rule", [[], ["--textbook"]], ids=["chains", "textbook"])
def test_json_has_the_agreed_keys_and_the_figures_of_the_library(rule: list[str]) -> None:
    report = run_json("synthetic", *GRID, *rule)
    assert report.keys() >= TOP_KEYS
    trace = keystow.Trace.packaged("synthetic")
    counts = (trace.requests, trace.refs, trace.unique, 0)
    assert tuple(report[key] for key in ("requests", "refs", "unique", "malformed")) == counts
    cells = [(policy, size) for policy in ("lru", "arc") for size in (439, 2196)]
    assert [(cell["policy"], cell["ram_blocks"]) for cell in report["results"]] == cells
    for (policy, size), cell in zip(cells, report["results"], strict=True):
        assert cell.keys() >= RESULT_KEYS
        want = keystow.replay(trace, policy, ram_blocks=size, chains=not rule)
        assert all(cell[key] == getattr(want, key) for key in RESULT_KEYS)
        assert 0 < cell["prefix_hit_ratio"] < 1
    assert report["chains"] is not bool(rule)


def test_the_table_shows_each_policy_and_size_rounded_from_the_same_figures() -> None:
    status, text = run("synthetic", *GRID)
    assert status == 0
    rows = [line.split() for line in text.splitlines() if line.startswith(("  lru", "  arc"))]
    results = run_json("synthetic", *GRID)["results"]
    assert len(rows) == len(results) == 4
    for row, cell in zip(rows, results, strict=True):
        assert row[0] == cell["policy"]
        assert row[1] == f"{cell['ram_blocks']:,}"
        assert row[2:4] == [f"{100 * cell['prefix_hit_ratio']:.2f}", "%"]
        assert row[4:6] == [f"{cell[key]:,}" for key in ("prefix_hits", "plain_hits")]
    assert "3,993 requests" in text


def test_packaged_words_and_paths_and_several_parts(tmp_path: Path) -> None:
    path = str(small_trace(tmp_path))
    alone = run_json(path, "--ram-blocks", "4")
    assert [alone[key] for key in ("requests", "refs", "unique", "malformed")] == [3, 6, 4, 1]
    assert alone["malformed_lines"] == [
        {"source": path, "line": 2, "why": alone["malformed_lines"][0]["why"]}
    ]
    assert alone["results"][0]["prefix_hits"] == 2
    both = run_json("synthetic", path, path, "--ram-blocks", "4")
    assert both["requests"] == 3_993 + 6
    assert both["malformed"] == 2
    assert run_json("conversation", "--ram-blocks", "1")["requests"] == 12_031


def test_malformed_lines_are_shown_or_end_a_strict_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(small_trace(tmp_path))
    status, text = run(path, "--ram-blocks", "4")
    assert status == 0
    assert f"skipped {path}, line 2: " in text
    assert cli.main(["replay", path, "--ram-blocks", "4", "--strict"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "KS-FMT-102" in told.err
    assert f"{path}, line 2" in told.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["synthetic", "--policy", "acr", "--ram-blocks", "5"], "Did you mean 'arc'"),
        (["synthetic", "--policy", "lru,", "--ram-blocks", "5"], "policy=''"),
        (["/no/such", "--ram-blocks", "5"], "/no/such can't be read"),
        (["synthetic", "--ram-blocks", "0"], "'0' is no whole number from 1 on"),
        (["synthetic", "--ram-blocks", "5,x"], "'x' is no whole number from 1 on"),
        (["synthetic"], "--ram-blocks"),
        (["--ram-blocks", "5"], "TRACE"),
    ],
)
def test_what_can_not_run_says_why(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(["replay", *arguments])
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert says in told.err


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_live_line_and_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_command, "TTY_PERIOD_S", 0.0)
    out, terminal = io.StringIO(), Terminal()
    options = cli.parser().parse_args(["replay", "conversation", "--ram-blocks", "1827"])
    assert replay_command.run(options, out=out, progress_out=terminal) == 0
    lines = terminal.getvalue().split("\r\x1b[K")
    assert any(line.startswith("reading conversation") for line in lines)
    assert any("lru, 1,827 blocks: 5,000 of 12,031 requests" in line for line in lines)
    assert lines[-1] == ""
    assert "\n" not in terminal.getvalue()
    assert "\x1b" not in out.getvalue()


def test_the_command_itself() -> None:
    command = [sys.executable, "-W", "error", "-m", "keystow", "replay", "synthetic"]
    done = subprocess.run(
        [*command, "--ram-blocks", "439", "--json"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout)["results"][0]["prefix_hits"] == 4_644
