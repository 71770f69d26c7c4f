"""Write-behind to SSD and batched gets from it, beside foyer's hybrid cache and LMCache's disk.

Method: the stores, sizes and rounds of `ssd.py`. Each rival is a process of its own (`rivals/`)
over a directory of its own beside the store's, full before anything is timed, with as much RAM and
disk; it plays a round when it is asked, so that all take turns. Only blocks that a rival has on its
disk after a put, and only those that came from there in a get, count as its work; the rest are told
as lost. How each is configured stands at the head of its source. A rival that can't be built,
installed or opened here is left out, with the reason; a quick run builds and installs nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import rust
from copies import gigabytes, huge_memory, label
from evict import BUILD_TIMEOUT_S, RIVALS, TARGET
from ssd import QUICK, TABLE_SHARE, Bench, Size, scratch
from timing import Figure, Work, interleave

FOYER = TARGET / "release" / "foyer_disk"
# The ring was behind psync, foyer's default, in a first look on two cores.
FOYER_ENGINE = "psync"
# glibc keeps what it has mapped: a block's memory is not faulted in anew each time.
FOYER_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
LMCACHE = rust.ROOT / "target" / "lmcache"
LMCACHE_SCRIPT = RIVALS.parent / "lmcache_disk.py"
LMCACHE_WHEELS = ("lmcache==0.5.6", "lmcache-rust-raw-block-io==0.5.7rc2")
# What its import asks for on the way to raw_block; torch is that of this interpreter.
LMCACHE_NEEDS = tuple(
    "aiofile aiohttp blake3 cachetools cryptography fastapi httpx msgspec numba numpy"
    " opentelemetry-api opentelemetry-sdk prometheus_client psutil py-cpuinfo PyYAML pyzmq requests"
    " safetensors sortedcontainers transformers".split()
)
LMCACHE_ENVIRONMENT = {"LMCACHE_LOG_LEVEL": "ERROR"}
INSTALL_TIMEOUT_S = 600
ORDER_TIMEOUT_S = 300


class LeftOutError(Exception):
    """A rival can't take part here; the text says why."""


