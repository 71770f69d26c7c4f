"""The exceptions of keystow: what went wrong, a stable code, and the way out.

Every error is a ``KeystowError`` with ``code`` (``KS-...-nnn``, never reused for another meaning),
``hint`` (the way out, one sentence) and ``context`` (the numbers of the message by name). All of
them can be pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CapacityError",
    "ConfigError",
    "FormatError",
    "KeyFormatError",
    "KeystowError",
    "LayoutError",
    "SsdError",
    "StoreClosedError",
    "StoreLockedError",
]


class KeystowError(Exception):
    """Anything keystow raises on purpose; catch this to treat the cache as absent."""

    code: str
    hint: str
    context: dict[str, object]

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        hint: str = "",
        context: Mapping[str, object] | None = None,
    ) -> None:
        """Keep the parts; ``str()`` joins them."""
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint
        self.context = dict(context or {})

    def __str__(self) -> str:
        code = f" [{self.code}]" if self.code else ""
        hint = f" Hint: {self.hint}" if self.hint else ""
        return f"{type(self).__name__}{code}: {self.message}{hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (type(self), self.message), self.__dict__)


class ConfigError(KeystowError):
    """An option is unknown, absurd or beyond this machine: change it."""


class KeyFormatError(KeystowError):
    """Keys of another fingerprint, length or form: make them with this store."""


class LayoutError(KeystowError):
    """Memory of the wrong size, dtype, order or device, or a model this version can't lay out."""


class CapacityError(KeystowError):
    """More blocks were asked for at once than can be had now: ask for fewer, or release leases."""


class StoreClosedError(KeystowError):
    """The store or lease is closed, or this process is a fork of its owner: open a store here."""


class StoreLockedError(KeystowError):
    """Another process owns the store's directory."""


class FormatError(KeystowError):
    """A store's directory, or a trace, is in a form that this version can't read."""


class SsdError(KeystowError):
    """The disk did not confirm a remove or clear; in memory it is done."""


def _restore(kind: type[KeystowError], message: str) -> KeystowError:
    return kind(message)
