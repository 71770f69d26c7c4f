"""``keystow replay``: a trace through several policies and sizes, as a table or as JSON.

Owns: the progress line and how results look. Never counts anything: ``keystow.replay`` does.
Invariant: the figures of the table are rounded from those of the JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from keystow import Trace, replay
from keystow.config import check_choice
from keystow.replay import POLICIES
from keystow.trace import TRACES, packaged_file

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any, TextIO

    from keystow import Replay

TTY_PERIOD_S = 0.1
RESULT_KEYS = (
    "policy",
    "ram_blocks",
    "ssd_blocks",
    "plain_hits",
    "prefix_hits",
    "prefix_hit_ratio",
    "ram_hits",
    "ssd_hits",
    "ssd_writes",
    "evictions",
)


class Progress:
    """One live line on a terminal; nothing elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._began_s = time.monotonic()
        self._shown_s = 0.0

    def show(self, line: str) -> None:
        """Show a line, if the last one is old enough."""
        now_s = time.monotonic()
        if self._live and now_s - self._shown_s >= TTY_PERIOD_S:
            self._shown_s = now_s
            self._out.write(f"\r\x1b[K{line}, {now_s - self._began_s:.0f} s")
            self._out.flush()

    def clear(self) -> None:
        """Take the live line away."""
        if self._live:
            self._out.write("\r\x1b[K")
            self._out.flush()


def load(names: Sequence[str], *, strict: bool) -> Trace:
    """Return the parts of one trace: a word names a packaged one, anything else is a path."""
    with ExitStack() as files:
        packaged = {n: files.enter_context(packaged_file(n)) for n in names if n in TRACES}
        return Trace(*(packaged.get(name, name) for name in names), strict=strict)


def replay_all(
    trace: Trace, policies: Sequence[str], options: argparse.Namespace, progress: Progress
) -> list[Replay]:
    """Replay the trace with every policy and size."""
    results: list[Replay] = []
    for policy in policies:
        for ram_blocks in options.ram_blocks:
            head = f"{policy}, {ram_blocks:,} blocks: "
            results.append(
                replay(
                    trace,
                    policy,
                    ram_blocks=ram_blocks,
                    chains=not options.textbook,
                    progress=lambda served, head=head: progress.show(  # type: ignore[misc]
                        f"{head}{served:,} of {trace.requests:,} requests"
                    ),
                )
            )
    return results


def report(trace: Trace, names: Sequence[str], results: Sequence[Replay]) -> dict[str, Any]:
    """Return every figure for programs."""
    return {
        "traces": list(names),
        "requests": trace.requests,
        "refs": trace.refs,
        "unique": trace.unique,
        "malformed": trace.malformed,
        "malformed_lines": [
            {"source": source, "line": line, "why": why}
            for source, line, why in trace.malformed_lines
        ],
        "chains": all(result.chains for result in results),
        "results": [{key: getattr(result, key) for key in RESULT_KEYS} for result in results],
    }


def table(trace: Trace, names: Sequence[str], results: Sequence[Replay]) -> str:
    """Return the figures for people."""
    rule = "the store's rule" if all(result.chains for result in results) else "textbook rule"
    head = [
        f"keystow replay: {' + '.join(names)}, {rule}",
        f"{trace.requests:,} requests for {trace.refs:,} blocks, {trace.unique:,} different",
    ]
    for source, line, why in trace.malformed_lines:
        head.append(f"skipped {source}, line {line}: {why}")
    if trace.malformed > len(trace.malformed_lines):
        head.append(f"skipped {trace.malformed:,} malformed lines in all")
    rows = [("policy", "RAM blocks", "prefix hits", "", "plain hits", "evictions")]
    rows += [
        (
            result.policy,
            f"{result.ram_blocks:,}",
            f"{100 * result.prefix_hit_ratio:.2f} %",
            f"{result.prefix_hits:,}",
            f"{result.plain_hits:,}",
            f"{result.evictions:,}",
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([*head, "", *(f"  {line}" for line in lines)])


def run(
    options: argparse.Namespace, *, out: TextIO | None = None, progress_out: TextIO | None = None
) -> int:
    """Replay what `options` ask for and print the figures."""
    policies = [check_choice(name, "policy", POLICIES) for name in options.policy]
    progress = Progress(progress_out or sys.stderr)
    try:
        progress.show(f"reading {', '.join(options.traces)}")
        trace = load(options.traces, strict=options.strict)
        results = replay_all(trace, policies, options, progress)
    finally:
        progress.clear()
    if options.json:
        text = json.dumps(report(trace, options.traces, results))
    else:
        text = table(trace, options.traces, results)
    (out or sys.stdout).write(f"{text}\n")
    return 0
