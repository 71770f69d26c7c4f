"""The directories of stores under a root: which there are, and the removal of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keystow import _core

if TYPE_CHECKING:
    import os

__all__ = ["Directory", "directories", "remove"]


@dataclass(frozen=True, slots=True)
class Directory:
    """One of them: ``<root>/<fingerprint>/<name>``.

    ``name`` is the member, unless a removal has begun and not ended (``half_removed``): then it is
    no store any more. ``last_opened_unix_s``: when a store opened it last. ``locked``: a store has
    it open, or it is being removed. ``error``: why it can't be removed, with code, message, hint.
    """

    path: str
    fingerprint: str
    member: str
    name: str
    half_removed: bool
    locked: bool
    bytes: int
    last_opened_unix_s: int | None
    error: dict[str, str] | None


def directories(root: str | os.PathLike[str]) -> list[Directory]:
    """Return the directories of stores under a root, by fingerprint and name.

    Raises ConfigError where there is no such root, SsdError where it can't be read.
    """
    return [Directory(**told) for told in _core._directories(root)]  # noqa: SLF001 - our own core


def remove(root: str | os.PathLike[str], directory: Directory) -> None:
    """Remove one of them under its own lock; killed half way, the next call does the rest.

    Raises StoreLockedError where a store has it open; SsdError or FormatError where it holds
    anything but a store's files, or is another user's: then nothing has changed; ConfigError where
    it is gone.
    """
    _core._remove_directory(root, directory.fingerprint, directory.name)  # noqa: SLF001 - our core