def run(command: Sequence[str | Path], timeout_s: int) -> None:
    """Run a step that makes a rival ready, or say what it said last."""
    try:
        done = subprocess.run(
            command, cwd=rust.ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LeftOutError(str(error)) from error
    if done.returncode != 0:
        raise LeftOutError(f"{Path(command[0]).name} {command[1]}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """Where tools and tracebacks put the reason."""
    return (text.strip().splitlines() or ["nothing was said"])[-1]


def foyer(*, quick: bool) -> list[str | Path]:
    """The command of foyer's side, built."""
    cargo = shutil.which("cargo")
    if quick and not FOYER.exists():
        raise LeftOutError("a quick run builds no rivals")
    if not quick:
        if cargo is None:
            raise LeftOutError("no cargo on the path")
        where = ["--manifest-path", RIVALS, "--target-dir", TARGET, "-p", FOYER.name]
        run([cargo, "build", "--quiet", "--release", "--locked", *where], BUILD_TIMEOUT_S)
    return [FOYER]


def lmcache(*, quick: bool) -> list[str | Path]:
    """The command of LMCache's side, installed into an environment of its own below `target/`."""
    python, ready = LMCACHE / "bin" / "python", LMCACHE / "ready"
    wanted = " ".join(LMCACHE_WHEELS + LMCACHE_NEEDS)
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        if quick:
            raise LeftOutError("a quick run installs no rivals")
        if sys.platform != "linux":
            raise LeftOutError(f"raw_block needs Linux, this is {sys.platform}")
        venv.create(LMCACHE, clear=True, with_pip=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        run([*pip, *LMCACHE_NEEDS], INSTALL_TIMEOUT_S)
        run([*pip, "--no-deps", *LMCACHE_WHEELS], INSTALL_TIMEOUT_S)
        paths = {"base": str(LMCACHE), "platbase": str(LMCACHE)}
        packages = Path(sysconfig.get_path("purelib", vars=paths))
        outer = sysconfig.get_path("purelib")
        (packages / "outer.pth").write_text(f"{outer}\n", encoding="utf-8")
        ready.write_text(wanted, encoding="utf-8")
    run([python, "-c", "import torch, lmcache.v1.distributed.l2_adapters"], INSTALL_TIMEOUT_S)
    return [python, LMCACHE_SCRIPT]


class Rival:
    """A rival's process over a new directory: does what it is told, one order at a time."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        directory: Path,
        size: Size,
        block_bytes: int,
    ) -> None:
        self.name = name
        self.lost = self.blocks = 0
        self.block_bytes = block_bytes
        files = directory / "files"
        files.mkdir()
        self.errors = directory / "errors"
        room = size.ssd_bytes + size.ssd_bytes // TABLE_SHARE
        numbers = (block_bytes, size.ram_bytes, room, size.batch, size.round_bytes)
        engine = [FOYER_ENGINE] if name == "foyer" else []
        with self.errors.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [*command, files, *(str(number) for number in numbers), *engine],
                env=os.environ | FOYER_ENVIRONMENT | LMCACHE_ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def order(self, verb: str) -> float:
        """The bytes it has moved for an order; what it lost is added up."""
        process = self.process
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the pipes are asked for above")
        timer = threading.Timer(ORDER_TIMEOUT_S, process.kill)
        timer.start()
        try:
            process.stdin.write(f"{verb}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer.startswith("{"):
            self.close()
            reason = last_line(self.errors.read_text(encoding="utf-8") + answer)
            raise LeftOutError(f"{verb}: status {process.returncode}, {reason}")
        told: Mapping[str, int] = json.loads(answer)
        if verb in {"put", "get"}:
            self.lost += told["lost"]
            self.blocks += told["lost"] + told["bytes"] // self.block_bytes
        return float(told["bytes"])

    def told(self) -> str:
        """Its name, and what it lost since this was asked last."""
        lost, blocks, self.lost, self.blocks = self.lost, self.blocks, 0, 0
        return f"{self.name}, {lost} of {blocks} blocks not by its disk" if lost else self.name

    def close(self) -> None:
        """End the process; nothing it has matters any more."""
        self.process.kill()
        self.process.communicate()


def commands(*, quick: bool) -> dict[str, list[str | Path]]:
    """Those that can take part; of the others it is said why not."""
    found = {}
    for name, make in (("foyer", foyer), ("lmcache", lmcache)):
        try:
            found[name] = make(quick=quick)
        except LeftOutError as error:
            print(f"ssd_rivals: {name} is left out: {error}", file=sys.stderr)
    return found


def compare(
    order: str, bench: Bench, ours: Mapping[str, Work], rivals: Sequence[Rival]
) -> Iterator[Figure]:
    """Interleave all; for each way of ours a row a rival."""
    contest = dict(ours)
    for rival in rivals:
        contest[rival.name] = lambda rival=rival: rival.order(order)
    rates = {
        name: gigabytes(sample) for name, sample in interleave(contest, bench.size.rounds).items()
    }
    for rival in rivals:
        # Who moves nothing in a round has no rate to be compared with.
        rate = rates[rival.name] if min(rates[rival.name].values) else None
        told = rival.told()
        for verb in ours:
            title = f"ssd {verb} {label(bench.block_bytes)}, by {rival.name}"
            yield Figure(title, "GB/s", rates[verb], rate, told)


def one_size(
    size: Size, block_bytes: int, home: Path, found: Mapping[str, list[str | Path]]
) -> Iterator[Figure]:
    """Both directions at one block size, each contestant on a directory of its own."""
    # A batch takes a quarter of the RAM at most.
    size = replace(size, batch=min(size.batch, size.ram_bytes // 4 // block_bytes))
    with ExitStack() as stack:
        places = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(dir=home)))
            for _ in range(1 + len(found))
        ]
        bench = Bench(size, block_bytes, places[0], huge_memory(size.ram_bytes))
        stack.enter_context(bench.store)
        bench.fill()
        rivals = []
        for place, (name, command) in zip(places[1:], found.items(), strict=True):
            rival = Rival(name, command, place, size, block_bytes)
            stack.callback(rival.close)
            try:
                rival.order("fill")
            except LeftOutError as error:
                print(f"ssd_rivals: {label(block_bytes)}: no {name}: {error}", file=sys.stderr)
                continue
            rivals.append(rival)
        yield from compare("put", bench, {"write-behind": bench.put}, rivals)
        bench.keep_those_on_ssd()
        bench.verify()
        for rival in rivals:
            rival.order("choose")
            rival.order("verify")
        # Neither rival copies what it has read: a lease does not, a get does.
        ways = {"get": bench.get, "lease": bench.lease}
        yield from compare("get", bench, ways, rivals)


def figures(*, quick: bool, directory: Path | None = None) -> Iterator[Figure]:
    """Write-behind and get at each block size, a row a rival."""
    found = commands(quick=quick)
    if not found:
        return
    size = QUICK if quick else Size()
    with scratch(directory) as home:
        for block_bytes in size.block_sizes:
            yield from one_size(size, block_bytes, home, found)
