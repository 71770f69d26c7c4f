"""`keystow demo`: a production chat trace through a real store, every loaded byte checked.

Owns: the replay, the pattern that says what each key must hold, and the table at the end. Never
looks inside the store: it calls what any engine would. Invariants: a row is scrubbed before a get
and compared whole after it, so a byte that the get did not write counts as wrong; a request's
blocks are put only behind the prefix that was loaded and checked.
"""

import argparse
import hashlib
import itertools
import json
import math
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from keystow import Keys, Store
from keystow.trace import BLOCK_TOKENS, Request, packaged

PAGE_BYTES = 4096
KEY_BYTES = 16
BUFFER_BYTES_MAX = 64 << 20
"""Rows of the demo's own buffer: a call carries as many blocks as fit, at least one."""
TTY_PERIOD_S = 0.1
PLAIN_PERIOD_S = 10.0


class Pattern:
    """What a key must hold: a stretch of one random text, chosen by the key and signed with it.

    The key stands at head and tail and a byte of it begins every page, so that a row which is
    swapped, shifted, cut or another key's differs.
    """

    def __init__(self, block_bytes: int) -> None:
        text = hashlib.shake_128(b"keystow demo").digest(2 * block_bytes)
        self._text = memoryview(text)
        self._pages = len(range(0, block_bytes, PAGE_BYTES))
        self._repeats = math.ceil(self._pages / KEY_BYTES)
        self.block_bytes = block_bytes

    def fill(self, key: bytes, row: bytearray) -> None:
        """Write into `row` what `key` must hold."""
        start = int.from_bytes(key[:8], "little") % self.block_bytes
        # Views on both sides: the one way to copy without a temporary in between.
        memoryview(row)[:] = self._text[start : start + self.block_bytes]
        row[::PAGE_BYTES] = (key * self._repeats)[: self._pages]
        row[:KEY_BYTES] = key
        row[-KEY_BYTES:] = key


