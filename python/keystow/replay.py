"""``replay``: what a cache of some size and policy would have hit on a trace; no bytes are moved.

Owns: reading traces (paths, compressed or not, and iterables) and the shape of results. Never
does: decide who is evicted; the core replays through the policies of the store itself. Invariant:
a trace that could not be read to its end is an error, never a shorter trace.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

from keystow import _core
from keystow.config import check_choice
from keystow.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from io import BufferedIOBase, BufferedReader

__all__ = ["POLICIES", "Replay", "Trace", "replay"]

POLICIES = tuple(_core.REPLAY_POLICIES)
"""What ``policy`` may be."""

_Source: TypeAlias = str | os.PathLike[str] | Iterable[Iterable[SupportsIndex | bytes | str]]
_Progress: TypeAlias = Callable[[int], object]

_PIECE_BYTES = 1 << 20
_XZ = b"\xfd7zXZ\x00"
_GZIP = b"\x1f\x8b"
# The core numbers blocks with 32 bits: a cache of that many holds every trace it can read.
_RAM_BLOCKS_MAX = (1 << 32) - 1


class Trace:
    """Requests in memory, each a chain of block ids, head first: load once, replay many times.

    ``sources``: parts of one trace, in order. Each is the path of a JSONL file with an object that
    has ``hash_ids`` on each line, plain or packed by xz or gzip (known by content, not by name), or
    an iterable of requests, each an iterable of ids: ints, or bytes and text, which are hashed. An
    empty request counts.

    Lines that are no request are skipped and counted: ``malformed``, the first of them located in
    ``malformed_lines`` as (source, line from 1, what is wrong). ``strict`` raises FormatError at
    the first.

    Raises FormatError for a file that is broken off or damaged, ConfigError for one that can't be
    opened and for what is no trace, KeyFormatError for requests and ids that are none.
    """

    __slots__ = ("_core", "_malformed_lines")

    def __init__(self, *sources: _Source, strict: bool = False) -> None:
        """Read every source to its end."""
        self._core = _core.Trace()
        self._malformed_lines: tuple[tuple[str, int, str], ...] = ()
        for source in sources:
            self._take(source, strict=strict)

    @classmethod
    def packaged(cls, name: str) -> Trace:
        """Load a trace that comes with the package: "conversation" or "synthetic"."""
        from keystow.trace import TRACES, packaged_file  # noqa: PLC0415 - only for who asks

        check_choice(name, "name", TRACES)
        with packaged_file(name) as path:
            return cls(path)

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self._core.requests

    @property
    def refs(self) -> int:
        """Blocks that all requests ask for."""
        return self._core.refs

    @property
    def unique(self) -> int:
        """Different blocks among them."""
        return self._core.unique

    @property
    def malformed(self) -> int:
        """Lines that were no request."""
        return self._core.malformed

    @property
    def malformed_lines(self) -> tuple[tuple[str, int, str], ...]:
        """The first malformed lines: (source, line from 1, what is wrong)."""
        return self._malformed_lines

    def __len__(self) -> int:
        return self._core.requests

    def __repr__(self) -> str:
        skipped = f", {self.malformed:,} malformed lines" if self.malformed else ""
        return (
            f"Trace({self.requests:,} requests, {self.refs:,} blocks, "
            f"{self.unique:,} different{skipped})"
        )

    def _take(self, source: _Source, *, strict: bool) -> None:
        if isinstance(source, str | os.PathLike):
            self._read(os.fspath(source), strict=strict)
        elif isinstance(source, Iterable) and not hasattr(source, "read"):
            for request in source:
                self._core.push(request)
        else:
            raise ConfigError(
                f"trace is {type(source).__name__}, neither a path nor an iterable of requests.",
                code="KS-CFG-211",
                hint="pass the path of a JSONL file, or [[1, 2, 3], [1, 2, 4], ...].",
                context={"trace": type(source).__name__},
            )

    def _read(self, path: str, *, strict: bool) -> None:
        broken: tuple[type[Exception], ...] = ()
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - Path.open has no other types
                content, broken = _unpacked(file)
                for piece in iter(partial(content.read, _PIECE_BYTES), b""):
                    self._core.feed(piece)
                    self._locate(path, strict=strict)
                self._core.finish()
                self._locate(path, strict=strict)
        except broken as cause:
            raise FormatError(
                f"{path} is broken off or damaged: {cause}.",
                code="KS-FMT-101",
                hint="fetch it again; what could be read is not the whole trace.",
                context={"path": path},
            ) from cause
        except OSError as cause:
            raise ConfigError(
                f"{path} can't be read: {cause}.",
                code="KS-CFG-212",
                hint="pass the path of a JSONL file, plain or packed by xz or gzip.",
                context={"path": path},
            ) from cause

    def _locate(self, path: str, *, strict: bool) -> None:
        """Name the file of the malformed lines that have come since the last call."""
        new = self._core.malformed_lines[len(self._malformed_lines) :]
        self._malformed_lines += tuple((path, line, why) for line, why in new)
        if strict:
            self._refuse_malformed()

    def _refuse_malformed(self) -> None:
        if not self._core.malformed:
            return
        path, line, why = self._malformed_lines[0]
        raise FormatError(
            f"{path}, line {line} is no request: {why}.",
            code="KS-FMT-102",
            hint='a line is an object with the request\'s block ids: {"hash_ids": [1, 2, 3]}; '
            "strict=False skips others.",
            context={"path": path, "line": line},
        )


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay counted, in blocks.

    ``plain_hits``: blocks resident when their request came; ``prefix_hits``: those of them with all
    before them in the request resident too, which is what an engine can use. ``ram_hits`` and
    ``ssd_hits`` are the prefix hits by tier, ``ssd_writes`` what the SSD tier had to write.
    ``requests``, ``refs``, ``unique``, ``malformed``, ``malformed_lines`` are the trace's.
    ``evictions``: blocks that left; ``steps``: blocks looked at to find them. ``policy``,
    ``ram_blocks``, ``ssd_blocks``, ``chains`` are what was asked.
    """

    policy: str
    ram_blocks: int
    ssd_blocks: int
    chains: bool
    requests: int
    refs: int
    unique: int
    malformed: int
    malformed_lines: tuple[tuple[str, int, str], ...]
    plain_hits: int
    prefix_hits: int
    ram_hits: int
    ssd_hits: int
    ssd_writes: int
    evictions: int
    steps: int

    @property
    def prefix_hit_ratio(self) -> float:
        """Prefix hits per block asked for, 0 to 1; 0 for a trace without blocks."""
        return self.prefix_hits / self.refs if self.refs else 0.0


