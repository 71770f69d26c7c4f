"""keystow: an embedded KV-cache block store for LLM inference.

>>> import keystow
>>> store = keystow.Store(block_bytes=1 << 20, ram="1GiB")

``Store`` keeps blocks, in RAM and with ``Ssd`` on disk; ``Layout`` says what a block of a model is,
``Keys`` name blocks by the tokens before and in them. ``open_readonly`` is a frozen view of what is
on disk. ``replay`` counts what a cache would have hit on a trace. See the docstrings of ``Store``
and its methods.
"""

from keystow._core import (
    OPTIMISED as _OPTIMISED,
)
from keystow._core import (
    Closed,
    Event,
    Keys,
    Lease,
    Match,
    ReadOnlyStore,
    Scrubbed,
    Stats,
    __version__,
    block_keys,
)
from keystow.errors import (
    CapacityError,
    ConfigError,
    FormatError,
    KeyFormatError,
    KeystowError,
    LayoutError,
    SsdError,
    StoreClosedError,
    StoreLockedError,
)
from keystow.inspection import open_readonly
from keystow.layout import Layout
from keystow.replay import Replay, Trace, replay
from keystow.ssd import Ssd
from keystow.store import Store

__all__ = [
    "CapacityError",
    "Closed",
    "ConfigError",
    "Event",
    "FormatError",
    "KeyFormatError",
    "Keys",
    "KeystowError",
    "Layout",
    "LayoutError",
    "Lease",
    "Match",
    "ReadOnlyStore",
    "Replay",
    "Scrubbed",
    "Ssd",
    "SsdError",
    "Stats",
    "Store",
    "StoreClosedError",
    "StoreLockedError",
    "Trace",
    "__version__",
    "block_keys",
    "open_readonly",
    "replay",
]

if not _OPTIMISED:
    import warnings

    warnings.warn(
        "keystow was built without optimisation: its figures mean nothing. "
        "Build with `maturin develop --release`.",
        RuntimeWarning,
        stacklevel=2,
    )
