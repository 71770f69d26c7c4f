"""What one look at the machine found: a name, a verdict, and what to do about it.

Owns: ``Finding`` and the words for sizes and errors in it. Never looks at anything. Invariant:
every finding says why it matters and what its reader can do, also where all is well.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["DEGRADED", "MISSING", "OK", "SEE_DIRECTORY", "Finding", "errno_text", "size_text"]

OK: Final = "ok"
DEGRADED: Final = "degraded"
MISSING: Final = "missing"

_STEP = 1024
NOTHING = "nothing to do."
SEE_DIRECTORY = "see directory."
"""The fix of lines that could not be looked at for want of a directory."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    ``name``: which thing. ``verdict``: ``ok``; ``degraded``: keystow works without it, in a lesser
    way; ``missing``: keystow can't do what was asked. ``found``: what is there, with the numbers.
    ``why``: what it is good for. ``fix``: the way out.
    """

    name: str
    verdict: Literal["ok", "degraded", "missing"]
    found: str
    why: str
    fix: str = NOTHING


def size_text(count: float) -> str:
    """Return a size for people: 1.5 GiB."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < _STEP:
            break
        size, unit = size / _STEP, larger
    return f"{size:.1f} {unit}" if unit != "bytes" else f"{size:.0f} bytes"


def errno_text(number: int) -> str:
    """Return an error of the system for people: EPERM (1, Operation not permitted)."""
    name = errno.errorcode.get(number, "errno")
    return f"{name} ({number}, {os.strerror(number)})"
