"""Write-behind to SSD and batched gets from it, against a raw loop on the same disk; tags.

Method: a store whose RAM is a sixteenth of its SSD, both full before anything is timed, so that
every block written takes the place of an older one (second pass). Write-behind: unique blocks, 8
times RAM a round, put until `flush()` leaves nothing; that includes the table and fdatasync. Get:
batches of 32 blocks that are on SSD alone, in turn, into huge pages. The raw loop (`raw.py`) moves
as many bytes in blocks of the same size on a file beside the store's, in its second pass too, with
as many threads as the store has for it, without fdatasync and without a pause between batches; once
more it copies each block into its memory before the write, as a put has to. That
nothing was dropped, and that every block got came from the disk, is checked in every round.
"""

import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

import keystow
import rust
from copies import KEY_BYTES, Bytes, gigabytes, huge_memory, label
from raw import RawLoop, filesystem
from timing import Figure, Sample, Work, interleave

ROOT = Path(__file__).resolve().parent.parent
# Of the raw loop's rate, by direction and block size.
LEAST_RATIOS = {
    ("get", 64 << 10): 0.9,
    **{
        (verb, size): 0.95
        for verb in ("get", "write-behind")
        for size in (256 << 10, 1 << 20, 4 << 20)
    },
}
MOST_TAG_MS_PER_GB = 45.0
# The threads of the pool engine, of which background writes take one less: as many transfers are
# under way at once.
READERS = 5
WRITERS = READERS - 1
# Of the SSD's room, so much is tables.
TABLE_SHARE = 32


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    ram_bytes: int = 128 << 20
    ssd_bytes: int = 2 << 30
    block_sizes: tuple[int, ...] = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
    batch: int = 32
    round_bytes: int = 1 << 30
    rounds: int = 5


QUICK = Size(8 << 20, 64 << 20, (64 << 10, 256 << 10, 1 << 20), 2, 16 << 20, 2)


@contextmanager
def scratch(directory: Path | None) -> Iterator[Path]:
    """A new folder for files of a benchmark, gone afterwards; by default beside build outputs."""
    parent = directory or ROOT / "target"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as path:
        if filesystem(Path(path)) in {"tmpfs", "ramfs"}:
            print(f"{parent} is memory: what is measured there is no disk", file=sys.stderr)
        yield Path(path)


