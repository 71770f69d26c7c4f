"""The benchmarks run and print every figure.

Method: `benches/run.py` with tiny sizes in a child process. No time is asserted: on a shared
machine a time is no test.
"""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SIZES = ("64 KiB", "256 KiB", "1 MiB", "2 MiB")
FIGURES = [
    *(f"{verb} {size}" for size in SIZES for verb in ("put", "get")),
    "match_prefix from Python, 0.02 M entries",
    "match_prefix from Rust, 0.01 M entries",
    "match_prefix from Rust, 0.02 M entries",
    "block_keys, int64 buffer",
    "block_keys, uint32 buffer",
    "block_keys, list",
    "import keystow",
    "wheel",
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
    assert list(figures) == FIGURES
    for name, figure in figures.items():
        if name != "wheel":  # None may be built; then it says so.
            assert math.isfinite(figure["median"]), name
            assert figure["low"] <= figure["median"] <= figure["high"], name
    for verb in ("put", "get"):
        figure = figures[f"{verb} 1 MiB"]
        assert figure["ratio"] > 0
        assert figure["rival_name"]
        assert figure["verdict"] in ("ok", "below"), "the level is checked"
    assert figures["put 64 KiB"]["verdict"] == "shown"


def test_one_benchmark_alone_prints_a_table() -> None:
    lines = run("--only", "hashing").splitlines()
    assert lines[0].split()[:2] == ["figure", "median"]
    assert [line.split("(")[0].strip() for line in lines[1:]] == FIGURES[11:14]
