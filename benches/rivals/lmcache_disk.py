"""LMCache's raw_block on a disk: write-behind and batched gets, a round each time it is asked.

Run by `ssd_rivals.py`, which holds the clock, in an environment of its own: DIRECTORY BLOCK_BYTES
RAM_BYTES DISK_BYTES BATCH ROUND_BYTES. A line on the input is an order, `fill`, `put`, `choose`,
`get` or `verify`; its answer is one JSON object on one line. Never measures. Invariants: only tasks
that LMCache calls stored count as written, only blocks of its result's bitmap as read; `lost`
counts the others. The file is open with O_DIRECT, which LMCache gives up silently where it must.

How LMCache is configured, and why:
- The L2 adapter of its multi-process mode, through the calls of its own `bench l2`. One file,
  fallocated, written whole before anything is timed; O_DIRECT, io_uring (its fastest engine), the
  RAM registered with the ring where the memory limit allows it. Four workers a direction, but one
  for stores of blocks below 256 KiB: there its threads mostly wait for each other (Python's lock),
  and more of them were up to three times slower.
- The RAM is one piece in huge pages, as its L1 is. A put copies the batch into it, so that the
  caller's memory is its own again, and submits it; as many batches are under way as there are
  workers, at least two. A get loads one batch into it and waits. The lock that its own server takes
  before a load is left out.
- The adapter never evicts by itself: where its server would choose victims, the oldest batch is
  deleted here, which costs next to nothing.
- Its index goes to the disk once a minute, when idle; that is left at its default, and so, unlike
  a store's table, hardly ever in the time of a round. It never calls fsync.
"""

import json
import mmap
import os
import random
import select
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L1MemoryDesc
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.raw_block_l2_adapter import RawBlockL2AdapterConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd

PAGE = 4096
HUGE_PAGE = 2 << 20
META_BYTES = 64 << 20
WORKERS = 4
SMALL_BYTES = 256 << 10
TASK_TIMEOUT_MS = 60_000


