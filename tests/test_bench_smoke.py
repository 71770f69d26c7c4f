"""The benchmarks run and print every figure.

Method: `benches/run.py` with tiny sizes in a child process. No time is asserted: on a shared
machine a time is no test.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines import refused

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("64 KiB", "256 KiB", "1 MiB", "2 MiB")
SSD_FIGURES = [
    f"{verb} {size}{what}"
    for size in SIZES[:3]
    for verb in ("ssd write-behind", "ssd get")
    for what in (("", ", CPU", ", again") if "write" in verb else ("", ", CPU"))
]
ENGINES = [name for name in ("uring", "pool") if refused(name) is None]
CALLS_FIGURES = [
    name
    for size in ("64 KiB", "1 MiB")
    for name in (
        *(
            f"{verb} {size}, {one} by {other}"
            for verb in ("write-behind", "get")
            for one, other in (("uring", "pool"), ("pool", "uring"))
            if len(ENGINES) > 1
        ),
        *(f"get of one {size}, idle, {name}, {at}" for name in ENGINES for at in ("p50", "p99")),
        *(f"get {size} while writing, {name}{what}" for name in ENGINES for what in ("", ", p99")),
    )
]
FIGURES = [
    *(f"{verb} {size}" for size in SIZES for verb in ("put", "get")),
    "match_prefix from Python, 0.02 M entries",
    "match_prefix from Rust, 0.01 M entries",
    "lookup in a followed directory, 0.01 M entries",
    "match_prefix from Rust, 0.02 M entries",
    "lookup in a followed directory, 0.02 M entries",
    "evict + insert from Python, lru",
    *(
        f"replay {trace}, {how}"
        for trace in ("conversation", "synthetic")
        for how in ("lru", "arc", "from lists")
    ),
    "block_keys, int64 buffer",
    "block_keys, uint32 buffer",
    "block_keys, list",
    "import keystow",
    "wheel",
    *SSD_FIGURES,
    "tag verification, 1 MiB",
    *CALLS_FIGURES,
    "reopen, 0.0082 M records",
    "reopen, 0.0082 M records, table alone",
    "simulated store, checked, one core",
    "simulated store, checked, each of all cores",
]


def run(*arguments: str) -> str:
    """Run the benchmarks with `arguments` and return what they print."""
    command = [sys.executable, str(ROOT / "benches" / "run.py"), "--quick", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("cargo") is None, reason="the Rust figures need cargo")
def test_every_figure_is_there() -> None:
    report: dict[str, Any] = json.loads(run("--json"))
    figures = {figure["name"]: figure for figure in report["figures"]}
    # What fio says comes beside it where it is installed.
    assert [name for name in figures if not name.startswith("fio ")] == FIGURES
    for name, figure in figures.items():
        if name != "wheel":  # None may be built; then it says so.
            assert math.isfinite(figure["median"]), name
            assert figure["low"] <= figure["median"] <= figure["high"], name
    for verb in ("put", "get", "ssd write-behind", "ssd get"):
        figure = figures[f"{verb} 1 MiB"]
        assert figure["ratio"] > 0
        assert figure["rival_name"]
        assert figure["verdict"] in ("ok", "below"), "the level is checked"
    assert figures["put 64 KiB"]["verdict"] == "shown"
    assert figures["ssd get 64 KiB"]["level"] == "ratio >= 0.90"
    assert figures["ssd get 1 MiB"]["rival_name"].startswith("raw ")
    assert figures["reopen, 0.0082 M records"]["level"] == "< 0.5 s/M"
    assert figures["replay synthetic, arc"]["level"] == ">= 20 M accesses/s"
    assert "blocks a hold" in figures["evict + insert from Python, lru"]["note"]


def test_the_contest_is_read_as_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rivals are not built here: their output is given."""
    monkeypatch.syspath_prepend(ROOT / "benches")
    import evict  # noqa: PLC0415 - a script's folder is on the path only here

    def cache(kind: str, name: str, *rates: float) -> str:
        return json.dumps({"kind": kind, "name": name, "rates": rates, "kept": 0.5})

    lines = [
        "not an object",
        cache("ours", "lru", 2.5e6, 3e6, 2e6),
        cache("ours", "arc", 1.5e6, 1.5e6, 1.5e6),
        cache("rival", "slow", 1e6, 1e6, 1e6),
        cache("rival", "fast", 1e6, 2e6, 4e6),
        '{"kind": "touch", "name": "lru", "blocks": 8192, "us": [300.0], "lock_blocks_max": 128}',
    ]
    lru, arc, slow, fast, touch = evict.told(lines)
    assert (lru.name, lru.rival_name, lru.ratio) == ("evict + insert, lru", "fast", 1.5)
    assert (lru.verdict, arc.verdict, slow.verdict) == ("ok", "below", "shown")
    assert fast.note == "keeps 50% of a round's keys"
    assert (touch.name, touch.ours.median) == ("touch of 8,192 blocks, lru", 300.0)
    with pytest.raises(AssertionError, match="129 blocks"):
        list(evict.told([*lines[:-1], lines[-1].replace("128}", "129}")]))


def test_the_disk_is_chosen_and_left_as_it_was(tmp_path: Path) -> None:
    lines = run("--only", "reopen", "--dir", str(tmp_path / "new")).splitlines()
    assert [line.split()[0] for line in lines] == ["figure", "reopen,", "reopen,"]
    assert list((tmp_path / "new").iterdir()) == []


def test_the_rate_is_read_from_what_the_histories_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benches")
    import simulated  # noqa: PLC0415 - a script's folder is on the path only here

    cores = os.sched_getaffinity(0)
    asked: list[tuple[str, bool]] = []

    def told(arguments: list[str], environment: dict[str, str] | None = None) -> str:
        if environment is None:
            assert "--no-run" in arguments
        else:
            asked.append((environment["KEYSTOW_SIM_FIRST"], len(os.sched_getaffinity(0)) == 1))
        return "17 histories from seed 1, 4242 operations, 212,345 a second\n"

    monkeypatch.setattr(simulated.rust, "run", told)
    monkeypatch.setattr(simulated.rust, "found", lambda: True)
    alone, together = simulated.figures(quick=False)
    assert (alone.ours.median, alone.verdict) == (212.345, "ok")
    assert (together.ours.median, together.verdict) == (212.345, "shown")
    assert len({seed for seed, _ in asked}) == 5
    assert [held for _, held in asked[::2]] == [True] * 5, "one core"
    assert os.sched_getaffinity(0) == cores
    monkeypatch.setattr(simulated.rust, "run", lambda *_: "no such test")
    with pytest.raises(RuntimeError, match="no such test"):
        list(simulated.figures(quick=False))


def test_the_file_system_is_told_by_the_nearest_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benches")
    import raw  # noqa: PLC0415 - a script's folder is on the path only here

    assert raw.filesystem(Path("/proc/self")) == "proc"
    known = Path("/proc/filesystems").read_text(encoding="utf-8").split()
    assert raw.filesystem(Path("/")) in set(known) - {"proc"}


def test_one_benchmark_alone_prints_a_table() -> None:
    lines = run("--only", "hashing").splitlines()
    assert lines[0].split()[:2] == ["figure", "median"]
    expected = [name for name in FIGURES if name.startswith("block_keys")]
    assert [line.split("(")[0].strip() for line in lines[1:]] == expected
