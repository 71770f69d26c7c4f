"""The plain way to use a disk: threads that read and write a file past the page cache.

Owns: the raw loop that an SSD tier is measured against, and its file; fio on that file. Never
knows a store. Invariants: the file is fallocated and written once before anything is timed; every
transfer moves whole blocks between it and memory in huge pages; no thread waits for another.
"""

import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
FILL_BYTES = 1 << 20
FIO_S = 3
FIO_TIMEOUT_S = 60


def filesystem(path: Path) -> str:
    """The type of the file system that holds `path`, by the longest mount point above it."""
    best, kind = "", "unknown"
    # Fields: id parent device root mountpoint options ... - type source options.
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        mounted = left.split()[4].encode().decode("unicode_escape")
        if path.resolve().is_relative_to(mounted) and len(mounted) >= len(best):
            best, kind = mounted, right.split()[0]
    return kind


class RawLoop:
    """A file of its own in `directory`, and threads that move blocks between it and `memory`.

    ``threads``: for writes and for reads.
    """

    def __init__(
        self, directory: Path, file_bytes: int, memory: Bytes, threads: tuple[int, int]
    ) -> None:
        self.path = directory / "raw"
        self.file_bytes, self.memory = file_bytes, memory
        self.threads = dict(zip(("write", "read"), threads, strict=True))
        self.at = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.direct = True
        try:
            self.file = os.open(self.path, flags | os.O_DIRECT, 0o600)
        except OSError:
            self.path.unlink(missing_ok=True)  # Created before the flag was refused.
            self.direct = False
            self.file = os.open(self.path, flags, 0o600)
        os.posix_fallocate(self.file, 0, file_bytes)
        self.write(FILL_BYTES, range(file_bytes // FILL_BYTES))

    def told(self, verb: str) -> str:
        """What it is, for a verb."""
        how = "O_DIRECT" if self.direct else "buffered"
        return f"raw {how}, {self.threads[verb]} threads, {filesystem(self.path)}"

    def write(self, block_bytes: int, blocks: Sequence[int], source: Bytes | None = None) -> float:
        """Write these blocks of the file, from memory that rotates; the bytes moved.

        ``source``: rows of which one is copied into that memory before each write.
        """
        return self.move("write", block_bytes, blocks, source)

    def read(self, block_bytes: int, blocks: Sequence[int]) -> float:
        """Read these blocks of the file into memory that rotates; the bytes moved."""
        return self.move("read", block_bytes, blocks, None)

    def move(
        self, verb: str, block_bytes: int, blocks: Sequence[int], source: Bytes | None
    ) -> float:
        """Share the blocks out among the threads, each taking the next one."""
        call: Callable[[int, list[memoryview], int], int]
        call = os.pwritev if verb == "write" else os.preadv
        whole = self.memory.data
        rows = len(whole) // block_bytes
        turns = itertools.count()
        first = self.at
        self.at = (first + len(blocks)) % rows
        wrong: list[str] = []

        def work() -> None:
            while (turn := next(turns)) < len(blocks):
                row = (first + turn) % rows * block_bytes
                offset = blocks[turn] * block_bytes
                if source is not None:
                    np.copyto(self.memory[row : row + block_bytes], source[turn % len(source)])
                try:
                    moved = call(self.file, [whole[row : row + block_bytes]], offset)
                except OSError as error:
                    wrong.append(str(error))
                    return
                if moved != block_bytes:
                    wrong.append(f"{moved} of {block_bytes} bytes at {offset}")
                    return

        threads = [threading.Thread(target=work) for _ in range(self.threads[verb])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise AssertionError(f"the raw loop failed: {wrong[0]}")
        return float(len(blocks) * block_bytes)

    def fio(self, verb: str, block_bytes: int) -> float | None:
        """Bytes a second of fio on the same file, as many threads; None where it is not there."""
        program = shutil.which("fio")
        if program is None:
            return None
        options = {
            "name": "raw",
            "filename": self.path,
            "rw": f"rand{verb}",
            "bs": block_bytes,
            "size": self.file_bytes,
            "numjobs": self.threads[verb],
            "ioengine": "psync",
            "direct": int(self.direct),
            "runtime": FIO_S,
            "output-format": "json",
        }
        flags = ["--thread", "--group_reporting", "--time_based", "--norandommap"]
        command = [program, *flags, *(f"--{name}={value}" for name, value in options.items())]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=FIO_TIMEOUT_S
        )
        return float(json.loads(done.stdout)["jobs"][0][verb]["bw_bytes"])

    def close(self) -> None:
        """Give the file and its room back."""
        os.close(self.file)
        self.path.unlink()