def replay(
    trace: Trace | _Source,
    policy: str = "lru",
    *,
    ram_blocks: int,
    ssd_blocks: int = 0,
    chains: bool = True,
    hints: None = None,
    strict: bool = False,
    progress: _Progress | None = None,
) -> Replay:
    """Count what a cache of ``ram_blocks`` blocks would have hit on a trace.

    ``trace``: a ``Trace`` (loaded once, replayed with several policies and sizes), or what
    ``Trace`` takes: the path of a JSONL file, or an iterable of requests. ``policy``: "lru", "arc",
    or "fifo", which no store offers.

    ``chains=True`` is the store's own rule, hit for hit: a request's resident blocks are touched,
    its absent ones inserted, both tail first; a victim has no resident child and is none of the
    running request's blocks. ``chains=False`` is the textbook: every block is accessed once, tail
    first, and any may leave.

    ``ssd_blocks`` and ``hints`` wait for tiers and policies that this version does not have: 0 and
    None. ``strict``: malformed lines are errors. ``progress``: called now and then with the number
    of requests served; what it raises ends the replay.

    Raises ConfigError for unknown policies and absurd sizes, and what ``Trace`` raises.
    """
    check_choice(policy, "policy", POLICIES)
    blocks = _ram_blocks(ram_blocks)
    _refuse_later(ssd_blocks, hints)
    if not isinstance(trace, Trace):
        trace = Trace(trace, strict=strict)
    elif strict:
        trace._refuse_malformed()  # noqa: SLF001 - of this module
    plain, prefix, evictions, steps = _core.replay(
        trace._core,  # noqa: SLF001 - of this module
        policy,
        min(blocks, _RAM_BLOCKS_MAX),
        bool(chains),
        progress,
    )
    return Replay(
        policy=policy,
        ram_blocks=blocks,
        ssd_blocks=0,
        chains=bool(chains),
        requests=trace.requests,
        refs=trace.refs,
        unique=trace.unique,
        malformed=trace.malformed,
        malformed_lines=trace.malformed_lines,
        plain_hits=plain,
        prefix_hits=prefix,
        ram_hits=prefix,
        ssd_hits=0,
        ssd_writes=0,
        evictions=evictions,
        steps=steps,
    )


def _unpacked(file: BufferedReader) -> tuple[BufferedIOBase, tuple[type[Exception], ...]]:
    """The content of a file, and what reading it raises where it is damaged."""
    head = file.peek(len(_XZ))
    if head.startswith(_XZ):
        import lzma  # noqa: PLC0415 - only for packed traces

        return lzma.open(file), (lzma.LZMAError, EOFError)
    if head.startswith(_GZIP):
        import gzip  # noqa: PLC0415 - only for packed traces
        import zlib  # noqa: PLC0415

        return gzip.open(file), (gzip.BadGzipFile, zlib.error, EOFError)
    return file, ()


def _ram_blocks(value: object) -> int:
    blocks = 0 if isinstance(value, bool) or not hasattr(value, "__index__") else value.__index__()
    if blocks < 1:
        raise ConfigError(
            f"ram_blocks={value!r} is no size of a cache.",
            code="KS-CFG-210",
            hint="give ram_blocks= a whole number from 1.",
            context={"ram_blocks": value},
        )
    return int(blocks)


def _refuse_later(ssd_blocks: object, hints: object) -> None:
    for name, value, only in (("ssd_blocks", ssd_blocks, 0), ("hints", hints, None)):
        if value != only:
            raise ConfigError(
                f"{name}={value!r}: this version replays a RAM tier without hints.",
                code="KS-CFG-213",
                hint=f"leave {name}= out.",
                context={name: str(value)},
            )
