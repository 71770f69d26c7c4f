"""RAM put and get against plain copies of the same bytes.

Method: an arena of `ram_bytes`, faulted in and full, so that every put evicts. The rival copies the
same sources into memory of the same size, faulted in, in huge pages too, its destination rotating
over all of it; a get writes to that same rotating memory. One thread each, batches of 32 blocks,
interleaved rounds. There are several rivals (numpy and memmove, whole batches and single rows); the
fastest by median counts. Before that, bytes are compared once, whole.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

import keystow
from timing import Figure, Sample, Work, fastest, interleave, scaled

Bytes = npt.NDArray[np.uint8]
HUGE_PAGE = 2 << 20
KEY_BYTES = 16
LEVEL_SIZE = 1 << 20
LEAST_PUT, LEAST_GET = 0.80, 0.85


@dataclass(frozen=True)
class Size:
    """How large a run is."""

    ram_bytes: int = 2 << 30
    block_sizes: tuple[int, ...] = (64 << 10, 256 << 10, 1 << 20, 2 << 20)
    batch: int = 32
    round_bytes: int = 512 << 20
    rounds: int = 9


QUICK = Size(16 << 20, (64 << 10, 256 << 10, 1 << 20, 2 << 20), 2, 4 << 20, 2)


def huge_memory(size: int) -> Bytes:
    """Private memory of `size` bytes on a huge page's boundary, faulted in."""
    room = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE)
    whole: Bytes = np.frombuffer(room, np.uint8)
    skip = -whole.ctypes.data % HUGE_PAGE
    memory = whole[skip : skip + size]
    memory[:] = 1
    return memory


def label(block_bytes: int) -> str:
    """64 KiB, 1 MiB."""
    mib = block_bytes >> 20
    return f"{mib} MiB" if mib else f"{block_bytes >> 10} KiB"


