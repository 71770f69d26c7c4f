"""``keystow inspect`` and ``keystow verify``: a store's directory for people, or as JSON.

Owns: the progress line and how results look. Never opens a file: ``keystow.inspection`` does.
Invariant: the exit status is 1 exactly if something there is broken or bad.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keystow.inspection import inspect, verify

if TYPE_CHECKING:
    import argparse
    from typing import Any, TextIO

PATIENCE_S = 1.0
"""The progress line is for what takes longer."""
TTY_PERIOD_S = 0.1
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
STEP = 1024


class Progress:
    """One live line on a terminal, after a second; nothing elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._began_s = time.monotonic()
        self._shown_s = self._began_s + PATIENCE_S - TTY_PERIOD_S
        self._there = False

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is, if the last line is old enough."""
        now_s = time.monotonic()
        if not self._live or now_s - self._shown_s < TTY_PERIOD_S:
            return
        self._shown_s, self._there = now_s, True
        share = f" ({100 * done / total:.0f} %)" if total else ""
        spent_s = now_s - self._began_s
        self._out.write(f"\r\x1b[K{done:,} of {total:,} blocks{share}, {spent_s:.0f} s")
        self._out.flush()

    def clear(self) -> None:
        """Take the live line away."""
        if self._there:
            self._out.write("\r\x1b[K")
            self._out.flush()


def bytes_text(size: float) -> str:
    """Return a size for people: 1.5 GiB."""
    for unit in UNITS[:-1]:
        if size < STEP:
            return f"{size:.1f} {unit}" if unit != UNITS[0] else f"{size:.0f} {unit}"
        size /= STEP
    return f"{size:.1f} {UNITS[-1]}"


def time_text(unix_s: int | None) -> str:
    """Return a time of day for people, in UTC."""
    if unix_s is None:
        return "never"
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def described(member: dict[str, Any]) -> list[str]:
    """Return what one directory holds, a line each."""
    state = ", in use" if member["locked"] else ""
    lines = [f"{member['path']}: {bytes_text(member['bytes'])} on disk{state}"]
    error, found = member["error"], member["contents"]
    if found is None:
        return [*lines, f"  [{error['code']}]: {error['message']} Hint: {error['hint']}"]
    closed = "closed in order" if found["clean"] else "not closed in order"
    rows = {
        "layout": [found["layout"] or "unknown"],
        "format": [
            f"{found['format_version']}, epoch {found['epoch']}",
            "may be changing" if member["locked"] else closed,
        ],
        "slots": [
            f"{found['slots_used']:,} of {found['slots']:,} used",
            f"{found['stride_bytes']:,} bytes each",
            f"blocks up to {found['block_bytes']:,}",
        ],
        "blocks": [
            f"{found['live']:,} live ({bytes_text(found['live_bytes'])})",
            f"{found['chains']:,} begin a chain",
            f"{found['orphans']:,} lack their parent",
            f"{found['cycles']:,} circles cut",
        ],
        "void": [
            f"{found['stale']:,} cleared",
            f"{found['losers']:,} replaced",
            f"{found['insane']:,} insane",
        ],
        "last use": [
            f"{time_text(found['oldest_use_unix_s'])} to {time_text(found['newest_use_unix_s'])}"
        ],
        "pages": [f"{found['pages']:,}", f"{found['pages_unreadable']:,} unreadable"],
    }
    lines += [f"  {name:<9}{', '.join(said)}" for name, said in rows.items()]
    return [*lines, *(f"  warning: {warning}" for warning in found["warnings"])]


def is_broken(member: dict[str, Any]) -> bool:
    """Whether something there can't be read although nobody is writing it."""
    if member["contents"] is None:
        return True
    return bool(member["contents"]["pages_unreadable"]) and not member["locked"]


def verified(path: str, found: dict[str, Any]) -> list[str]:
    """Return what a verification found, a line each."""
    rate = bytes_text(found["bytes"] / found["seconds"] if found["seconds"] else 0)
    size, seconds = bytes_text(found["bytes"]), found["seconds"]
    counts = [
        f"{found[name]:,} {said}"
        for name, said in (
            ("good", "good"),
            ("bad", "bad"),
            ("unreadable", "unreadable"),
            ("changed", "changed meanwhile"),
            ("pages_unreadable", "table pages unreadable"),
        )
    ]
    lines = [
        f"{path}: {found['blocks']:,} blocks, {size} in {seconds:.1f} s ({rate} a second)",
        f"  {', '.join(counts)}",
    ]
    for failed in found["failed"]:
        lines += [f"  [{failed['code']}]: {failed['message']}", f"    Hint: {failed['hint']}"]
    if found["bad"] or found["unreadable"]:
        lines += ["  What is bad is a miss until it is put again; after a kill a few are normal."]
    return lines


def run_inspect(options: argparse.Namespace, *, out: TextIO | None = None) -> int:
    """Print what the directory holds."""
    members = inspect(options.path)
    if options.json:
        text = json.dumps({"path": options.path, "members": members})
    elif members:
        text = "\n\n".join("\n".join(described(member)) for member in members)
    else:
        text = f"{options.path} holds no store."
    (out or sys.stdout).write(f"{text}\n")
    return int(any(is_broken(member) for member in members))


def run_verify(
    options: argparse.Namespace, *, out: TextIO | None = None, progress_out: TextIO | None = None
) -> int:
    """Read every block and print what was found."""
    progress = Progress(progress_out or sys.stderr)
    try:
        found = verify(options.path, options.bytes_per_s, progress)
    finally:
        progress.clear()
    if options.json:
        text = json.dumps({"path": options.path, **found})
    else:
        text = "\n".join(verified(options.path, found))
    (out or sys.stdout).write(f"{text}\n")
    return int(not found["sound"])
