"""The process that owns the demo's store: it serves a stretch of the trace and tells what it saw.

Owns: the messages between owner and demo, and how they travel: one JSON array a line, [kind,
fields]. Never judges a figure. Invariants: a message is sent once what it tells has happened, so
whoever reads them all knows everything up to the moment of a kill but the request in progress; a
line cut by a kill is dropped; an owner whose reader is gone ends.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from keystow import KeystowError, Ssd, Store
from keystow.demo_replay import Buffers, Replay, Served, State, state_of
from keystow.trace import packaged

FLUSH_S = 60.0
"""What the last flush may take; what it did not write is told."""
END_S = 30.0
"""What a process that has told everything may take to end."""
EXIT_FAILED = 2
EXIT_ALONE = 3

OpenStore = Callable[..., Store]


@dataclass(frozen=True)
class Task:
    """A stretch of a trace, the store it goes through, and how it ends."""

    trace: str
    start: int
    stop: int
    block_bytes: int
    ram_bytes: int
    ssd_bytes: int
    """0: no SSD tier."""
    folder: str
    policy: str
    await_kill: bool = False
    """After the last request stay as it is, without flush and close, until killed."""


@dataclass
class Opened:
    """The store is open."""

    state: State
    open_s: float
    """Seconds in the call that opened it."""
    frames: int
    recovered: int
    """Blocks found on SSD, each read and its tag verified."""
    engine: str
    direct: bool


@dataclass
class Flushed:
    """After the last request everything was brought to the SSD."""

    state: State
    flush_s: float
    flush_bytes: int
    left: int


@dataclass
class Failed:
    """An error that keystow raised on purpose, in its parts."""

    kind: str
    message: str
    code: str
    hint: str


Told = Opened | Served | Flushed
KINDS: dict[str, type[Told | Failed]] = {
    kind.__name__: kind for kind in (Opened, Served, Flushed, Failed)
}


def own(task: Task, open_store: OpenStore = Store) -> Generator[Told, None, None]:
    """Open the store, serve the task's requests, flush and close; yield what happens."""
    logger = logging.getLogger("keystow")
    if not logger.hasHandlers():
        # What the store falls back to stands in the report; unasked it would go to stderr too.
        logger.addHandler(logging.NullHandler())
    requests = list(islice(packaged(task.trace), task.start, task.stop))
    buffers = Buffers(task.block_bytes, max((len(r.blocks) for r in requests), default=0))
    disk = {"ssd": Ssd(task.folder, task.ssd_bytes)} if task.ssd_bytes else {}
    began_s = time.monotonic()
    with open_store(
        block_bytes=task.block_bytes, ram=task.ram_bytes, policy=task.policy, **disk
    ) as store:
        open_s = time.monotonic() - began_s
        stats = store.stats()
        # A record that the kill left behind its slot's newer bytes is no warm block.
        stale = store.verify().bad if stats.recovered else 0
        yield Opened(
            state_of(store),
            open_s,
            frames=stats.frames_total,
            recovered=stats.recovered - stale,
            engine=stats.ssd_engine,
            direct=stats.ssd_direct,
        )
        run = Replay(store, buffers)
        for request in requests:
            yield run.serve(request)
        if disk and not task.await_kill:
            yield flushed(store)
        elif task.await_kill:
            # Ends at a kill, or where the demo itself is gone.
            sys.stdin.buffer.read()
            os._exit(EXIT_ALONE)


def flushed(store: Store) -> Flushed:
    """Bring everything to the SSD and return what that took."""
    before = state_of(store)
    left = store.flush(FLUSH_S)
    after = state_of(store)
    return Flushed(
        after,
        flush_s=after["at_s"] - before["at_s"],
        flush_bytes=written_bytes(after) - written_bytes(before),
        left=left,
    )


def written_bytes(state: State) -> int:
    """Return what had been written to SSD by then."""
    return state["counters"]["ssd_write_bytes"]


def encode(message: Told | Failed) -> bytes:
    """Return a message as a line."""
    return json.dumps([type(message).__name__, asdict(message)]).encode() + b"\n"


def decode(line: bytes) -> Told:
    """Return the message of a line; raise KeystowError if the owner told that it failed."""
    kind, fields = json.loads(line)
    message = KINDS[kind](**fields)
    if isinstance(message, Failed):
        kinds = {error.__name__: error for error in KeystowError.__subclasses__()}
        error = kinds.get(message.kind, KeystowError)
        raise error(message.message, code=message.code, hint=message.hint)
    return message


def main(task_json: str, open_store: OpenStore = Store) -> int:
    """Own a store for the task in `task_json`; tell it all on stdout."""
    out = sys.stdout.fileno()

    def send(message: Told | Failed) -> None:
        line = memoryview(encode(message))
        while line:
            line = line[os.write(out, line) :]

    try:
        for message in own(Task(**json.loads(task_json)), open_store):
            send(message)
    except KeystowError as error:
        send(Failed(type(error).__name__, error.message, error.code, error.hint))
        return EXIT_FAILED
    except BrokenPipeError:
        # Nobody listens. Not by way of the store's close: what it writes, nobody wants either.
        os._exit(EXIT_ALONE)
    return 0


# The package is found as this process found it, and never in whatever folder the user stands in.
LAUNCH = f"""
import sys
sys.path.append({str(Path(__file__).parents[1])!r})
from keystow import demo_owner
sys.exit(demo_owner.main(sys.argv[1]))
"""
COMMAND = (sys.executable, "-P", "-c", LAUNCH)


class Owner:
    """A child process that owns a store; a context manager that leaves no process behind."""

    def __init__(self, task: Task, command: Sequence[str] = COMMAND) -> None:
        self._task = task
        self._command = [*command, json.dumps(asdict(task))]
        self._killed = False

    def __enter__(self) -> Self:
        # In a process group of its own: Ctrl-C is for the demo, which ends the owner itself.
        self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def kill(self) -> None:
        """End it by SIGKILL, wherever it is, and return once it is gone."""
        if self._process.poll() is None:
            self._killed = True
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def messages(self) -> Iterator[Told]:
        """Yield what it tells, up to its end; raise KeystowError if that came by itself."""
        out: IO[bytes] | None = self._process.stdout
        if out is None:
            return
        served = 0
        for line in out:
            if line.endswith(b"\n"):
                message = decode(line)
                served += isinstance(message, Served)
                yield message
        if self._killed:
            return
        try:
            status: int | str = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            status = f"none within {END_S:.0f} s"
        asked = self._task.stop - self._task.start
        if status != 0 or served < asked or self._task.await_kill:
            raise KeystowError(
                f"the process that owned the store ended by itself, status {status}, "
                f"after {served:,} of {asked:,} requests.",
                hint="what it said last, if anything, stands above.",
            )
