"""``Layout``: what one block is, and the identity that keeps blocks of different kinds apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keystow import _core
from keystow.attention import DTYPE_BYTES, dtype_name, read_attention
from keystow.errors import LayoutError

if TYPE_CHECKING:
    import os

__all__ = ["Layout"]

# The version of what `canonical` says and in what order a block's values stand.
_FORMAT = 1

# Facts about a config file, not about the model; keys that start with "_" are left out too.
_VOLATILE = frozenset({"transformers_version", "torch_dtype", "dtype", "name_or_path"})

_BLOCK_BYTES_MAX = 1 << 40
_BLOCK_TOKENS_MAX = 1 << 20


@dataclass(frozen=True, slots=True, repr=False)
class Layout:
    """What a block is: its size, its shape and what its bytes mean.

    Made by ``Layout.from_model`` or ``Layout.opaque``. Two layouts are equal exactly if their
    blocks may stand for each other; ``fingerprint`` is that identity.

    ``block_bytes``: size of a full block. ``block_tokens``: tokens a block, None if unknown.
    ``shape``: ``(layers, 2, block_tokens, kv_heads, head_dim)`` of one rank, keys before values;
    ``(block_bytes,)`` for an opaque layout. ``canonical``: ``describe()`` as bytes.
    """

    block_bytes: int
    block_tokens: int | None
    shape: tuple[int, ...]
    canonical: bytes

    @classmethod
    def from_model(
        cls,
        config: str | os.PathLike[str] | Mapping[str, object],
        *,
        block_tokens: int = 16,
        kv_dtype: str = "auto",
        tp: tuple[int, int] = (0, 1),
        pp: tuple[int, int] = (0, 1),
        revision: str | None = None,
    ) -> Layout:
        """Lay out the blocks of one rank of a model.

        ``config``: a ``config.json``, a folder with one, or its content, as it is on disk, as a
        mapping (defaults filled in by a library would be another layout).
        ``block_tokens``: tokens a block. ``kv_dtype``: ``"auto"`` (the config's dtype, else bf16),
        ``"bf16"``, ``"fp16"``, ``"fp32"``, ``"fp8"`` (= ``"fp8_e4m3"``), ``"fp8_e5m2"``,
        ``"int8"``, or torch's names.

        ``tp``, ``pp``: (rank, size) of tensor and pipeline parallelism. KV heads are split evenly
        over tp ranks; where there are fewer heads than ranks, ``size / heads`` ranks in a row hold
        the same head, and share a fingerprint. Layers are split evenly over pp ranks; the first
        ``layers % size`` ranks hold one more.

        ``revision``: which weights, for example a commit hash. Two sets of weights with one config
        need different revisions (or namespaces): their blocks are not interchangeable.

        Raises LayoutError for models that are not dense or mixture-of-experts with multi-head or
        grouped-query attention in every layer, for missing fields, and for heads or layers that
        don't divide.
        """
        content = config if isinstance(config, Mapping) else _load(config)
        attention = read_attention(content)
        tokens = _positive(block_tokens, "block_tokens", _BLOCK_TOKENS_MAX)
        dtype = dtype_name(attention.dtype if kv_dtype == "auto" else kv_dtype)
        first_head, heads = _split_heads(attention.kv_heads, *_rank(tp, "tp"))
        first_layer, layers = _split_layers(attention.layers, *_rank(pp, "pp"))
        shape = (layers, 2, tokens, heads, attention.head_dim)
        values = layers * 2 * tokens * heads * attention.head_dim
        description = {
            "format": _FORMAT,
            "kind": "attention",
            "model_type": attention.model_type,
            "config": _config_hash(content),
            "revision": revision,
            "kv_dtype": dtype,
            "block_tokens": tokens,
            "head_dim": attention.head_dim,
            "layers": [first_layer, first_layer + layers],
            "kv_heads": [first_head, first_head + heads],
            "order": "layer, key or value, token, head, dim",
        }
        return cls(values * DTYPE_BYTES[dtype], tokens, shape, _canonical(description))

    @classmethod
    def opaque(cls, name: str, *, block_bytes: int, block_tokens: int | None = None) -> Layout:
        """Take blocks whose meaning only the caller knows.

        ``name`` is their identity: change it whenever old blocks must not be found again (another
        model, dtype, rank or order). ``block_bytes``: size of the largest block.
        ``block_tokens``: tokens a block; without it there is no ``store.keys``, only ``keys_of``.

        Raises LayoutError for sizes that are not whole numbers above 0.
        """
        size = _positive(block_bytes, "block_bytes", _BLOCK_BYTES_MAX)
        tokens = block_tokens
        if tokens is not None:
            tokens = _positive(tokens, "block_tokens", _BLOCK_TOKENS_MAX)
        description = {
            "format": _FORMAT,
            "kind": "opaque",
            "name": name,
            "block_bytes": size,
            "block_tokens": tokens,
        }
        return cls(size, tokens, (size,), _canonical(description))

    @property
    def bytes_per_token(self) -> int | None:
        """Bytes a token takes in all layers of this rank; None if unknown or not a whole number."""
        if self.block_tokens is None or self.block_bytes % self.block_tokens:
            return None
        return self.block_bytes // self.block_tokens

    @property
    def fingerprint(self) -> bytes:
        """Identity of the layout: 16 bytes, those of a store without namespace and salt."""
        return _core._fingerprint(self.canonical, b"", b"")  # noqa: SLF001 - our own core

    def describe(self) -> str:
        """Everything the fingerprint is made of, as JSON with sorted keys."""
        return self.canonical.decode()

    def __repr__(self) -> str:
        said = json.loads(self.canonical)
        if said["kind"] == "opaque":
            tokens = "" if self.block_tokens is None else f", {self.block_tokens} tokens"
            return f"Layout({said['name']!r}, {self.block_bytes:,} bytes a block{tokens})"
        layers, _, tokens_each, heads, dim = self.shape
        return (
            f"Layout({said['model_type']}, {layers} layers x 2 x {tokens_each} tokens x "
            f"{heads} heads x {dim} x {DTYPE_BYTES[said['kv_dtype']]} bytes ({said['kv_dtype']}) = "
            f"{self.block_bytes:,} bytes a block)"
        )


def _load(config: object) -> Mapping[str, object]:
    from pathlib import Path  # noqa: PLC0415 - a sixth of the import time, and only for files

    file = config
    try:
        path = Path(config)  # type: ignore[arg-type] # what is no path raises TypeError
        file = path / "config.json" if path.is_dir() else path
        content = json.loads(file.read_bytes())
    except (OSError, TypeError, ValueError) as cause:
        raise LayoutError(
            f"{file} can't be read as a model's config: {cause}.",
            code="KS-LAY-201",
            hint="pass the path of a config.json, of a folder that has one, or a mapping.",
            context={"path": str(file)},
        ) from cause
    if not isinstance(content, dict):
        raise LayoutError(
            f"{file} holds {type(content).__name__}, not an object.",
            code="KS-LAY-201",
            hint="pass the config.json of a model.",
            context={"path": str(file)},
        )
    return content


def _split_heads(heads: int, rank: int, size: int) -> tuple[int, int]:
    """First KV head and number of heads of a tensor-parallel rank."""
    if heads % size == 0:
        share = heads // size
        return rank * share, share
    if size % heads == 0:
        return rank // (size // heads), 1
    raise LayoutError(
        f"{heads} KV heads can't be split over {size} ranks.",
        code="KS-LAY-205",
        hint="use a tp size that divides the KV heads or is a multiple of them.",
        context={"kv_heads": heads, "tp": size},
    )


def _split_layers(layers: int, rank: int, size: int) -> tuple[int, int]:
    """First layer and number of layers of a pipeline rank."""
    if size > layers:
        raise LayoutError(
            f"{layers} layers can't be split over {size} ranks.",
            code="KS-LAY-205",
            hint="use a pp size of at most the number of layers.",
            context={"layers": layers, "pp": size},
        )
    share, more = divmod(layers, size)
    return rank * share + min(rank, more), share + (rank < more)


def _rank(pair: tuple[int, int], name: str) -> tuple[int, int]:
    rank, size = pair
    if 0 <= rank < size:
        return rank, size
    raise LayoutError(
        f"{name}={pair!r} is no (rank, size) with 0 <= rank < size.",
        code="KS-LAY-208",
        hint=f"pass {name}=(rank, size), for example (0, 8).",
        context={name: pair},
    )


def _positive(value: int, name: str, most: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    raise LayoutError(
        f"{name}={value!r} is no whole number from 1 to {most:,}.",
        code="KS-LAY-208",
        hint=f"give {name} as an int.",
        context={name: value},
    )


def _config_hash(config: Mapping[str, object]) -> str:
    text = _canonical(_steady(config))
    return _core._fingerprint(text, b"model config", b"").hex()  # noqa: SLF001 - our own core


def _steady(value: object) -> object:
    """A config without what says nothing about the model."""
    if isinstance(value, Mapping):
        items = ((str(name), item) for name, item in value.items())
        return {
            name: _steady(item)
            for name, item in items
            if name not in _VOLATILE and not name.startswith("_")
        }
    if isinstance(value, (list, tuple)):
        return [_steady(item) for item in value]
    return value


def _canonical(description: object) -> bytes:
    try:
        text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as cause:
        raise LayoutError(
            f"the config holds something JSON does not know: {cause}.",
            code="KS-LAY-206",
            hint="pass the content of config.json as it is on disk.",
        ) from cause
    return text.encode()
