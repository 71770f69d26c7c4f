"""``Ssd``: a directory on a local disk that keeps blocks beyond RAM and beyond the process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keystow import _core
from keystow.config import check_choice, parse_duration, parse_size, refuse_unknown
from keystow.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, Never

__all__ = ["Ssd", "read_ssd"]

_DAY_S = 86_400
# Beyond this no device lasts a minute; keeps every later product finite.
_DWPD_MAX = 1e6
_ENGINE_VARIABLE = "KEYSTOW_ENGINE"
_SIBLINGS = "siblings"
_WAIT = "wait:"
_WAIT_UNITS = ("ms", "s", "min")
_SEED_MAX = (1 << 64) - 1
_EXAMPLE = 'for example ssd="/nvme/kv:100GiB" or ssd=Ssd("/nvme/kv", "100GiB").'


@dataclass(frozen=True, slots=True, init=False)
class Ssd:
    """An SSD tier: ``Store(..., ssd=Ssd("/nvme/kv", "100GiB"))``; short: ``ssd="/nvme/kv:100GiB"``.

    ``path``: the root, a directory on a local disk. The store makes a directory of its own in it,
    named after the fingerprint of its layout, so that stores of other layouts can share the root.
    ``capacity``: bytes on disk at most, tables included, ``"100GiB"`` or an int; the files take
    them at once. ``member``: tells stores of one layout under one root apart, one a process.

    ``write_bytes_per_s``: payload written a second, on average; or ``dwpd``, how often the capacity
    may be written a day. None: no limit.

    ``engine``: ``"auto"`` (io_uring where a trial in the directory comes back right, else threads),
    ``"uring"`` (or an error), ``"pool"`` (threads), or ``"sim"``: a disk simulated in memory, for
    tests, with ``path=""``, a ``seed``, and a store with ``deterministic=True`` and
    ``clock="manual"``. The environment variable ``KEYSTOW_ENGINE`` (auto, uring, pool) stands in
    for ``"auto"``. ``on_mismatch``: ``"error"``, or ``"reset"`` to
    start afresh where the directory is broken or of another version.

    ``on_locked``: where another store has the directory, ``"error"``, or ``"wait:30s"`` to wait for
    it so long at most (ms, s, min; up to a day) and raise only then, or ``"ram"``: begin in RAM and
    take the directory once it is free (``stats().ssd_state``: ``"waiting"``, ``"recovering"``, then
    ``"ok"``; ``"off"`` where it can't be used). What RAM holds is written then. A remove or a clear
    of before is done to the directory as well, but until then nothing confirms it: a durable remove
    and a clear raise SsdError, having been done in this store. ``reclaim``: where the disk lacks
    room at open, ``"never"``, or ``"unlocked"`` to remove other directories under the root that no
    store has open, least recently opened first, until it is enough.

    ``follow``: whose directories of the same layout, namespace and salt count as there too, read
    without their lock while their owners go on: ``"siblings"``, all other members under this root,
    also those that come later; or a list of paths, each a member's directory or a root. A get
    reads a block there, verifies it, and puts it into this store. What its owner removes or clears
    is found there for at most a second more; a remove or clear of this store concerns this store
    alone, so clear every one. A path that can't be followed stands in ``stats().fallbacks`` and is
    tried again. ``replicated=True``: what a followed directory holds is not written to this one;
    it leaves RAM unwritten, and ``flush`` and ``close`` count it as left.

    ``encryption`` takes no other value yet.

    Raises ConfigError for what can't be meant.
    """

    path: str
    capacity: int
    write_bytes_per_s: int | None
    dwpd: float | None
    engine: str
    seed: int
    member: str
    follow: str | tuple[str, ...] | None
    replicated: bool
    on_locked: str
    on_mismatch: str
    reclaim: str
    encryption: None

    def __init__(
        self,
        path: str | os.PathLike[str],
        capacity: int | str,
        *,
        write_bytes_per_s: int | str | None = None,
        dwpd: float | None = None,
        engine: Literal["auto", "uring", "pool", "sim"] = "auto",
        seed: int = 0,
        member: str = "0",
        follow: Literal["siblings"] | Sequence[str | os.PathLike[str]] | None = None,
        replicated: bool = False,
        on_locked: str = "error",
        on_mismatch: Literal["error", "reset"] = "error",
        reclaim: Literal["never", "unlocked"] = "never",
        encryption: None = None,
        **unknown: Never,
    ) -> None:
        """Check the options; the directory is looked at when a store is opened."""
        refuse_unknown(unknown, Ssd.__slots__, "Ssd")
        _refuse_encryption(encryption)
        checked = _engine(engine)
        put = object.__setattr__
        put(self, "path", _path(path, simulated=checked == "sim"))
        put(self, "capacity", parse_size(capacity, "capacity"))
        put(self, "write_bytes_per_s", _budget(write_bytes_per_s, dwpd))
        put(self, "dwpd", dwpd)
        put(self, "engine", checked)
        put(self, "seed", _seed(seed))
        put(self, "member", _member(member))
        _lock_wait_s(on_locked)
        put(self, "on_locked", on_locked)
        put(self, "on_mismatch", check_choice(on_mismatch, "on_mismatch", ("error", "reset")))
        put(self, "reclaim", check_choice(reclaim, "reclaim", ("never", "unlocked")))
        put(self, "follow", _follow(follow, checked))
        put(self, "replicated", _replicated(replicated, self.follow))
        put(self, "encryption", None)

    @property
    def others(self) -> tuple[tuple[str, int], ...]:
        """Path and capacity of further devices: none here (see ``Store``)."""
        return ()

    @property
    def budget_bytes_per_s(self) -> int | None:
        """Payload written a second, on average, whichever way it was said; None: no limit."""
        if self.dwpd is None:
            return self.write_bytes_per_s
        return max(1, round(self.capacity * self.dwpd / _DAY_S))

    @property
    def follows_siblings(self) -> bool:
        """Whether all other members under the root are followed."""
        return self.follow == _SIBLINGS

    @property
    def followed_paths(self) -> tuple[str, ...]:
        """The directories that are followed by name."""
        return self.follow if isinstance(self.follow, tuple) else ()

    @property
    def lock_wait_s(self) -> float:
        """How long an open waits for a directory that another store has; 0: not at all."""
        return _lock_wait_s(self.on_locked)


def read_ssd(value: object) -> Ssd | None:
    """One device of a store's ``ssd=``: None, an ``Ssd`` or ``"path:size"``."""
    if value is None or isinstance(value, Ssd):
        return value
    if not isinstance(value, str):
        raise _no_device(f"ssd={value!r} is {type(value).__name__}, no device.", value)
    path, colon, size = value.rpartition(":")
    if not colon:
        raise _no_device(f"ssd={value!r} does not say how much room it may take.", value)
    if not path:
        raise _no_device(f"ssd={value!r} names no directory.", value)
    try:
        return Ssd(path, parse_size(size))
    except ConfigError as cause:
        message = f"ssd={value!r}: {size!r} after the last colon is no size."
        raise _no_device(message, value) from cause


def _engine(engine: object) -> str:
    checked = check_choice(engine, "engine", _core.ENGINES)
    forced = os.environ.get(_ENGINE_VARIABLE)
    if checked != "auto" or not forced:
        return checked
    return check_choice(forced, _ENGINE_VARIABLE, [name for name in _core.ENGINES if name != "sim"])


def _lock_wait_s(on_locked: object) -> float:
    if on_locked in ("error", "ram"):
        return 0.0
    if isinstance(on_locked, str) and on_locked.startswith(_WAIT):
        seconds = parse_duration(on_locked.removeprefix(_WAIT), _WAIT_UNITS)
        if seconds is not None and seconds <= _DAY_S:
            return seconds
    raise ConfigError(
        f"on_locked={on_locked!r} is unknown.",
        code="KS-CFG-219",
        hint='give "error", "ram", or "wait:" and a time up to a day: "wait:30s", "wait:500ms", '
        '"wait:10min".',
        context={"on_locked": on_locked},
    )


def _follow(follow: object, engine: str) -> str | tuple[str, ...] | None:
    if follow is None:
        return None
    if engine == "sim":
        raise _no_follow(follow, 'a store with engine="sim" follows no directory.')
    if follow == _SIBLINGS:
        return _SIBLINGS
    if not isinstance(follow, (list, tuple)):
        raise _no_follow(follow, f"follow={follow!r} is unknown.")
    if not follow:
        raise _no_follow(follow, "follow=[] names no directory.")
    paths = []
    for path in follow:
        if not isinstance(path, (str, os.PathLike)) or not os.fsdecode(path):
            raise _no_follow(follow, f"follow={follow!r}: {path!r} is no path.")
        paths.append(os.fsdecode(path))
    return tuple(paths)


def _no_follow(follow: object, message: str) -> ConfigError:
    return ConfigError(
        message,
        code="KS-CFG-222",
        hint='give "siblings", or a list of directories: follow=["/nvme/kv"].',
        context={"follow": follow},
    )


def _replicated(replicated: object, follow: object) -> bool:
    if not isinstance(replicated, bool) or (replicated and follow is None):
        what = "without follow=" if isinstance(replicated, bool) else "is not True or False"
        raise ConfigError(
            f"replicated={replicated!r} {what}.",
            code="KS-CFG-223",
            hint='say whose blocks are not to be written again: follow="siblings".',
            context={"replicated": replicated, "follow": follow},
        )
    return replicated


def _path(path: object, *, simulated: bool) -> str:
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type] # what is no path raises TypeError
    except TypeError:
        raise _no_device(f"path={path!r} is {type(path).__name__}, no path.", path) from None
    if simulated and text:
        message = f'path={text!r} with engine="sim": a simulated disk has no path.'
        hint = 'give path="" or another engine.'
        raise ConfigError(message, code="KS-CFG-215", hint=hint, context={"path": text})
    if not text and not simulated:
        raise _no_device("path is empty.", path)
    return text


