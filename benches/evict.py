"""Eviction and insert in a full store, beside other caches; touches of a long chain.

Method: the Rust side is a crate of its own (`benches/rivals`), so that no rival enters the
project's dependencies: full caches of 2^20 entries in one process, batches of 64 fresh keys, one
thread. From Python the same through `put` on a store of its own. A quick run stays in Python: the
rivals take a minute to build, and the network to fetch.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import keystow
from timing import Figure, Sample, fastest, interleave, scaled

ROOT = Path(__file__).resolve().parent.parent
RIVALS = ROOT / "benches" / "rivals" / "Cargo.toml"
TARGET = ROOT / "target" / "rivals"
FRAME_BYTES = 4096
KEY_BYTES = 16
BATCH = 64
LEAST_MILLION_BLOCKS = 2.0
LOCK_BLOCKS_MAX = 128
BUILD_TIMEOUT_S = 900
RUN_TIMEOUT_S = 600


def from_python(*, quick: bool) -> Figure:
    """`put` of 64 blocks a call into a full store; the keys are made before the clock starts."""
    entries = 1 << 12 if quick else 1 << 20
    batches, rounds, warm = (8, 2, 1) if quick else (1024, 9, 1)
    rng = np.random.default_rng(12)
    row = bytes(BATCH)
    with keystow.Store(block_bytes=1, ram=entries * FRAME_BYTES, prefault="now") as store:
        for _ in range(entries // BATCH + 1):
            store.put(rng.bytes(BATCH * KEY_BYTES), row)
        fresh = [rng.bytes(BATCH * KEY_BYTES) for _ in range(batches * (rounds + warm))]
        before = store.stats().evictions

        def put() -> float:
            stored = sum(store.put(fresh.pop(), row) for _ in range(batches))
            if stored != batches * BATCH:
                raise AssertionError(f"{stored} of {batches * BATCH} blocks stored")
            return float(stored)

        rates = interleave({"keystow": put}, rounds, warm)["keystow"]
        stats = store.stats()
    if stats.evictions - before < (rounds + warm) * batches * BATCH:
        raise AssertionError(f"{stats.evictions - before} evictions: the store was not full")
    return Figure(
        "evict + insert from Python, lru",
        "M blocks/s",
        scaled(rates, 1e6),
        note=held(stats.lock_blocks_max),
    )


def held(blocks: int) -> str:
    """What is said of the lock; a hold above the bound is an error, whatever the machine."""
    if blocks > LOCK_BLOCKS_MAX:
        raise AssertionError(f"{blocks} blocks in one hold of the lock")
    return f"at most {blocks} blocks a hold of the lock"


def told(lines: Iterable[str]) -> Iterator[Figure]:
    """The figures of the Rust side, which prints one JSON object a line."""
    objects: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
    contest = [entry for entry in objects if entry["kind"] != "touch"]
    rates = {entry["name"]: scaled(Sample(tuple(entry["rates"])), 1e6) for entry in contest}
    rivals = [entry for entry in contest if entry["kind"] == "rival"]
    best = fastest(rates, (entry["name"] for entry in rivals))
    for entry in contest:
        name = entry["name"]
        title = f"evict + insert, {name}"
        if entry["kind"] == "ours":
            yield Figure(
                title, "M blocks/s", rates[name], rates[best], best, least=LEAST_MILLION_BLOCKS
            )
        else:
            note = f"keeps {entry['kept']:.0%} of a round's keys"
            yield Figure(title, "M blocks/s", rates[name], note=note)
    for entry in objects:
        if entry["kind"] == "touch":
            yield Figure(
                f"touch of {entry['blocks']:,} blocks, {entry['name']}",
                "us",
                Sample(tuple(entry["us"])),
                note=held(entry["lock_blocks_max"]),
            )


def from_rust() -> Iterator[Figure]:
    """Build the rivals and run the contest; without cargo or the network, say so instead."""
    cargo = shutil.which("cargo")
    if cargo is None:
        print("no cargo on the path: eviction from Rust is left out", file=sys.stderr)
        return
    options = ["--release", "--locked", "--manifest-path", str(RIVALS), "--target-dir", str(TARGET)]
    build = subprocess.run(
        [cargo, "build", "--quiet", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_TIMEOUT_S,
    )
    if build.returncode != 0:
        print(f"eviction from Rust is left out, no rivals:\n{build.stderr}", file=sys.stderr)
        return
    done = subprocess.run(
        [cargo, "run", "--quiet", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_TIMEOUT_S,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the rivals ended with {done.returncode}:\n{done.stderr}")
    yield from told(done.stdout.splitlines())


def figures(*, quick: bool) -> Iterator[Figure]:
    """From Python, then, unless quick, beside the rivals."""
    yield from_python(quick=quick)
    if quick:
        print("a quick run builds no rivals: eviction from Rust is left out", file=sys.stderr)
    else:
        yield from from_rust()
