"""One block at a time from SSD, and batched gets while the cleaner writes, over both engines.

Method: the stores, the disk and the raw loop of `ssd.py`. Latency: `get` of one block that is on
SSD alone, into huge pages, a millisecond of rest before each; the raw read is one `preadv` with
O_DIRECT of as many bytes from this thread, by turns with it. The level holds for the median and for
the 99th of a hundred. Busy: batched gets, alone and while another thread puts new chains as fast as
they are written, by turns; the time of each batch is kept. Engines: the rounds of `ssd.py` over the
ring and the pool by turns; beside the raw loop the best of them stands there.
"""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import keystow
from copies import KEY_BYTES, gigabytes, huge_memory, label
from raw import RawLoop
from ssd import QUICK, Bench, Size, scratch
from timing import Figure, Sample, interleave

ENGINES = ("uring", "pool")
SIZES = (64 << 10, 1 << 20)
REST_S = 0.001
CALLS, CALLS_QUICK = 300, 20
LATENCY_ABOVE_RAW_US = 15.0
LEAST_OF_EACH_OTHER = 0.85
LEAST_WHILE_WRITING = 0.6
EACH_OTHER_BYTES = 1 << 20


@contextmanager
def opened(size: Size, block_bytes: int, home: Path, raw: RawLoop) -> Iterator[dict[str, Bench]]:
    """A full store an engine; an engine that does not work here is left out, with the reason."""
    benches = {}
    with ExitStack() as stack:
        for name in ENGINES:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=home)))
            try:
                bench = Bench(size, block_bytes, directory, raw.memory, name)
            except keystow.KeystowError as error:
                print(f"no figures of {name}: {error}")
                continue
            stack.enter_context(bench.store)
            bench.fill()
            benches[name] = bench
        yield benches


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all is below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def heads_on_ssd(bench: Bench, most: int) -> list[bytes]:
    """Keys of first blocks of chains that are on SSD alone."""
    heads = (keys[:KEY_BYTES] for keys in bench.put_keys)
    return [key for key in heads if bench.store.match(key).ssd == 1][:most]


def latencies(
    benches: dict[str, Bench], raw: RawLoop, block_bytes: int, calls: int
) -> Iterator[Figure]:
    """One block that is on SSD alone, from a store and from the raw file, by turns."""
    row = huge_memory(block_bytes).reshape(1, block_bytes)
    blocks = benches[next(iter(benches))].blocks_at_random()

    def get(name: str, turn: int) -> None:
        if benches[name].store.get(heads[name][turn], row) != 1:
            raise AssertionError("a block that was on SSD is missing")

    def read(turn: int) -> None:
        moved = os.preadv(raw.file, [row.data], blocks[turn % len(blocks)] * block_bytes)
        if moved != block_bytes:
            raise AssertionError(f"{moved} of {block_bytes} bytes")

    work: dict[str, Callable[[int], None]] = {"raw": read}
    for name in benches:
        work[name] = lambda turn, name=name: get(name, turn)
    heads = {name: heads_on_ssd(bench, calls) for name, bench in benches.items()}
    calls = min(len(keys) for keys in heads.values())
    before = {name: bench.store.stats().ssd_reads for name, bench in benches.items()}
    took: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(calls):
        for name, call in work.items():
            time.sleep(REST_S)
            start = time.perf_counter()
            call(turn)
            took[name].append((time.perf_counter() - start) * 1e6)
    for name, bench in benches.items():
        read_blocks = bench.store.stats().ssd_reads - before[name]
        if read_blocks != calls:
            raise AssertionError(f"{read_blocks} of {calls} blocks came from SSD")
    rival = f"raw preadv of one block, {calls} calls"
    for name in benches:
        for what, share in (("p50", 0.5), ("p99", 0.99)):
            ours, theirs = percentile(took[name], share), percentile(took["raw"], share)
            level = theirs + LATENCY_ABOVE_RAW_US if name == "uring" else None
            title = f"get of one {label(block_bytes)}, idle, {name}, {what}"
            yield Figure(title, "us", Sample((ours,)), Sample((theirs,)), rival, most=level)