def _budget(write_bytes_per_s: int | str | None, dwpd: object) -> int | None:
    if write_bytes_per_s is not None and dwpd is not None:
        raise ConfigError(
            f"write_bytes_per_s={write_bytes_per_s!r} and dwpd={dwpd!r} say the same thing twice.",
            code="KS-CFG-216",
            hint="give one of them: bytes a second, or full writes of the capacity a day.",
            context={"write_bytes_per_s": write_bytes_per_s, "dwpd": dwpd},
        )
    real = isinstance(dwpd, (int, float)) and not isinstance(dwpd, bool)
    if dwpd is not None and not (real and 0 < dwpd <= _DWPD_MAX):  # type: ignore[operator]
        raise _no_budget("dwpd", dwpd, "a number above 0, for example dwpd=1.0")
    if write_bytes_per_s is None:
        return None
    budget = parse_size(write_bytes_per_s, "write_bytes_per_s")
    if budget == 0:
        raise _no_budget("write_bytes_per_s", budget, "bytes a second, or None for no limit")
    return budget


def _no_budget(name: str, value: object, what: str) -> ConfigError:
    return ConfigError(
        f"{name}={value!r} is no write budget.",
        code="KS-CFG-216",
        hint=f"give {what}.",
        context={name: value},
    )


def _seed(seed: object) -> int:
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= _SEED_MAX:
        return seed
    raise ConfigError(
        f"seed={seed!r} is no seed.",
        code="KS-CFG-217",
        hint="give a whole number from 0 to 2^64-1.",
        context={"seed": seed},
    )


def _member(member: object) -> str:
    if isinstance(member, str):
        return member
    raise ConfigError(
        f"member={member!r} is {type(member).__name__}, not text.",
        code="KS-CFG-218",
        hint='give a short name, for example member="0" or member=str(rank).',
        context={"member": member},
    )


def _no_device(message: str, value: object) -> ConfigError:
    hint = f"give a directory and a size, {_EXAMPLE}"
    return ConfigError(message, code="KS-CFG-214", hint=hint, context={"ssd": str(value)})


def _refuse_encryption(encryption: object) -> None:
    if encryption is not None:
        hint = "leave encryption= out."
        raise _not_yet(f"encryption={encryption!r}", hint, "encryption", encryption)


def _not_yet(what: str, hint: str, name: str, value: object) -> ConfigError:
    return ConfigError(
        f"{what}: not in this version yet.",
        code="KS-CFG-207",
        hint=hint,
        context={name: value},
    )