class Metered:
    """Work of which the processor time is noted too: of all threads, user and system."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.ms_per_gb: list[float] = []

    def __call__(self) -> float:
        """One round."""
        before = resource.getrusage(resource.RUSAGE_SELF)
        done = self.work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.ms_per_gb.append(spent_s * 1e3 / (done / 1e9))
        return done


@dataclass
class Bench:
    """One block size: a store on a disk, and the blocks it is given."""

    size: Size
    block_bytes: int
    directory: Path
    memory: Bytes
    engine: Literal["auto", "uring", "pool"] = "auto"
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(13))

    def __post_init__(self) -> None:
        room = self.size.ssd_bytes + self.size.ssd_bytes // TABLE_SHARE
        self.store = keystow.Store(
            block_bytes=self.block_bytes,
            ram=self.size.ram_bytes,
            ssd=keystow.Ssd(self.directory, room, engine=self.engine),
            prefault="now",
        )
        shape = (self.size.batch, self.block_bytes)
        self.source = huge_memory(shape[0] * shape[1]).reshape(shape)
        self.source[:] = self.rng.integers(0, 256, shape, np.uint8)
        self.rows = self.memory.reshape(-1, self.block_bytes)
        self.batches = self.size.round_bytes // self.source.nbytes
        self.work = float(self.batches * self.source.nbytes)
        self.put_keys: list[bytes] = []
        self.turn = 0
        self.next_block = 0

    def put(self) -> float:
        """Put new chains until all of them are on SSD."""
        before = self.store.stats()
        for _ in range(self.batches):
            keys = self.rng.bytes(KEY_BYTES * self.size.batch)
            stored = self.store.put(keys, self.source)
            if stored != self.size.batch:
                raise AssertionError(f"put stored {stored} of {self.size.batch} blocks")
            self.put_keys.append(keys)
        left, stats = self.store.flush(), self.store.stats()
        written = stats.ssd_write_bytes - before.ssd_write_bytes
        dropped = [
            count for name, count in stats.as_dict().items() if name.startswith("ssd_dropped")
        ]
        if left or written != self.work or any(dropped):
            raise AssertionError(f"{left} left, {written} bytes written, {dropped} dropped")
        return self.work

    def fill(self) -> None:
        """Put until every SSD slot has been used."""
        while self.store.stats().ssd_evictions == 0:
            self.put()

    def keep_those_on_ssd(self) -> None:
        """Keep the keys of whole chains that are on SSD alone, in random order."""
        there = [keys for keys in self.put_keys if self.store.match(keys).ssd == self.size.batch]
        if len(there) * self.source.nbytes < 4 * self.size.ram_bytes:
            raise AssertionError(f"only {len(there)} chains are on SSD: RAM would keep them")
        order = self.rng.permutation(len(there))
        self.put_keys = [there[number] for number in order]

    def get(self) -> float:
        """Get the chains in turn: whichever comes has left RAM long ago."""
        before = self.store.stats().ssd_reads
        for _ in range(self.batches):
            keys = self.put_keys[self.turn % len(self.put_keys)]
            row = self.turn * self.size.batch % (len(self.rows) - self.size.batch + 1)
            loaded = self.store.get(keys, self.rows[row : row + self.size.batch])
            if loaded != self.size.batch:
                raise AssertionError(f"get loaded {loaded} of {self.size.batch} blocks")
            self.turn += 1
        read = self.store.stats().ssd_reads - before
        if read * self.block_bytes != self.work:
            raise AssertionError(f"{read} blocks read for {self.work:.0f} bytes got")
        return self.work

    def lease(self) -> float:
        """The same chains, verified in the store's memory and left there: nothing is copied."""
        before = self.store.stats().ssd_reads
        for _ in range(self.batches):
            keys = self.put_keys[self.turn % len(self.put_keys)]
            with self.store.lease(keys) as lease:
                if len(lease) != self.size.batch:
                    raise AssertionError(f"a lease has {len(lease)} of {self.size.batch} blocks")
            self.turn += 1
        read = self.store.stats().ssd_reads - before
        if read * self.block_bytes != self.work:
            raise AssertionError(f"{read} blocks read for {self.work:.0f} bytes leased")
        return self.work

    def verify(self) -> None:
        """Compare one batch that comes from the disk, byte for byte."""
        out = np.zeros_like(self.source)
        loaded = self.store.get(self.put_keys[-1], out)
        if loaded != self.size.batch or not np.array_equal(out, self.source):
            raise AssertionError(f"wrong bytes among the {loaded} blocks from SSD")

    def blocks_in_turn(self) -> list[int]:
        """The raw loop's next blocks to write: over the whole file, around and around."""
        count, all_blocks = int(self.work) // self.block_bytes, self.blocks_in_file()
        blocks = [(self.next_block + turn) % all_blocks for turn in range(count)]
        self.next_block = (self.next_block + count) % all_blocks
        return blocks

    def blocks_at_random(self) -> list[int]:
        """The raw loop's next blocks to read: whole batches, in random order."""
        batches = self.rng.permutation(self.blocks_in_file() // self.size.batch)[: self.batches]
        rows = np.arange(self.size.batch)
        return (batches[:, None] * self.size.batch + rows).reshape(-1).tolist()

    def blocks_in_file(self) -> int:
        """How many the raw loop's file has room for."""
        return self.size.ssd_bytes // self.block_bytes


def compare(
    name: str, bench: Bench, ours: Work, rival: tuple[str, Work], copying: Work | None = None
) -> Iterator[Figure]:
    """Interleave ours with the raw loop: rates, then processor time.

    ``copying``: the same loop with a copy of each block, which a store can't do without.
    """
    meters = {"keystow": Metered(ours), "raw": Metered(rival[1])}
    if copying is not None:
        meters["copying"] = Metered(copying)
    samples = interleave(meters, bench.size.rounds)
    spent = {who: Sample(tuple(meter.ms_per_gb[1:])) for who, meter in meters.items()}
    title = f"ssd {name} {label(bench.block_bytes)}"
    least = LEAST_RATIOS.get((name, bench.block_bytes))
    rates = {who: gigabytes(sample) for who, sample in samples.items()}
    yield Figure(title, "GB/s", rates["keystow"], rates["raw"], rival[0], least_ratio=least)
    yield Figure(f"{title}, CPU", "ms/GB", spent["keystow"], spent["raw"], "raw")
    if copying is not None:
        beside_copies = "raw, each block copied first"
        yield Figure(f"{title}, again", "GB/s", rates["keystow"], rates["copying"], beside_copies)


def beside(verb: str, bench: Bench, raw: RawLoop) -> Iterator[Figure]:
    """What fio says of the same file, where it is installed."""
    rate = raw.fio(verb, bench.block_bytes)
    if rate is not None:
        note = f"psync, {raw.threads[verb]} threads, random, small pages"
        sample = gigabytes(Sample((rate,)))
        yield Figure(f"fio {verb} {label(bench.block_bytes)}", "GB/s", sample, note=note)


def one_size(size: Size, block_bytes: int, home: Path, raw: RawLoop) -> Iterator[Figure]:
    """Both directions at one block size, on a directory of its own."""
    # A batch takes a quarter of the RAM at most.
    size = replace(size, batch=min(size.batch, size.ram_bytes // 4 // block_bytes))
    with tempfile.TemporaryDirectory(dir=home) as directory:
        bench = Bench(size, block_bytes, Path(directory), raw.memory)
        with bench.store:
            if not bench.store.stats().ssd_direct:
                print("the store has no O_DIRECT here", *bench.store.stats().fallbacks)
            bench.fill()
            write = lambda: raw.write(block_bytes, bench.blocks_in_turn())  # noqa: E731
            copying = lambda: raw.write(  # noqa: E731
                block_bytes, bench.blocks_in_turn(), bench.source
            )
            rival = (raw.told("write"), write)
            yield from compare("write-behind", bench, bench.put, rival, copying)
            yield from beside("write", bench, raw)
            bench.keep_those_on_ssd()
            bench.verify()
            read = lambda: raw.read(block_bytes, bench.blocks_at_random())  # noqa: E731
            yield from compare("get", bench, bench.get, (raw.told("read"), read))
            yield from beside("read", bench, raw)


def tags(*, quick: bool) -> Iterator[Figure]:
    """What verifying costs once the bytes are there."""
    for told in rust.bench("tags", quick=quick):
        cost = Sample(tuple(told["ms_per_gb"]))
        yield Figure(told["name"], "ms/GB", cost, most=MOST_TAG_MS_PER_GB)


def figures(*, quick: bool, directory: Path | None = None) -> Iterator[Figure]:
    """Write-behind and get at each block size, then tags."""
    size = QUICK if quick else Size()
    with scratch(directory) as home:
        memory = huge_memory(size.ram_bytes)
        raw = RawLoop(home, size.ssd_bytes, memory, (WRITERS, READERS))
        for block_bytes in size.block_sizes:
            yield from one_size(size, block_bytes, home, raw)
        raw.close()
    yield from tags(quick=quick)
