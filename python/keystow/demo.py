"""`keystow demo`: a production chat trace through a real store of two tiers, every byte checked.

Owns: which process owns the store and when it is killed, the directory of the SSD tier, the
progress line. Never opens a store itself. Invariants: whatever way the demo ends but by SIGKILL, no
process and no directory of it stays; the directory is a new one, so nobody's blocks are touched;
the process that owned the store was serving requests when it was killed.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from types import FrameType
from typing import Any, TextIO

from keystow import KeystowError, Store
from keystow.demo_figures import Tally, figures, percent, table
from keystow.demo_owner import COMMAND, OpenStore, Owner, Task, Told, own
from keystow.demo_replay import Served
from keystow.trace import packaged

TTY_PERIOD_S = 0.1
PLAIN_PERIOD_S = 10.0
RUN_ON_REQUESTS = 8
"""How far an owner that is to be killed goes on meanwhile: it is killed at work, and near half."""


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

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self.clear()
        self._out.write(f"{line}\n")
        self._out.flush()

    def clear(self) -> None:
        """Take the live line away."""
        if self._live:
            self._out.write("\r\x1b[K")
            self._out.flush()


class Leaving(SystemExit):
    """A signal asked the demo to end."""


@contextlib.contextmanager
def ending_tidily() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the demo, as Ctrl-C does, instead of cutting it off."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise Leaving(128 + number)

    taken = []
    if threading.current_thread() is threading.main_thread():
        # Who ignores a signal, as nohup does, goes on ignoring it.
        taken = [
            n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL
        ]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def new_folder(parent: str | None) -> Iterator[str]:
    """Make a directory in `parent`, or where temporary files go, and take it away at the end."""
    try:
        folder = tempfile.TemporaryDirectory(
            prefix="keystow-demo-", dir=parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise KeystowError(
            f"no new directory in {parent or 'the place for temporary files'}: {error.strerror}.",
            hint="name a directory on a local disk with --dir, or go without by --ssd 0.",
        ) from None
    with folder as path:
        yield path


def killed_half_way(
    task: Task, tally: Tally, command: Sequence[str]
) -> Generator[Told, None, None]:
    """Yield what two processes tell: the first is killed half way, the second goes on from there.

    The request that was in progress at the kill is asked again; `tally` counts what was told.
    """
    half = (task.start + task.stop + 1) // 2
    first = replace(task, stop=min(half + RUN_ON_REQUESTS, task.stop), await_kill=True)
    with Owner(first, command) as owner:
        told = 0
        for message in owner.messages():
            told += isinstance(message, Served)
            if told == half - task.start:
                # What it tells until it is gone still comes, and counts.
                owner.kill()
            yield message
    tally.end(killed=True)
    with Owner(replace(task, start=task.start + told), command) as owner:
        yield from owner.messages()


def replay(
    options: argparse.Namespace,
    open_store: OpenStore,
    progress_out: TextIO,
    command: Sequence[str],
) -> dict[str, Any]:
    """Replay the trace that `options` names and return every figure of the report."""
    total = sum(1 for _ in packaged(options.trace))
    total = min(total, options.requests or total)
    on_disk = options.ssd > 0
    tally = Tally()
    progress = Progress(progress_out, total)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(new_folder(options.dir)) if on_disk else ""
        task = Task(
            trace=options.trace,
            start=0,
            stop=total,
            block_bytes=options.block_bytes,
            ram_bytes=options.ram,
            ssd_bytes=options.ssd,
            folder=folder,
            policy=options.policy,
        )
        began_s = served_s = time.monotonic()
        killing = on_disk and not options.no_kill
        told = killed_half_way(task, tally, command) if killing else own(task, open_store)
        stack.callback(progress.clear)
        for message in stack.enter_context(closing(told)):
            tally.add(message)
            if isinstance(message, Served):
                served_s = time.monotonic()
                progress.show(tally)
            elif message is tally.reopened:
                progress.say(
                    f"killed the owner of the store at request {tally.killed_at_request:,}; the "
                    f"next one opened in {message.open_s:.3f} s and found {message.recovered:,} "
                    "blocks, all verified"
                )
        tally.end()
    return {
        "trace": options.trace,
        "policy": options.policy,
        "ram_bytes": options.ram,
        "ssd_bytes": options.ssd,
        "block_bytes": options.block_bytes,
        "seconds": round(served_s - began_s, 3),
        **figures(tally, options.block_bytes, tiers=2 if on_disk else 1),
    }


def run(
    options: argparse.Namespace,
    *,
    open_store: OpenStore = Store,
    command: Sequence[str] = COMMAND,
    out: TextIO | None = None,
    progress_out: TextIO | None = None,
) -> int:
    """Run the demo, print its report; the exit status is 1 if any byte was wrong.

    The store is opened by `open_store`, or by the processes that `command` starts where one is to
    be killed.
    """
    out = out or sys.stdout
    with ending_tidily():
        report = replay(options, open_store, progress_out or sys.stderr, command)
    print(json.dumps(report) if options.json else table(report), file=out)
    return 1 if report["wrong_blocks"] else 0