def against_each_other(verb: str, benches: dict[str, Bench], block_bytes: int) -> Iterator[Figure]:
    """Rounds over each engine by turns; nothing where there is one alone."""
    if len(benches) < len(ENGINES):
        return
    work = {name: bench.put if verb == "write" else bench.get for name, bench in benches.items()}
    rounds = benches[ENGINES[0]].size.rounds
    samples = interleave(work, rounds)
    ring, pool = (gigabytes(samples[name]) for name in ENGINES)
    what = f"{'write-behind' if verb == 'write' else 'get'} {label(block_bytes)}"
    least = LEAST_OF_EACH_OTHER if block_bytes >= EACH_OTHER_BYTES else None
    yield Figure(f"{what}, uring by pool", "GB/s", ring, pool, "pool", least_ratio=least)
    yield Figure(f"{what}, pool by uring", "GB/s", pool, ring, "uring", least_ratio=least)


def while_writing(bench: Bench, name: str) -> Iterator[Figure]:
    """Batched gets of some chains, alone and while another thread puts new ones, by turns."""
    chains = list(chains_on_ssd(bench))
    took: list[float] = []
    rates: dict[str, list[float]] = {"beside": [], "alone": []}
    moved = 0
    for turn in range(2 * (1 + bench.size.rounds)):
        what = "beside" if turn % 2 else "alone"
        bench.store.flush()
        with writing(bench) if what == "beside" else nullcontext():
            times, got = read_all(bench, chains)
        if turn > 1:  # After a round that is not counted.
            rates[what].append(got * bench.block_bytes / sum(times) / 1e9)
            moved += got
            took += times if what == "beside" else []
    title = f"get {label(bench.block_bytes)} while writing, {name}"
    asked = 2 * bench.size.rounds * len(chains) * bench.size.batch
    idle = f"idle; {moved / asked:.0%} of the blocks still there"
    beside, alone = (Sample(tuple(rates[what])) for what in ("beside", "alone"))
    yield Figure(title, "GB/s", beside, alone, idle, least_ratio=LEAST_WHILE_WRITING)
    worst, middle = percentile(took, 0.99) * 1e3, statistics.median(took) * 1e3
    batch = f"a batch of {bench.size.batch}; median {middle:.1f}"
    yield Figure(f"{title}, p99", "ms", Sample((worst,)), note=batch)


@contextmanager
def writing(bench: Bench) -> Iterator[None]:
    """A thread that puts new chains as fast as it can."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            bench.store.put(bench.rng.bytes(KEY_BYTES * bench.size.batch), bench.source)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def read_all(bench: Bench, chains: list[bytes]) -> tuple[list[float], int]:
    """The seconds of each get, and how many blocks were there."""
    times, got = [], 0
    for keys in chains:
        start = time.perf_counter()
        got += bench.store.get(keys, bench.rows[: bench.size.batch])
        times.append(time.perf_counter() - start)
    return times, got


def chains_on_ssd(bench: Bench) -> Iterator[bytes]:
    """As many chains as twice the RAM has room for: what is read in turn has left it again.

    The writer takes the place of what was not read for longest: of the others.
    """
    room = 2 * bench.size.ram_bytes
    for keys in bench.put_keys:
        if room > 0 and bench.store.match(keys).blocks == bench.size.batch:
            room -= bench.source.nbytes
            yield keys


def figures(*, quick: bool, directory: Path | None = None) -> Iterator[Figure]:
    """Latency, the engines by turns, and reads beside writes, at two block sizes."""
    size = QUICK if quick else replace(Size(), round_bytes=512 << 20)
    calls = CALLS_QUICK if quick else CALLS
    with scratch(directory) as home:
        memory = huge_memory(size.ram_bytes)
        raw = RawLoop(home, size.ssd_bytes, memory, (4, 5))
        for block_bytes in SIZES:
            with opened(size, block_bytes, home, raw) as benches:
                yield from against_each_other("write", benches, block_bytes)
                for bench in benches.values():
                    bench.keep_those_on_ssd()
                    bench.verify()
                yield from against_each_other("read", benches, block_bytes)
                yield from latencies(benches, raw, block_bytes, calls)
                for name, bench in benches.items():
                    yield from while_writing(bench, name)
        raw.close()
