"""The figures of the Rust side: `cargo bench` and `cargo test`, and what they print.

Owns: how cargo is called. Never knows what is measured. A quick run takes the profiles that tests
have built already; its times mean nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CARGO_TIMEOUT_S = 900


def found() -> bool:
    """Whether there is a cargo; without it, it is said that figures are left out."""
    there = shutil.which("cargo") is not None
    if not there:
        print("no cargo on the path: figures from Rust are left out", file=sys.stderr)
    return there


def bench(name: str, *, quick: bool) -> list[dict[str, Any]]:
    """What `rust/core/benches/<name>.rs` prints: one JSON object a line; none without cargo."""
    if not found():
        return []
    profile = ["--profile", "dev"] if quick else []
    command = ["bench", "--quiet", "--locked", "-p", "keystow-core", "--bench", name, *profile]
    lines = run([*command, "--", *(["--quick"] if quick else [])]).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def run(arguments: list[str], environment: dict[str, str] | None = None) -> str:
    """What cargo prints, run in this project."""
    done = subprocess.run(
        ["cargo", *arguments],  # noqa: S607 - whichever the user has
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=CARGO_TIMEOUT_S,
    )
    if done.returncode != 0:
        command = " ".join(["cargo", *arguments])
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