@dataclass
class Bench:
    """One block size: a full store, sources, and the memory that rivals and gets write to."""

    size: Size
    block_bytes: int
    memory: Bytes
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        self.store = keystow.Store(
            block_bytes=self.block_bytes, ram=self.size.ram_bytes, prefault="now", copy_threads=1
        )
        shape = (self.size.batch, self.block_bytes)
        self.source = huge_memory(shape[0] * shape[1]).reshape(shape)
        self.source[:] = self.rng.integers(0, 256, shape, np.uint8)
        self.frames = self.size.ram_bytes // self.block_bytes
        self.rows = self.memory[: self.frames * self.block_bytes].reshape(-1, self.block_bytes)
        self.batches = max(1, self.size.round_bytes // self.source.nbytes)
        self.work = float(self.batches * self.source.nbytes)
        self.at = 0
        self.held: list[tuple[bytes, list[Bytes]]] = []
        self.next_held = 0

    def batch_keys(self) -> bytes:
        """Fresh keys of one chain."""
        return self.rng.bytes(KEY_BYTES * self.size.batch)

    def targets(self) -> Iterator[int]:
        """The first rows of this round's destinations, rotating over all memory."""
        for _ in range(self.batches):
            if self.at + self.size.batch > self.frames:
                self.at = 0
            yield self.at
            self.at += self.size.batch

    def put(self) -> float:
        """Put batches of new blocks; each evicts as many."""
        for _ in range(self.batches):
            stored = self.store.put(self.batch_keys(), self.source)
            if stored != self.size.batch:
                raise AssertionError(f"put stored {stored} of {self.size.batch} blocks")
        return self.work

    def fill(self) -> None:
        """Put until every frame has been used."""
        while self.store.stats().evictions == 0:
            self.put()

    def hold(self) -> None:
        """Put known blocks into most of the arena and lease them: the rivals' sources of a get."""
        self.leases = []
        for _ in range(self.frames * 7 // 8 // self.size.batch):
            keys = self.batch_keys()
            self.store.put(keys, self.source)
            lease = self.store.lease(keys, min_blocks=self.size.batch)
            views = [np.frombuffer(lease[row], np.uint8) for row in range(self.size.batch)]
            self.leases.append(lease)
            self.held.append((keys, views))
        # Frames in another order than the destinations, as they come in real use.
        order = self.rng.permutation(len(self.held))
        self.held = [self.held[number] for number in order]

    def sources(self) -> Iterator[tuple[bytes, list[Bytes]]]:
        """This round's leased batches, rotating over all of them."""
        for _ in range(self.batches):
            self.next_held = (self.next_held + 1) % len(self.held)
            yield self.held[self.next_held]

    def get(self) -> float:
        """Get leased batches into rotating memory."""
        for (keys, _), at in zip(self.sources(), self.targets(), strict=True):
            loaded = self.store.get(keys, self.rows[at : at + self.size.batch])
            if loaded != self.size.batch:
                raise AssertionError(f"get loaded {loaded} of {self.size.batch} blocks")
        return self.work

    def verify(self) -> None:
        """Compare one batch, byte for byte, after a put and a get."""
        keys = self.batch_keys()
        out = np.zeros_like(self.source)
        stored, loaded = self.store.put(keys, self.source), self.store.get(keys, out)
        if (stored, loaded) != (self.size.batch,) * 2 or not np.array_equal(out, self.source):
            raise AssertionError(f"wrong bytes: put {stored}, got {loaded}")

    def close(self) -> None:
        """Drop the leases and the arena."""
        self.held.clear()
        self.leases.clear()
        self.store.close()


def put_rivals(bench: Bench) -> dict[str, Work]:
    """Every plain way to copy the batch to rotating memory."""
    source, rows, batch, row_bytes = bench.source, bench.rows, bench.size.batch, bench.block_bytes
    base, origin = rows.ctypes.data, source.ctypes.data

    def numpy_rows(at: int) -> None:
        for row in range(batch):
            np.copyto(rows[at + row], source[row])

    def memmove_rows(at: int) -> None:
        for row in range(batch):
            ctypes.memmove(base + (at + row) * row_bytes, origin + row * row_bytes, row_bytes)

    ways: dict[str, Callable[[int], object]] = {
        "numpy, batch": lambda at: np.copyto(rows[at : at + batch], source),
        "numpy, rows": numpy_rows,
        "memmove, batch": lambda at: ctypes.memmove(
            base + at * row_bytes, origin, batch * row_bytes
        ),
        "memmove, rows": memmove_rows,
    }

    def round_of(way: Callable[[int], object]) -> Work:
        def work() -> float:
            for at in bench.targets():
                way(at)
            return bench.work

        return work

    return {name: round_of(way) for name, way in ways.items()}


def get_rivals(bench: Bench) -> dict[str, Work]:
    """Every plain way to copy leased blocks, wherever they are, to rotating memory."""
    rows, row_bytes = bench.rows, bench.block_bytes
    base = rows.ctypes.data
    origins = {keys: [view.ctypes.data for view in views] for keys, views in bench.held}

    def numpy_rows() -> float:
        for (_, views), at in zip(bench.sources(), bench.targets(), strict=True):
            for row, view in enumerate(views):
                np.copyto(rows[at + row], view)
        return bench.work

    def memmove_rows() -> float:
        for (keys, _), at in zip(bench.sources(), bench.targets(), strict=True):
            for row, origin in enumerate(origins[keys]):
                ctypes.memmove(base + (at + row) * row_bytes, origin, row_bytes)
        return bench.work

    return {"numpy, rows": numpy_rows, "memmove, rows": memmove_rows}


def compare(verb: str, bench: Bench, ours: Work, rivals: dict[str, Work], least: float) -> Figure:
    """Interleave ours with every rival; the fastest of them counts."""
    samples = interleave({"keystow": ours} | rivals, bench.size.rounds)
    best = fastest(samples, rivals)
    return Figure(
        f"{verb} {label(bench.block_bytes)}",
        "GB/s",
        gigabytes(samples["keystow"]),
        gigabytes(samples[best]),
        best,
        least_ratio=least if bench.block_bytes == LEVEL_SIZE else None,
    )


def gigabytes(sample: Sample) -> Sample:
    """Bytes a second as GB/s."""
    return scaled(sample, 1e9)


def figures(*, quick: bool) -> Iterator[Figure]:
    """RAM put and get at each block size."""
    size = QUICK if quick else Size()
    memory = huge_memory(size.ram_bytes)
    for block_bytes in size.block_sizes:
        bench = Bench(size, block_bytes, memory)
        bench.fill()
        bench.verify()
        yield compare("put", bench, bench.put, put_rivals(bench), LEAST_PUT)
        bench.hold()
        yield compare("get", bench, bench.get, get_rivals(bench), LEAST_GET)
        bench.close()
