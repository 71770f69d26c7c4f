"""Which I/O engines work on this machine."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import keystow

VARIABLE = "KEYSTOW_ENGINE"
# The disk that the tests use, not a file system in memory.
_ON = Path(__file__).resolve().parent


@functools.cache
def refused(name: str) -> str | None:
    """Return why there is no such engine here; None: it works."""
    layout = keystow.Layout.opaque("engines", block_bytes=4096, block_tokens=1)
    with tempfile.TemporaryDirectory(dir=_ON) as root:
        try:
            device = keystow.Ssd(root, "1MiB", engine=name)  # type: ignore[arg-type]
            keystow.Store(layout, ram="64KiB", ssd=device).close()
        except keystow.KeystowError as error:
            return str(error)
    return None
