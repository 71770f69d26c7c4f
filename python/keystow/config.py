"""Options of a store: sizes, times, closed lists, and what a misspelt name was meant to be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from keystow.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "check_choice",
    "check_seconds",
    "did_you_mean",
    "parse_duration",
    "parse_size",
    "refuse_unknown",
]

# Both families by name; a bare "G" could be either and is refused.
_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}

# More memory or disk than any machine has; keeps every later product within 64 bits.
_SIZE_BYTES_MAX = 1 << 60

# Seconds of each unit of a time.
_TIMES_S = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}

# As in the core: a longest wait that every clock can add.
_SECONDS_MAX = 1e9


def parse_size(value: object, name: str = "size") -> int:
    """Bytes of a size: an int, or text such as ``"4GiB"``, ``"100 GB"`` or ``"1.5TiB"``.

    KiB, MiB, GiB, TiB are powers of 1,024; kB, MB, GB, TB powers of 1,000; case does not matter.
    ``name`` is the option the value was given for.

    Raises ConfigError for anything else, for negative sizes and for more than 2^60 bytes.
    """
    if isinstance(value, str):
        size = _parse_text(value, name)
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _bad_size(value, name)
    else:
        size = value.__index__()
    if not 0 <= size <= _SIZE_BYTES_MAX:
        raise _bad_size(value, name)
    return size


def _parse_text(text: str, name: str) -> int:
    number = text.strip()
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = _UNITS.get(number[len(digits) :].lower() or "b")
    digits = digits.strip().replace(",", "").replace("_", "")
    if unit is None or not digits.replace(".", "", 1).isdecimal():
        raise _bad_size(text, name)
    if "." not in digits:
        return int(digits) * unit
    return math.floor(float(digits) * unit)


def _bad_size(value: object, name: str) -> ConfigError:
    return ConfigError(
        f"{name}={value!r} is no size.",
        code="KS-CFG-202",
        hint='give bytes as an int, or a number with a unit: "4GiB" (1,024s), "100GB" (1,000s).',
        context={name: value},
    )


def check_seconds(value: object, name: str) -> float:
    """Seconds as a float, or ConfigError: a finite number from 0 to 1e9."""
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value <= _SECONDS_MAX
    ):
        return float(value)
    raise ConfigError(
        f"{name}={value!r} is no time to wait.",
        code="KS-CFG-203",
        hint="give seconds from 0 to 1e9.",
        context={name: value},
    )


def parse_duration(text: str, units: Collection[str]) -> float | None:
    """Seconds of a time such as ``"30s"`` or ``"1.5 min"``, in one of ``units``; None for others.

    ``units``: some of ms, s, min, h, d. A time is finite and above 0.
    """
    number = text.strip()
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit, digits = number[len(digits) :], digits.strip()
    plain = digits.isascii() and digits.replace(".", "", 1).isdigit()
    if unit not in units or not plain:
        return None
    seconds = float(digits) * _TIMES_S[unit]
    return seconds if 0 < seconds < math.inf else None


def check_choice(value: object, name: str, choices: Collection[str]) -> str:
    """The value if it is one of the choices, or ConfigError naming the nearest one."""
    if isinstance(value, str) and value in choices:
        return value
    raise ConfigError(
        f"{name}={value!r} is unknown.{did_you_mean(value, choices)}",
        code="KS-CFG-204",
        hint=f"use one of: {', '.join(choices)}.",
        context={name: value},
    )


def refuse_unknown(unknown: Collection[str], known: Collection[str], where: str) -> None:
    """Raise ConfigError if there is an unknown option, naming the nearest known one."""
    for option in unknown:
        raise ConfigError(
            f"{where} has no option {option!r}.{did_you_mean(option, known)}",
            code="KS-CFG-201",
            hint=f"the options are: {', '.join(known)}.",
            context={"option": option},
        )


def did_you_mean(word: object, known: Collection[str]) -> str:
    """`` Did you mean 'policy'?``, or nothing where no known word is near."""
    import difflib  # noqa: PLC0415 - only on the way to an error

    near = difflib.get_close_matches(str(word), known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
