"""keystow: an embedded KV-cache block store for LLM inference.

>>> import keystow
>>> store = keystow.Store(block_bytes=1 << 20, ram="1GiB")

``Store`` keeps blocks, ``Layout`` says what a block of a model is, ``Keys`` name blocks by the
tokens before and in them. ``replay`` counts what a cache would have hit on a trace. See the
docstrings of ``Store`` and its methods.
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
from keystow.layout import Layout
from keystow.replay import Replay, Trace, replay
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
    "Replay",
    "SsdError",
    "Stats",
    "Store",
    "StoreClosedError",
    "StoreLockedError",
    "Trace",
    "__version__",
    "block_keys",
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
