"""Directories on disk, seen from outside: what is in them, whether it is sound, a frozen view.

Nothing here changes a file, takes a lock or needs the owner to be away.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from keystow import _core
from keystow.attention import DTYPE_BYTES
from keystow.config import parse_size
from keystow.layout import Layout

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Any

__all__ = ["inspect", "open_readonly", "verify"]


def open_readonly(path: str | os.PathLike[str]) -> _core.ReadOnlyStore:
    """Open a frozen view of a store's directory, without a lock and without changing anything.

    ``path``: a root with one store, the directory of a fingerprint with one member, or
    ``<root>/<fingerprint>/<member>``. The owner may be running: what it has overwritten since is a
    miss, and every block is verified when it is read. Blocks that were only in the owner's RAM are
    not in the view.

    Raises ConfigError where there is no store, or more than one; FormatError where it is broken or
    of a later version; SsdError where it can't be read.
    """
    return _core._open_readonly(path, read_layout)  # noqa: SLF001 - our own core


def inspect(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return what each store below ``path`` holds; ``error`` instead of ``contents`` if unreadable.

    Raises ConfigError where there is no such directory, SsdError where it can't be read.
    """
    return _core._inspect(path)  # noqa: SLF001 - our own core


def verify(
    path: str | os.PathLike[str],
    bytes_per_s: int | str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Read every block of the stores below ``path`` and compare its tag.

    ``bytes_per_s``: at most so fast. ``progress`` is called with blocks done and blocks in all;
    what it raises ends the verification.

    Raises ConfigError where there is no store, SsdError where the directory can't be read.
    """
    rate = None if bytes_per_s is None else parse_size(bytes_per_s, "bytes_per_s")
    return _core._verify(path, rate, progress)  # noqa: SLF001 - our own core


def read_layout(description: str) -> Layout | None:
    """Return the layout with this description (``Layout.describe``), or None for another form."""
    try:
        said = json.loads(description)
        tokens = said["block_tokens"]
        if said["kind"] == "opaque":
            size = said["block_bytes"]
            layout = Layout.opaque(said["name"], block_bytes=size, block_tokens=tokens)
        else:
            layers, heads = (last - first for first, last in (said["layers"], said["kv_heads"]))
            shape = (layers, 2, tokens, heads, said["head_dim"])
            size = layers * 2 * tokens * heads * said["head_dim"] * DTYPE_BYTES[said["kv_dtype"]]
            layout = Layout(size, tokens, shape, description.encode())
    except (KeyError, TypeError, ValueError):
        return None
    return layout if layout.describe() == description else None