@dataclass
class Calls:
    """Every call of one verb: the seconds each took."""

    seconds: list[float] = field(default_factory=list)

    def figures(self, moved_bytes: int) -> dict[str, float]:
        """Return what the calls did together, `moved_bytes` being the bytes they copied."""
        spent_s = sum(self.seconds)
        return {
            "calls": len(self.seconds),
            "bytes": moved_bytes,
            "seconds": round(spent_s, 6),
            "gb_per_s": round(moved_bytes / spent_s / 1e9, 3) if spent_s else 0.0,
            "p50_ms": round(percentile(self.seconds, 50) * 1e3, 4),
            "p99_ms": round(percentile(self.seconds, 99) * 1e3, 4),
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile; 0 of nothing is 0."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


@dataclass
class Tally:
    """What the replay has seen so far."""

    requests: int = 0
    blocks: int = 0
    blocks_hit: int = 0
    blocks_stored: int = 0
    prompt_tokens: int = 0
    prompt_tokens_saved: int = 0
    wrong_blocks: int = 0
    wrong_bytes: int = 0
    first_wrong: str = ""
    put: Calls = field(default_factory=Calls)
    get: Calls = field(default_factory=Calls)


class Buffers:
    """The demo's own memory: rows for one call, what a row must hold, and zeroes.

    It is made before the store: while an arena is faulted in, a process maps new memory slowly.
    """

    def __init__(self, block_bytes: int, chain_blocks_max: int) -> None:
        count = min(max(1, chain_blocks_max), max(1, BUFFER_BYTES_MAX // block_bytes))
        self.rows = [bytearray(block_bytes) for _ in range(count)]
        self.expected = bytearray(block_bytes)
        self.blank = bytearray(block_bytes)
        self.pattern = Pattern(block_bytes)


class Replay:
    """Requests through a store, one after another, through the same rows."""

    def __init__(self, store: Store, buffers: Buffers) -> None:
        self._store = store
        self._pattern = buffers.pattern
        self._rows = buffers.rows
        self._expected = buffers.expected
        self._blank = buffers.blank
        self.tally = Tally()

    def serve(self, request: Request) -> None:
        """Do what an engine does: match, load the hit prefix, compute the rest, put it."""
        hashes = array("Q", request.blocks).tobytes()
        keys = self._store.keys_of(hashes, width=8)
        matched = int(self._store.match(keys))
        loaded = self._load(keys[:matched])
        self._save(keys[loaded:])
        tally = self.tally
        tally.requests += 1
        tally.blocks += len(keys)
        tally.blocks_hit += loaded
        tally.prompt_tokens += request.prompt_tokens
        tally.prompt_tokens_saved += min(loaded * BLOCK_TOKENS, request.prompt_tokens)

    def _load(self, keys: Keys) -> int:
        """Get the keys' blocks and check them; return how many came."""
        for start in range(0, len(keys), len(self._rows)):
            part = keys[start : start + len(self._rows)]
            rows = self._rows[: len(part)]
            for row in rows:
                row[:] = self._blank
            began_s = time.perf_counter()
            got = self._store.get(part, rows)
            self.tally.get.seconds.append(time.perf_counter() - began_s)
            for key, row in zip(part, rows[:got], strict=False):
                self._check(key, row)
            if got < len(part):
                return start + got
        return len(keys)

    def _check(self, key: bytes, row: bytearray) -> None:
        self._pattern.fill(key, self._expected)
        if row == self._expected:
            return
        tally = self.tally
        tally.wrong_blocks += 1
        differing = int.from_bytes(row, "little") ^ int.from_bytes(self._expected, "little")
        tally.wrong_bytes += len(row) - differing.to_bytes(len(row), "little").count(0)
        if not tally.first_wrong:
            offset = next(
                i for i, (a, b) in enumerate(zip(row, self._expected, strict=True)) if a != b
            )
            tally.first_wrong = f"key {key.hex()}, first at byte {offset} of {len(row)}"

    def _save(self, keys: Keys) -> None:
        """Put the keys' blocks, as far as the store has room for the chain."""
        for start in range(0, len(keys), len(self._rows)):
            part = keys[start : start + len(self._rows)]
            rows = self._rows[: len(part)]
            for key, row in zip(part, rows, strict=True):
                self._pattern.fill(key, row)
            began_s = time.perf_counter()
            stored = self._store.put(part, rows)
            self.tally.put.seconds.append(time.perf_counter() - began_s)
            self.tally.blocks_stored += stored
            if stored < len(part):
                return


class Progress:
    """One live line on a terminal, a plain line now and then elsewhere."""

    def __init__(self, out: TextIO, total: int) -> None:
        self._out = out
        self._total = total
        self._live = out.isatty()
        self._period_s = TTY_PERIOD_S if self._live else PLAIN_PERIOD_S
        self._began_s = self._shown_s = time.monotonic()

    def show(self, tally: Tally) -> None:
        """Show where the replay is, if the last time was long enough ago."""
        now_s = time.monotonic()
        if now_s - self._shown_s < self._period_s:
            return
        self._shown_s = now_s
        line = (
            f"{tally.requests:,} of {self._total:,} requests, "
            f"{percent(tally.blocks_hit, tally.blocks)} prefix hits, "
            f"{tally.wrong_bytes} wrong bytes, {now_s - self._began_s:.0f} s"
        )
        self._out.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        self._out.flush()

    def clear(self) -> None:
        """Take the live line away."""
        if self._live:
            self._out.write("\r\x1b[K")
            self._out.flush()


def share(part: float, whole: float) -> float:
    """Return part of whole; of nothing it is 0."""
    return part / whole if whole else 0.0


def percent(part: float, whole: float) -> str:
    """Return part of whole as per cent for people."""
    return f"{100 * share(part, whole):.1f} %"


def replay(
    options: argparse.Namespace, open_store: Callable[..., Store], progress_out: TextIO
) -> dict[str, Any]:
    """Replay the trace that `options` names and return every figure of the report."""
    requests = list(itertools.islice(packaged(options.trace), options.requests))
    chain_blocks_max = max((len(request.blocks) for request in requests), default=0)
    buffers = Buffers(options.block_bytes, chain_blocks_max)
    began_s = time.monotonic()
    with open_store(
        block_bytes=options.block_bytes, ram=options.ram, policy=options.policy
    ) as store:
        run = Replay(store, buffers)
        progress = Progress(progress_out, len(requests))
        try:
            for request in requests:
                run.serve(request)
                progress.show(run.tally)
        finally:
            progress.clear()
        seconds = time.monotonic() - began_s
        stats = store.stats()
    tally = run.tally
    return {
        "trace": options.trace,
        "policy": options.policy,
        "ram_bytes": options.ram,
        "block_bytes": options.block_bytes,
        "frames": stats.frames_total,
        "seconds": round(seconds, 3),
        "requests": tally.requests,
        "blocks": tally.blocks,
        "blocks_hit": tally.blocks_hit,
        "prefix_hit_ratio": round(share(tally.blocks_hit, tally.blocks), 6),
        "prefill_tokens": tally.prompt_tokens,
        "prefill_tokens_saved": tally.prompt_tokens_saved,
        "put": tally.put.figures(stats.bytes_in),
        "get": tally.get.figures(stats.bytes_out),
        "blocks_stored": tally.blocks_stored,
        "blocks_unstored": tally.blocks - tally.blocks_hit - tally.blocks_stored,
        "blocks_verified": tally.blocks_hit,
        "bytes_verified": tally.blocks_hit * options.block_bytes,
        "wrong_blocks": tally.wrong_blocks,
        "wrong_bytes": tally.wrong_bytes,
        "first_wrong": tally.first_wrong,
        "evictions": stats.evictions,
        "fallbacks": list(stats.fallbacks),
    }


def size_text(count: int) -> str:
    """Return bytes for people: the largest binary unit of which there is at least one."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):,.4g} {unit}"
    return f"{count} B"


def calls_text(figures: dict[str, float]) -> str:
    """Return one verb's figures as a cell of the table."""
    return (
        f"{figures['gb_per_s']:.2f} GB/s   p50 {figures['p50_ms']:.3f} ms   "
        f"p99 {figures['p99_ms']:.3f} ms   {size_text(int(figures['bytes']))} "
        f"in {int(figures['calls']):,} calls"
    )


def table(report: dict[str, Any]) -> str:
    """Return the report for people."""
    hits, blocks = report["blocks_hit"], report["blocks"]
    saved, tokens = report["prefill_tokens_saved"], report["prefill_tokens"]
    rows = {
        "requests": f"{report['requests']:,} of the {report['trace']} trace "
        f"in {report['seconds']:.1f} s",
        "prefix hits": f"{percent(hits, blocks)}   {hits:,} of {blocks:,} blocks",
        "prefill tokens saved": f"{percent(saved, tokens)}   {saved:,} of {tokens:,}",
        "put": calls_text(report["put"]),
        "get": calls_text(report["get"]),
        "bytes verified": f"{report['bytes_verified']:,}   every byte of every loaded block",
        "wrong bytes": f"{report['wrong_bytes']:,}",
        "evictions": f"{report['evictions']:,} blocks; {report['blocks_unstored']:,} found no room",
        "fell back": "; ".join(report["fallbacks"]) or "nothing",
    }
    if report["wrong_blocks"]:
        rows["WRONG"] = f"{report['wrong_blocks']:,} blocks; {report['first_wrong']}"
    head = (
        f"keystow demo: {size_text(report['ram_bytes'])} of RAM, {report['frames']:,} frames of "
        f"{size_text(report['block_bytes'])}, policy {report['policy']}"
    )
    width = max(map(len, rows))
    return "\n".join([head, "", *(f"  {name:<{width}}   {cell}" for name, cell in rows.items())])


def run(
    options: argparse.Namespace,
    *,
    open_store: Callable[..., Store] = Store,
    out: TextIO | None = None,
    progress_out: TextIO | None = None,
) -> int:
    """Run the demo, print its report; the exit status is 1 if any byte was wrong."""
    out = out or sys.stdout
    report = replay(options, open_store, progress_out or sys.stderr)
    print(json.dumps(report) if options.json else table(report), file=out)
    return 1 if report["wrong_blocks"] else 0
