"""``Store``: options in words and sizes, handed to the core as numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keystow import _core
from keystow.config import check_choice, check_seconds, parse_size, refuse_unknown
from keystow.errors import ConfigError
from keystow.layout import Layout

if TYPE_CHECKING:
    from typing import Literal, Never, Self

__all__ = ["Store"]

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
    "io_timeout_s",
    "put_wait_s",
)


class Store(_core.Store):
    """KV-cache blocks in RAM, found by chained keys; a context manager.

    ``layout``: what a block is (``Layout.from_model``, ``Layout.opaque``); or ``block_bytes``, the
    largest block in bytes, short for ``Layout.opaque("", block_bytes=...)``.

    ``ram``: memory for blocks, ``"4GiB"`` or bytes; the index comes on top
    (``stats().index_bytes``). It is checked against what the machine and the cgroup have free.
    ``ssd``: None; this version keeps blocks in RAM only.

    ``policy``: who leaves first, by name (default ``"lru"``). ``namespace`` and ``salt`` enter
    every key: stores that differ in one of them never see each other's blocks.

    ``prefault``: ``"background"`` (usable at once while memory is faulted in) or ``"now"``.
    ``put_wait_s``: how long a put waits for room that calls in progress hold, default 1.0.
    ``io_timeout_s``: longest wait for one disk read or write, default 1.0.
    ``deterministic``: no threads and no reserves, for tests; ``clock="manual"`` goes with it.

    Raises ConfigError for unknown options (naming the nearest), absurd sizes and more memory than
    there is. Any method may be called from any thread. A forked child and a closed store raise
    StoreClosedError; a store can't be pickled.
    """

    __slots__ = ()

    def __new__(
        cls,
        layout: Layout | None = None,
        *,
        block_bytes: int | str | None = None,
        ram: int | str | None = None,
        ssd: str | None = None,
        policy: str = "lru",
        namespace: str = "",
        salt: str | bytes = "",
        deterministic: bool = False,
        clock: Literal["real", "manual"] = "real",
        prefault: Literal["background", "now"] = "background",
        io_timeout_s: float = 1.0,
        put_wait_s: float = 1.0,
        **unknown: Never,
    ) -> Self:
        """Check the options and open the store."""
        refuse_unknown(unknown, _OPTIONS, "Store")
        if ssd is not None:
            raise _no_ssd("ssd", ssd)
        layout = _layout(layout, block_bytes)
        check_seconds(io_timeout_s, "io_timeout_s")
        check_choice(clock, "clock", ("real", "manual"))
        if clock == "manual" and not deterministic:
            raise ConfigError(
                'clock="manual" needs deterministic=True.',
                code="KS-CFG-208",
                hint="add deterministic=True, or leave clock= out.",
                context={"clock": clock},
            )
        check_choice(prefault, "prefault", ("background", "now"))
        return super().__new__(
            cls,
            layout=layout,
            block_bytes=layout.block_bytes,
            ram_bytes=_ram_bytes(ram),
            policy=check_choice(policy, "policy", _core.POLICIES),
            namespace=namespace,
            salt=salt,
            deterministic=deterministic,
            manual_clock=clock == "manual",
            prefault_now=prefault == "now",
            put_wait_s=check_seconds(put_wait_s, "put_wait_s"),
        )


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


def _ram_bytes(ram: object) -> int:
    if ram is None:
        raise ConfigError(
            "ram= is missing.",
            code="KS-CFG-205",
            hint='say how much memory the blocks may take: ram="4GiB".',
        )
    size = parse_size(ram, "ram")
    if size == 0:
        raise _no_ssd("ram", ram)
    return size


def _no_ssd(name: str, value: object) -> ConfigError:
    return ConfigError(
        f"{name}={value!r}: this version keeps blocks in RAM only.",
        code="KS-CFG-207",
        hint='leave ssd= out and give ram=, for example ram="4GiB".',
        context={name: str(value)},
    )
