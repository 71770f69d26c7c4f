"""A long run of everything at once: nothing may grow, nothing may be wrong, the counters add up.

Method: ``python tests/soak.py --seconds 600``. Threads put, get, lease, match, remove and now and
then clear, on a real directory that holds less than what is put. Every block read is compared with
what was put under its key. Resident memory and open descriptors are sampled every ten seconds;
after the warm-up they must stay where they were. At the end the store is flushed and its counters
are added up, then it is opened again and read.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from disk import BLOCK_BYTES, block, keys_of, open_store, put, there
from engines import VARIABLE, refused

if TYPE_CHECKING:
    import keystow

SECONDS = 600
THREADS = 6
KEYS = 4_000
RUN_BLOCKS_MAX = 32
RAM_BLOCKS = 256
CAPACITY = "8MiB"
SAMPLE_S = 10
# Samples of the first part of the run are the warm-up: buffers and caches come to their size.
WARM_UP = 0.3
# What resident memory may grow by after it; a leak of a block a second is more in ten minutes.
GROWTH_BYTES_MAX = 2 << 20
_TARGET = Path(__file__).resolve().parent.parent / "target" / "soak"


def say(text: str) -> None:
    """Print one line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def resident_bytes() -> int:
    """Memory of this process that is there."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * mmap.PAGESIZE


def open_files() -> int:
    """Descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


class Load:
    """The threads, and what they found wrong."""

    def __init__(self, store: keystow.Store, seed: int, end: float) -> None:
        self._store, self._end = store, end
        self.calls = [0] * THREADS
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._work, args=(at, random.Random(seed + at)))
            for at in range(THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self, at: int, rng: random.Random) -> None:
        try:
            while time.monotonic() < self._end and not self.wrong:
                start = rng.randrange(KEYS)
                self._call(rng, range(start, start + rng.randrange(1, RUN_BLOCKS_MAX)))
                self.calls[at] += 1
        except BaseException:  # noqa: BLE001 - told by the main thread
            self.wrong.append(traceback.format_exc())

    def _call(self, rng: random.Random, numbers: range) -> None:
        store, keys = self._store, keys_of(numbers)
        draw = rng.random()
        if draw < 0.4:
            put(store, numbers)
        elif draw < 0.8:
            there(store, numbers)
        elif draw < 0.88:
            with store.lease(keys) as lease:
                for number, view in zip(numbers, lease, strict=False):
                    assert view == block(number), f"a lease of block {number} has other bytes"
        elif draw < 0.95:
            with store.match(keys, pin=rng.random() < 0.5) as match:
                out = bytearray(BLOCK_BYTES * len(numbers))
                got = match.get(out) * BLOCK_BYTES
                whole = b"".join(map(block, numbers))
                assert out[:got] == whole[:got], f"a match from block {numbers[0]} has other bytes"
        elif draw < 0.9998:
            store.remove(keys, durable=rng.random() < 0.2)
        else:
            store.clear()


def watched(load: Load, seconds: float) -> list[str]:
    """Sample memory and descriptors while the load runs; what is wrong with them."""
    samples: list[tuple[int, int]] = []
    begin = time.monotonic()
    step = min(SAMPLE_S, seconds / 10)
    while (passed := time.monotonic() - begin) < seconds - step and not load.wrong:
        time.sleep(step)
        samples.append((resident_bytes(), open_files()))
        memory, files = samples[-1]
        say(f"soak: {passed + step:5.0f} s, {sum(load.calls)} calls, {memory} B, {files} files")
    load.join()
    return grown(samples)


def grown(samples: list[tuple[int, int]]) -> list[str]:
    """What is higher at the end than after the warm-up."""
    warm = samples[int(len(samples) * WARM_UP) :]
    if len(warm) < 2:
        return ["too short to tell whether anything grows"]
    half = len(warm) // 2
    wrong = []
    for name, at, most in (("resident bytes", 0, GROWTH_BYTES_MAX), ("open descriptors", 1, 0)):
        before = max(sample[at] for sample in warm[:half])
        after = max(sample[at] for sample in warm[half:])
        say(f"soak: {name}: at most {before}, then {after}")
        if after > before + most:
            wrong.append(f"{name} grew from {before} to {after}, {most} may be")
    return wrong


def added_up(store: keystow.Store) -> list[str]:
    """What does not agree among the counters of a store that is flushed."""
    stats = store.stats()
    came = stats.puts + stats.put_again + stats.recovered
    left = stats.evictions + stats.removed + stats.cleared + stats.ssd_lost
    taken = stats.ssd_slots_total - stats.ssd_slots_free - stats.ssd_quarantined
    pairs = {
        "blocks = came - left": (stats.blocks, came - left),
        "blocks on SSD = blocks": (stats.ssd_blocks, stats.blocks),
        "slots taken = blocks on SSD": (taken, stats.ssd_blocks),
        "write bytes = writes": (stats.ssd_write_bytes, stats.ssd_writes * BLOCK_BYTES),
        "read bytes = reads": (stats.ssd_read_bytes, stats.ssd_reads * BLOCK_BYTES),
        "nothing pinned": (stats.frames_pinned, 0),
        "state": (stats.ssd_state, "ok"),
    }
    pairs |= {
        f"no ssd_{name}": (getattr(stats, f"ssd_{name}"), 0)
        for name in ("bad_tags", "io_errors", "disk_full", "lost", "requests_in_flight")
    }
    return [f"{name}: {a} and {b}" for name, (a, b) in pairs.items() if a != b]


def run(root: Path, seconds: float, seed: int) -> list[str]:
    """One run in a directory; what was wrong."""
    with open_store(root, ram=RAM_BLOCKS * BLOCK_BYTES, capacity=CAPACITY) as store:
        load = Load(store, seed, time.monotonic() + seconds)
        load.start()
        wrong = watched(load, seconds) + load.wrong
        left = store.flush(timeout_s=60)
        wrong += [f"a flush left {left} blocks"] if left else []
        wrong += added_up(store)
        store._validate()
        blocks = store.stats().blocks
        say(f"soak: {sum(load.calls)} calls of {THREADS} threads, {store!r}")
    with open_store(root, ram=RAM_BLOCKS * BLOCK_BYTES, capacity=CAPACITY) as store:
        found = len(there(store, range(KEYS + RUN_BLOCKS_MAX)))
        wrong += [] if found == blocks else [f"{blocks} blocks closed, {found} opened"]
    return wrong


def main() -> int:
    """Parse the options, run, clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--engine", choices=["uring", "pool"], help="default: the best here")
    parser.add_argument("--dir", type=Path, default=_TARGET, help="on the disk to be tested")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    options = parser.parse_args()
    if options.engine:
        if (why := refused(options.engine)) is not None:
            say(f"soak: {why}")
            return 1
        os.environ[VARIABLE] = options.engine
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    options.dir.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="soak-", dir=options.dir))
    say(f"soak: {options.seconds:.0f} s, --seed {seed}, in {base}")
    wrong = run(base / "kv", options.seconds, seed)
    for line in wrong:
        say(f"soak: WRONG: {line}")
    if not wrong:
        shutil.rmtree(base)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
