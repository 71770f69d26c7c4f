"""One directory's life: owners are started, killed and followed by damage and a reopening.

Owns: the directory, the truth about it, the processes that use it. Never does: choose how long or
how often; that is drawn in `campaign`. Invariant: when a step returns, no process of it is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import keystow
from crash.damage import Damage
from crash.truth import Truth
from crash.universe import Universe, version_of
from crash.wire import Decoder, Kind, Record

if TYPE_CHECKING:
    import random

PIPE_BYTES = 1 << 20
CHILD_S = 60
TRIGGER_S = 1.0
GET_BYTES = 8 << 20
FAULTS_SHOWN = 8
DONOR_THREAD = 99
_TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Counts:
    """What a campaign has done."""

    cycles: int = 0
    damaged: int = 0
    kills: int = 0
    kills_at_open: int = 0
    resets: int = 0
    verified_bytes: int = 0
    read_live: int = 0
    wrong: int = 0
    promised: int = 0
    missing: int = 0
    # Cycles of each I/O engine; they take turns.
    by_engine: dict[str, int] = field(default_factory=dict)


class ChildProcess:
    """A child and what it has told."""

    def __init__(self, orders: dict[str, object]) -> None:
        self.records: list[Record] = []
        self.seen: dict[Kind, threading.Event] = {
            kind: threading.Event() for kind in (Kind.OPENED, Kind.QUIET, Kind.FAULT)
        }
        # The record after which the child is killed at once, and when that was.
        self.trigger: Kind | None = None
        self._killed_s: float | None = None
        self._read_end, write_end = os.pipe()
        fcntl.fcntl(self._read_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        text = json.dumps({**orders, "pipe": write_end})
        command = [sys.executable, "-m", "crash.child", text]
        self.process = subprocess.Popen(command, cwd=_TESTS, pass_fds=[write_end])
        os.close(write_end)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        decoder = Decoder()
        while piece := os.read(self._read_end, PIPE_BYTES):
            for record in decoder.feed(piece):
                self.records.append(record)
                if record.kind == self.trigger and self._killed_s is None:
                    self._killed_s = time.monotonic()
                    self.process.kill()
                if record.kind in self.seen:
                    self.seen[record.kind].set()
                if record.kind == Kind.FAULT:
                    for event in self.seen.values():
                        event.set()

    def wait(self, kind: Kind) -> bool:
        """Wait until it has told this, or failed."""
        return self.seen[kind].wait(CHILD_S)

    def kill_after(self, kind: Kind) -> float:
        """Kill it as soon as it tells this, or a little later; return when."""
        self.trigger = kind
        if kind == Kind.CLEAR_END:
            self.process.send_signal(signal.SIGUSR2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(TRIGGER_S)
        killed_s = self.end(signal.SIGKILL)
        return killed_s if self._killed_s is None else self._killed_s

    def end(self, number: signal.Signals) -> float:
        """Send the signal and wait for the end; return when it was sent."""
        sent_s = time.monotonic()
        self.process.send_signal(number)
        try:
            self.process.wait(CHILD_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join()
            os.close(self._read_end)
        return sent_s


@dataclass
class Life:
    """One directory and what is known of it."""

    folder: Path
    universe: Universe
    capacity: int
    ram: int
    roomy: bool
    rng: random.Random
    counts: Counts
    step: int = 0
    foreign: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = self.folder / "root"
        self.truth = Truth(self.universe)
        self._make_donor()

    @property
    def files(self) -> Path:
        """Where the store's files are."""
        (member,) = self.root.glob("*/0")
        return member

    def _open(self, root: Path, on_mismatch: str = "error") -> keystow.Store:
        ssd = keystow.Ssd(root, self.capacity, on_mismatch=on_mismatch)  # type: ignore[arg-type]
        size = self.universe.block_bytes
        return keystow.Store(
            block_bytes=size, ram=self.ram, ssd=ssd, io_timeout_s=20, put_wait_s=30
        )

    def _make_donor(self) -> None:
        """Make another store of the same keys, whose files may come in the way of ours."""
        root = self.folder / "donor"
        version = version_of(1, DONOR_THREAD, 1, 0)
        with self._open(root) as store:
            for first in range(0, self.universe.keys // 3, self.universe.chain_blocks):
                count = self.universe.chain_blocks
                blocks = self.universe.blocks(first, count, version)
                store.put(self.universe.run(first, count), blocks)
        (self.donor,) = root.glob("*/0")
        self.donor_version = version

    # ---- owners ----

    def _start(self, *, clears: bool) -> ChildProcess:
        self.step += 1
        return ChildProcess(
            {
                "root": str(self.root),
                "capacity": self.capacity,
                "ram": self.ram,
                "step": self.step + 1,
                "seed": self.rng.randrange(1 << 62),
                "seed_of_keys": self.universe.seed,
                "chains": self.universe.chains,
                "chain_blocks": self.universe.chain_blocks,
                "block_bytes": self.universe.block_bytes,
                "clears": clears,
            }
        )

    def _learn(self, child: ChildProcess, ended_s: float, *, quiet: bool, closed: bool) -> None:
        for record in child.records:
            self.truth.take(record)
        opened = any(record.kind == Kind.OPENED for record in child.records)
        self.truth.died(ended_s, closed=closed)
        if opened and not quiet and not self.roomy:
            # What the last instants evicted nobody knows.
            self.truth.forgive()

    def kill_at_open(self, delay_s: float) -> None:
        """Start an owner and kill it while it opens the directory, or soon after."""
        child = self._start(clears=False)
        time.sleep(delay_s)
        killed_s = child.end(signal.SIGKILL)
        self._learn(child, killed_s, quiet=False, closed=False)
        self.counts.kills += 1
        self.counts.kills_at_open += not child.seen[Kind.OPENED].is_set()
        self.log.append(f"killed {delay_s:.2f} s after its start, {len(child.records)} records")

    def kill_at_work(
        self, delay_s: float, *, settle_s: float = 0, after: Kind | None = None
    ) -> None:
        """Start an owner and kill it in its work, after some quiet, or as soon as it tells this."""
        child = self._start(clears=self.rng.random() < 0.5)
        child.wait(Kind.OPENED)
        time.sleep(delay_s)
        quiet = settle_s > 0
        if quiet:
            child.process.send_signal(signal.SIGUSR1)
            quiet = child.wait(Kind.QUIET)
            time.sleep(settle_s)
        killed_s = child.kill_after(after) if after else child.end(signal.SIGKILL)
        self._learn(child, killed_s, quiet=quiet, closed=False)
        self.counts.kills += 1
        what = f"quiet for {settle_s:.2f} s" if quiet else f"at {after.name if after else 'work'}"
        self.log.append(f"killed after {delay_s:.2f} s, {what}, {len(child.records)} records")

    def close_at_work(self, delay_s: float) -> None:
        """Start an owner and let it close in order."""
        child = self._start(clears=self.rng.random() < 0.3)
        child.wait(Kind.OPENED)
        time.sleep(delay_s)
        ended_s = child.end(signal.SIGTERM)
        closed = [record for record in child.records if record.kind == Kind.CLOSED]
        whole = bool(closed) and closed[0].items == (0, 0)
        if self.roomy and not whole:
            what = f"left and dropped {closed[0].items}" if closed else "did not end"
            self.truth.faults.append(f"a close with room for all {what}")
        self._learn(child, ended_s, quiet=False, closed=whole and self.roomy)
        self.log.append(f"closed after {delay_s:.2f} s, {len(child.records)} records")

    # ---- between owners ----

    def strike(self, times: int) -> None:
        """Damage the directory."""
        damage = Damage(self.files, self.donor, self.folder / "old", self.rng)
        self.truth.forgive()
        for _ in range(times):
            self.log.append(damage.strike())
        if damage.turned_back:
            self.truth.turn_back()
        self.foreign |= damage.foreign
        if self.foreign >= {"SUPER", "table", "slots.0000"}:
            self.truth.adopt(self.donor_version, self.universe.keys)

    def snapshot(self) -> None:
        """Keep the files as they are, to be restored later."""
        Damage(self.files, self.donor, self.folder / "old", self.rng).snapshot()

    def resize(self, capacity: int) -> None:
        """Open with another capacity from now on."""
        if capacity < self.capacity:
            self.truth.forgive()
            self.roomy = False
        self.log.append(f"capacity {self.capacity} -> {capacity}")
        self.capacity = capacity

    # ---- reopening ----

    def verify(self, *, damaged: bool) -> None:
        """Reopen, look for every key, read what is there, check it; close in order."""
        try:
            store = self._open(self.root)
        except keystow.FormatError as error:
            self.log.append(f"reset: {error}")
            self.counts.resets += 1
            if not damaged:
                self.truth.faults.append(f"a kill left a directory that is refused: {error}")
            self.truth.forgive()
            store = self._open(self.root, on_mismatch="reset")
        with store:
            delivered = self._read(store)
            self._check_kept(store, delivered)
            self._check_size()
            recount = store._validate()
            self.log.append(f"found {delivered.sum()}, recount {recount['blocks']} blocks")
        self.truth.kept = delivered

    def _check_size(self) -> None:
        """Compare what is on disk with what was asked."""
        size = sum(path.stat().st_size for path in self.files.iterdir())
        if size > self.capacity:
            self.truth.faults.append(f"{size} bytes on disk, {self.capacity} allowed")

    def _read(self, store: keystow.Store) -> np.ndarray:
        """Read all that is there and judge it; say which keys were delivered."""
        universe = self.universe
        numbers = np.flatnonzero(store.contains(universe.packed))
        delivered = np.zeros(universe.keys, bool)
        step = max(1, GET_BYTES // universe.block_bytes)
        for at in range(0, len(numbers), step):
            some = numbers[at : at + step]
            out = universe.out(len(some))
            keys = b"".join(universe.run(int(number), 1) for number in some)
            got = np.array(store.get_each(keys, out), bool)
            versions = universe.versions(some[got], out[got])
            self.truth.found(some[got], versions)
            self.counts.verified_bytes += int(got.sum()) * universe.block_bytes
            delivered[some[got]] = True
        return delivered

    def _check_kept(self, store: keystow.Store, delivered: np.ndarray) -> None:
        kept, length = self.truth.kept, self.universe.chain_blocks
        missing = np.flatnonzero(kept & ~delivered)
        self.counts.promised += int(kept.sum())
        self.counts.missing += len(missing)
        if len(missing):
            there = store.contains(b"".join(self.universe.run(int(n), 1) for n in missing))
            text = f"{len(missing)} of {kept.sum()} promised blocks are missing ({sum(there)} of "
            self.truth.faults.append(f"{text}them unreadable), the first: {missing[:20].tolist()}")
        runs = np.logical_and.accumulate(kept.reshape(-1, length), axis=1).sum(axis=1)
        for chain, run in enumerate(runs.tolist()):
            matched = store.match_prefix(self.universe.run(chain * length, length))
            if matched < run and not len(missing):
                text = f"chain {chain}: {run} promised blocks in a row, {matched} match"
                self.truth.faults.append(text)

    def reopen_again(self) -> None:
        """After a close everything that was delivered is there."""
        with self._open(self.root) as store:
            there = np.array(store.contains(self.universe.packed))
        lost = int((self.truth.kept & ~there).sum())
        self.counts.promised += int(self.truth.kept.sum())
        self.counts.missing += lost
        if lost:
            self.truth.faults.append(f"{lost} blocks delivered before the close are missing")

    def remove(self) -> None:
        """Delete everything on disk."""
        shutil.rmtree(self.folder)
