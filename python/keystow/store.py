"""``Store``: options in words and sizes, handed to the core as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keystow import _core
from keystow.config import check_choice, check_seconds, parse_size, refuse_unknown
from keystow.devices import Devices, read_devices
from keystow.errors import ConfigError
from keystow.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, Never, Self

    from keystow.ssd import Ssd

__all__ = ["Store"]

# Below this no disk answers in time.
_IO_TIMEOUT_MIN_S = 0.001

_OPTIONS = (
    "layout",
    "block_bytes",
    "ram",
    "ssd",
    "policy",
    "namespace",
    "salt",
    "deterministic",
    "clock",
    "prefault",
    "numa",
    "copy_threads",
    "io_timeout_s",
    "put_wait_s",
)


class Store(_core.Store):
    """KV-cache blocks in RAM and on SSD, found by chained keys; a context manager.

    ``layout``: what a block is (``Layout.from_model``, ``Layout.opaque``); or ``block_bytes``, the
    largest block in bytes, short for ``Layout.opaque("", block_bytes=...)``.

    ``ram``: memory for blocks, ``"4GiB"`` or bytes; the index comes on top
    (``stats().index_bytes``). It is checked against what the machine and the cgroups (also
    ``memory.high``) have free, before anything is mapped or made.
    ``ssd``: a directory and how much it may take, ``"/nvme/kv:100GiB"`` or ``Ssd(...)``: what
    leaves RAM goes there, and the next store on it finds it again. None: RAM only. With it
    ``ram=0`` is legal. A list of up to 16 is one tier over several devices: a chain is spread over
    them in stretches of 32 MiB, a device that fails costs what it held and nothing else
    (``stats().ssd_state == "degraded"``; what is put again is warm again), one that can't be opened
    is left out, with the reason in ``stats().fallbacks``. A device that was away while the others
    were in use comes back empty: what was removed meanwhile might still be on it.

    ``policy``: who leaves first, by name (default ``"lru"``). ``namespace`` and ``salt`` enter
    every key: stores that differ in one of them never see each other's blocks.

    ``prefault``: ``"background"`` (usable at once while memory is faulted in) or ``"now"``.
    ``numa``: from which memory nodes the blocks' memory comes: ``"local"``, the node of the thread
    that opens the store while it has room; ``"interleave"``, all that this process may use, in
    turn; None, from wherever it is faulted in. ``stats().numa`` says what is in force.
    ``copy_threads``: how many threads share a large put or get (from 4 MiB on), the caller's own
    included; None, as many as this process has cores, at most 4; 1, the caller alone. They are
    started with the first large copy, on the cores of the thread that makes it, sleep between
    copies, and are used only where sharing was faster lately (``stats().copies_shared``).
    ``put_wait_s``: how long a put waits for room that calls in progress hold, default 1.0.
    ``io_timeout_s``: longest wait for one disk read or write, default 1.0; what takes longer is
    a miss.
    ``deterministic``: no threads and no reserves, for tests; ``clock="manual"`` goes with it.

    Raises ConfigError for unknown options (naming the nearest), absurd sizes and more memory than
    there is; StoreLockedError where another store has the directory (``Ssd(on_locked=...)``);
    FormatError where that is broken or of another version; SsdError where the disk does not do what
    is asked. What was found there, and what has to be done without, is logged (logger ``keystow``).

    Any method may be called from any thread. A forked child and a closed store raise
    StoreClosedError; a store can't be pickled.
    """

    __slots__ = ()

    def __new__(
        cls,
        layout: Layout | None = None,
        *,
        block_bytes: int | str | None = None,
        ram: int | str | None = None,
        ssd: str | Ssd | Sequence[str | Ssd] | None = None,
        policy: str = "lru",
        namespace: str = "",
        salt: str | bytes = "",
        deterministic: bool = False,
        clock: Literal["real", "manual"] = "real",
        prefault: Literal["background", "now"] = "background",
        numa: Literal["local", "interleave"] | None = None,
        copy_threads: int | None = None,
        io_timeout_s: float = 1.0,
        put_wait_s: float = 1.0,
        **unknown: Never,
    ) -> Self:
        """Check the options and open the store."""
        refuse_unknown(unknown, _OPTIONS, "Store")
        device = read_devices(ssd)
        layout = _layout(layout, block_bytes)
        check_choice(clock, "clock", ("real", "manual"))
        if clock == "manual" and not deterministic:
            raise ConfigError(
                'clock="manual" needs deterministic=True.',
                code="KS-CFG-208",
                hint="add deterministic=True, or leave clock= out.",
                context={"clock": clock},
            )
        check_choice(prefault, "prefault", ("background", "now"))
        store = super().__new__(
            cls,
            layout=layout,
            block_bytes=layout.block_bytes,
            ram_bytes=_ram_bytes(ram, device),
            policy=check_choice(policy, "policy", _core.POLICIES),
            namespace=namespace,
            salt=salt,
            deterministic=deterministic,
            manual_clock=clock == "manual",
            prefault_now=prefault == "now",
            numa=None if numa is None else check_choice(numa, "numa", _core.NUMA),
            copy_threads=_copy_threads(copy_threads),
            put_wait_s=check_seconds(put_wait_s, "put_wait_s"),
            io_timeout_s=_io_timeout_s(io_timeout_s, device),
            ssd=device,
            progress=_log_progress,
            said=_log_said,
        )
        if device is not None:
            _log_open(store)
        return store


def _layout(layout: object, block_bytes: int | str | None) -> Layout:
    if isinstance(layout, Layout) and block_bytes is None:
        return layout
    if layout is None and block_bytes is not None:
        return Layout.opaque("", block_bytes=parse_size(block_bytes, "block_bytes"))
    if layout is None or isinstance(layout, Layout):
        given = "neither" if layout is None else "both"
        message = f"a store takes a layout or block_bytes, here {given}."
    else:
        message = f"layout is {type(layout).__name__}, not a Layout."
    raise ConfigError(
        message,
        code="KS-CFG-206",
        hint='pass Layout.from_model("config.json", ...) or Layout.opaque(name, block_bytes=...).',
        context={"layout": str(layout), "block_bytes": block_bytes},
    )


def _ram_bytes(ram: object, device: Ssd | Devices | None) -> int:
    if ram is None:
        raise ConfigError(
            "ram= is missing.",
            code="KS-CFG-205",
            hint='say how much memory the blocks may take: ram="4GiB".',
        )
    size = parse_size(ram, "ram")
    if size == 0 and device is None:
        raise ConfigError(
            "ram=0 without ssd= keeps nothing.",
            code="KS-CFG-205",
            hint='give ram=, for example ram="4GiB", or ssd="/nvme/kv:100GiB".',
            context={"ram": ram},
        )
    return size


def _copy_threads(value: object) -> int:
    if value is None:
        return 0
    most = _core.COPY_THREADS_MAX
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    raise ConfigError(
        f"copy_threads={value!r} is no number of threads.",
        code="KS-CFG-221",
        hint=f"give a whole number from 1 to {most}, or None: one a core, at most four.",
        context={"copy_threads": value},
    )


def _io_timeout_s(value: object, device: Ssd | Devices | None) -> float:
    seconds = check_seconds(value, "io_timeout_s")
    if device is None or seconds >= _IO_TIMEOUT_MIN_S:
        return seconds
    raise ConfigError(
        f"io_timeout_s={value!r}: every read would be a miss.",
        code="KS-CFG-203",
        hint=f"give seconds from {_IO_TIMEOUT_MIN_S} to 1e9.",
        context={"io_timeout_s": value},
    )


def _log_progress(what: str, done: int, there_are: int) -> None:
    import logging  # noqa: PLC0415 - as below

    logging.getLogger("keystow").info(
        "recovering: %s of %s %s", f"{done:,}", f"{there_are:,}", what
    )


def _log_said(sentence: str) -> None:
    import logging  # noqa: PLC0415 - as below

    logging.getLogger("keystow").warning("%s", sentence)


def _log_open(store: Store) -> None:
    import logging  # noqa: PLC0415 - a fifth of the import time, and only for stores on disk

    logger = logging.getLogger("keystow")
    stats = store.stats()
    if stats.ssd_state != "waiting":
        logger.info(
            "recovered %s blocks (%s) in %.1f s; %s, %s",
            f"{stats.recovered:,}",
            _bytes_text(stats.recovered_bytes),
            stats.recovery_s,
            stats.ssd_engine,
            "O_DIRECT" if stats.ssd_direct else "buffered",
        )
    for fallback in stats.fallbacks:
        logger.warning("%s", fallback)


def _bytes_text(count: int) -> str:
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:  # noqa: PLR2004 - the step from one unit to the next
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
