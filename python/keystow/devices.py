"""Several devices as one SSD tier: ``Store(..., ssd=["/nvme0/kv:1TiB", "/nvme1/kv:1TiB"])``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keystow.errors import ConfigError
from keystow.ssd import Ssd, read_ssd

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Devices", "read_devices"]

# What may differ from device to device.
_OWN = ("path", "capacity", "write_bytes_per_s", "dwpd")


@dataclass(frozen=True, slots=True)
class Devices:
    """What a store needs to know of several devices: the options of one, and the others' places."""

    path: str
    capacity: int
    others: tuple[tuple[str, int], ...]
    engine: str
    seed: int
    member: str
    on_mismatch: str
    on_locked: str
    lock_wait_s: float
    reclaim: str
    follows_siblings: bool
    followed_paths: tuple[str, ...]
    replicated: bool
    budget_bytes_per_s: int | None


def read_devices(value: object) -> Ssd | Devices | None:
    """A store's ``ssd=``: None, an ``Ssd``, ``"path:size"``, or a list of those.

    In a list, all options but path, capacity and write budget are the same for all: texts take
    those of the ``Ssd`` objects beside them, which must agree. Write budgets add up.
    """
    if not isinstance(value, (list, tuple)):
        return read_ssd(value)
    devices = [device for device in _read_all(value) if device is not None]
    if len(devices) < len(value):
        raise _error(f"ssd={value!r} has None in it.", "leave it out.", value)
    if not devices[1:]:
        return devices[0] if devices else None
    real = [device for device in devices if device.engine != "sim"]
    folders = [str(Path(device.path).absolute()) for device in real]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise _error(f"ssd= names {twice!r} twice.", "give each device once.", value)
    first = devices[0]
    return Devices(
        path=first.path,
        capacity=first.capacity,
        others=tuple((device.path, device.capacity) for device in devices[1:]),
        engine=first.engine,
        seed=first.seed,
        member=first.member,
        on_mismatch=first.on_mismatch,
        on_locked=first.on_locked,
        lock_wait_s=first.lock_wait_s,
        reclaim=first.reclaim,
        follows_siblings=first.follows_siblings,
        followed_paths=first.followed_paths,
        replicated=first.replicated,
        budget_bytes_per_s=_budget(devices, value),
    )


def _read_all(value: Sequence[object]) -> list[Ssd | None]:
    given = [item for item in value if isinstance(item, Ssd)]
    for one in given[1:]:
        for name in Ssd.__slots__:
            if name not in _OWN and getattr(one, name) != getattr(given[0], name):
                first, other = getattr(given[0], name), getattr(one, name)
                message = f"ssd= has devices with {name}={first!r} and {name}={other!r}."
                raise _error(message, f"give all devices of a tier the same {name}=.", value)
    read = [read_ssd(item) for item in value]
    shared: dict[str, Any] = {}
    if given:
        names = [name for name in Ssd.__slots__ if name not in ("path", "capacity")]
        shared = {name: getattr(given[0], name) for name in names}
    return [
        Ssd(device.path, device.capacity, **shared) if isinstance(item, str) and device else device
        for item, device in zip(value, read, strict=True)
    ]


def _budget(devices: Sequence[Ssd], value: object) -> int | None:
    budgets = [device.budget_bytes_per_s for device in devices]
    known = [budget for budget in budgets if budget is not None]
    if not known:
        return None
    if len(known) < len(budgets):
        raise _error(
            "ssd= has devices with a write budget and devices without.",
            "give each device a write_bytes_per_s= or dwpd=, or none.",
            value,
        )
    return sum(known)


def _error(message: str, hint: str, value: object) -> ConfigError:
    return ConfigError(message, code="KS-CFG-230", hint=hint, context={"ssd": str(value)})