def huge_tensor(size: int) -> torch.Tensor:
    """Bytes in huge pages, faulted in."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    whole[:] = 1
    return torch.from_numpy(whole[start : start + size])


class Disk:
    """The adapter over a file, and its RAM."""

    def __init__(self, directory: str, numbers: list[int]) -> None:
        self.block_bytes, ram_bytes, disk_bytes, self.batch, self.round_bytes = numbers
        slot_bytes = self.block_bytes + PAGE
        self.slots = disk_bytes // slot_bytes
        self.path = Path(directory) / "raw_block"
        file_bytes = META_BYTES + self.slots * slot_bytes
        with self.path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, file_bytes)
        self.ram = huge_tensor(ram_bytes)
        self.store_workers = WORKERS if self.block_bytes >= SMALL_BYTES else 1
        config = RawBlockL2AdapterConfig(
            device_path=str(self.path),
            slot_bytes=slot_bytes,
            meta_total_bytes=META_BYTES,
            io_engine="io_uring",
            num_store_workers=self.store_workers,
            num_load_workers=WORKERS,
        )
        desc = L1MemoryDesc(self.ram.data_ptr(), ram_bytes, PAGE, ram_bytes)
        self.adapter = create_l2_adapter(config, l1_memory_desc=desc)
        if not self.direct():
            raise RuntimeError("LMCache has the file open without O_DIRECT")
        places = range(0, ram_bytes - self.batch_bytes + 1, self.batch_bytes)
        self.places = [(self.ram[at : at + self.batch_bytes], self.objects(at)) for at in places]
        rng = np.random.default_rng(13)
        self.source = torch.from_numpy(rng.integers(0, 256, self.batch_bytes, np.uint8))
        self.put_keys: deque[list[ObjectKey]] = deque()
        self.next_key = self.turn = 0

    @property
    def batch_bytes(self) -> int:
        """Of one batch."""
        return self.batch * self.block_bytes

    def direct(self) -> bool:
        """Whether every open descriptor of the file has O_DIRECT."""
        flags = []
        for link in Path("/proc/self/fd").iterdir():
            if link.exists() and link.resolve() == self.path.resolve():
                told = (Path("/proc/self/fdinfo") / link.name).read_text(encoding="ascii")
                flags.append(int(told.split("flags:")[1].split()[0], 8))
        return bool(flags) and all(flag & os.O_DIRECT for flag in flags)

    def objects(self, start: int) -> list[Any]:
        """LMCache's objects over the RAM of one batch."""
        made = []
        for at in range(start, start + self.batch_bytes, self.block_bytes):
            metadata = MemoryObjMetadata(
                shape=torch.Size([self.block_bytes]),
                dtype=torch.uint8,
                address=at,
                phy_size=self.block_bytes,
                fmt=MemoryFormat.KV_2LTD,
                ref_count=1,
            )
            rows = self.ram[at : at + self.block_bytes]
            made.append(TensorMemoryObj(rows, metadata, parent_allocator=None))
        return made

    def fresh(self) -> list[ObjectKey]:
        """Keys of a batch that were never used."""
        first = self.next_key
        self.next_key += self.batch
        numbers = range(first, self.next_key)
        return [ObjectKey(number.to_bytes(16, "big"), "bench", 0) for number in numbers]

    def place(self) -> tuple[torch.Tensor, list[Any]]:
        """The RAM whose turn it is."""
        self.turn += 1
        return self.places[self.turn % len(self.places)]

    def put(self) -> tuple[int, int]:
        """New batches until LMCache has written all of them."""
        tasks: dict[int, list[ObjectKey]] = {}
        stored = lost = 0
        before = moved("write_bytes")
        batches = self.round_bytes // self.batch_bytes
        most = min(max(self.store_workers, 2), len(self.places))
        for number in range(batches + most):
            if tasks and (len(tasks) == most or number >= batches):
                for task, result in self.stored().items():
                    keys = tasks.pop(task)
                    if result.is_successful():
                        self.put_keys.append(keys)
                        stored += self.batch
                    else:
                        lost += self.batch
            if number < batches:
                if (len(self.put_keys) + most) * self.batch > self.slots:
                    self.adapter.delete(self.put_keys.popleft())
                rows, objects = self.place()
                rows.copy_(self.source)
                keys = self.fresh()
                tasks[self.adapter.submit_store_task(keys, objects)] = keys
        if tasks:
            raise RuntimeError(f"{len(tasks)} tasks were never answered")
        self.check("written", moved("write_bytes") - before, stored)
        return stored, lost

    def check(self, verb: str, count: int, blocks: int) -> None:
        """Whether the disk has moved as much as the blocks that count."""
        if count < blocks * self.block_bytes:
            raise RuntimeError(f"{count} bytes {verb} for {blocks} blocks")

    def stored(self) -> dict[int, Any]:
        """What has been stored since; waits for it."""
        done: dict[int, Any] = {}
        while not done:
            self.wait(self.adapter.get_store_event_fd())
            done = self.adapter.pop_completed_store_tasks()
        return done

    def wait(self, descriptor: int) -> None:
        """Until LMCache signals."""
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(TASK_TIMEOUT_MS):
            raise RuntimeError(f"no answer from LMCache in {TASK_TIMEOUT_MS} ms")
        consume_fd(descriptor)

    def fill(self) -> tuple[int, int]:
        """Put until all slots have been written and a quarter of them once more."""
        stored = lost = 0
        while stored < self.slots // 4 * 5:
            done = self.put()
            if not done[0]:
                raise RuntimeError("LMCache stores nothing")
            stored, lost = stored + done[0], lost + done[1]
        return stored, lost

    def choose(self) -> tuple[int, int]:
        """Gets take the batches in random order; there is no RAM in front of the disk."""
        order = list(self.put_keys)
        random.Random(13).shuffle(order)
        self.put_keys = deque(order)
        return len(order) * self.batch, 0

    def get_batch(self) -> tuple[torch.Tensor, int]:
        """The next batch into RAM, and how many of its blocks there were."""
        keys = self.put_keys[0]
        self.put_keys.rotate(-1)
        rows, objects = self.place()
        task = self.adapter.submit_load_task(keys, objects)
        while True:
            self.wait(self.adapter.get_load_event_fd())
            bitmap = self.adapter.query_load_result(task)
            if bitmap is not None:
                return rows, bitmap.popcount()

    def get(self) -> tuple[int, int]:
        """One round of batches."""
        before = moved("read_bytes")
        batches = self.round_bytes // self.batch_bytes
        loaded = sum(self.get_batch()[1] for _ in range(batches))
        self.check("read", moved("read_bytes") - before, loaded)
        return loaded, batches * self.batch - loaded

    def verify(self) -> tuple[int, int]:
        """Compare one batch from the disk whole."""
        rows, loaded = self.get_batch()
        if loaded != self.batch or not torch.equal(rows, self.source):
            raise RuntimeError(f"wrong bytes, or only {loaded} blocks from the disk")
        return loaded, 0


def moved(field: str) -> int:
    """What this process has had read from disks or written to them."""
    told = Path("/proc/self/io").read_text(encoding="ascii")
    return int(told.split(f"\n{field}:")[1].split()[0])


def main() -> None:
    """Do what the input says."""
    disk = Disk(sys.argv[1], [int(number) for number in sys.argv[2:]])
    orders = {"fill", "put", "choose", "get", "verify"}
    for line in sys.stdin:
        if line.strip() not in orders:
            raise ValueError(f"no order: {line!r}")
        blocks, lost = getattr(disk, line.strip())()
        print(json.dumps({"bytes": blocks * disk.block_bytes, "lost": lost}), flush=True)
    disk.adapter.close()


if __name__ == "__main__":
    main()
