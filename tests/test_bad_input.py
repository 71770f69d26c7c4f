"""Bad input raises the design's error with a code, a hint and the numbers, and changes nothing.

Method: a store with history and a lease; one broken argument at a time; then contents, counters,
events and the recount are compared with those before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import keystow

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4096
LAYOUT = keystow.Layout.opaque("bad", block_bytes=BLOCK, block_tokens=1)
OTHER = keystow.Layout.opaque("other", block_bytes=BLOCK, block_tokens=1)
ROWS = np.arange(8 * BLOCK, dtype=np.uint32).astype(np.uint8).reshape(8, BLOCK)


@pytest.fixture
def store() -> Iterator[keystow.Store]:
    with keystow.Store(LAYOUT, ram=8 * BLOCK, deterministic=True) as store:
        store.put(store.keys(range(6)), ROWS[:6])
        store.put(store.keys(range(50, 52)), ROWS[6:])
        store.remove(store.keys(range(50, 51)))
        yield store


def state(store: keystow.Store) -> dict[str, Any]:
    stats = store.stats().as_dict()
    del stats["lock_holds"]
    return stats


def check_nothing_changed(store: keystow.Store, before: dict[str, Any]) -> None:
    assert state(store) == before
    assert store.events() == []
    recount = store._validate()
    assert (recount["blocks"], recount["pins"]) == (7, 1)
    out = np.zeros_like(ROWS)
    there = bytes(memoryview(store.keys(range(6)))) + store.keys(range(50, 52))[1]
    assert store.get_each(there, out[:7]) == [True] * 7
    assert (out[:6] == ROWS[:6]).all()
    assert (out[6] == ROWS[7]).all()


def read_only() -> np.ndarray:
    array = np.zeros((8, BLOCK), np.uint8)
    array.flags.writeable = False
    return array


def strided() -> np.ndarray:
    return np.zeros((8, 2 * BLOCK), np.uint8)[:, ::2]


# By name: the call, made with a store and eight of its keys, and what the message must mention.
LAYOUT_ERRORS: dict[str, tuple[Any, list[str]]] = {
    "blocks of nothing": (lambda *_: keystow.Store(block_bytes=0, ram="1MiB"), ["0"]),
    "put too few rows": (lambda s, k: s.put(k, ROWS[:7]), ["7", "8"]),
    "put too many rows": (lambda s, k: s.put(k[:7], ROWS), ["7", "8"]),
    "put too few in a list": (lambda s, k: s.put(k, list(ROWS[:3])), ["3", "8"]),
    "put bytes that don't divide": (lambda s, k: s.put(k, bytes(8 * BLOCK - 1)), ["32767", "8"]),
    "put one long row": (lambda s, k: s.put(k[:1], bytes(BLOCK + 1)), ["4097", "4096"]),
    "put a long row among others": (
        lambda s, k: s.put(k[:3], [b"", bytes(2 * BLOCK), b""]),
        ["8192", "4096"],
    ),
    "put strided": (lambda s, k: s.put(k, strided()), ["(8, 4096)", "contiguous"]),
    "put a strided tensor": (
        lambda s, k: s.put(k, torch.zeros(BLOCK, 8, dtype=torch.uint8).T),
        ["[8, 4096]", "contiguous"],
    ),
    "put another device": (lambda s, k: s.put(k, torch.zeros(8, 4, device="meta")), ["meta"]),
    "put a number": (lambda s, k: s.put(k, 8), ["int"]),
    "put text": (lambda s, k: s.put(k, "x" * 8), ["str"]),
    "put numbers": (lambda s, k: s.put(k, [1] * 8), ["blocks[0]", "int"]),
    "put a scalar array": (lambda s, k: s.put(k[:1], np.zeros(())), ["()"]),
    "get into read-only": (lambda s, k: s.get(k, read_only()), ["(8, 4096)", "read-only"]),
    "get into bytes": (lambda s, k: s.get(k, bytes(8 * BLOCK)), ["32768", "read-only"]),
    "get into strided": (lambda s, k: s.get(k, strided()), ["(8, 4096)", "contiguous"]),
    "get into too few": (lambda s, k: s.get(k, np.zeros((5, BLOCK), np.uint8)), ["(5, 4096)", "8"]),
    "get into short rows": (
        lambda s, k: s.get(k, np.zeros((8, BLOCK - 1), np.uint8)),
        ["4095", "4096"],
    ),
    "get into one short row": (
        lambda s, k: s.get(k[:2], [bytearray(BLOCK), bytearray(9)]),
        ["9", "4096"],
    ),
    "get_each into short rows": (lambda s, k: s.get_each(k, bytearray(8 * 16)), ["16", "4096"]),
    "get_each into read-only": (lambda s, k: s.get_each(k, read_only()), ["read-only"]),
    "get_each into too many": (
        lambda s, k: s.get_each(k, [bytearray(BLOCK)] * 9),
        ["9", "8"],
    ),
    "get into a tensor that needs grad": (
        lambda s, k: s.get(k, torch.zeros(8, BLOCK // 4, requires_grad=True)),
        ["requires grad"],
    ),
}

KEY_ERRORS: dict[str, tuple[Any, list[str]]] = {
    "half a key": (lambda s, _: s.match(bytes(24)), ["24", "16"]),
    "keys of another layout": (
        lambda s, _: s.get(keystow.block_keys(range(8), layout=OTHER), bytearray(8 * BLOCK)),
        ["fingerprint"],
    ),
    "keys of another namespace": (
        lambda s, _: s.remove(keystow.block_keys(range(8), layout=LAYOUT, namespace="b")),
        ["fingerprint"],
    ),
    "a parent of another layout": (
        lambda s, k: s.put(k, ROWS, parent=keystow.block_keys([1], layout=OTHER)),
        ["fingerprint"],
    ),
    "a short parent": (lambda s, k: s.put(k, ROWS, parent=bytes(15)), ["15"]),
    "a number as parent": (lambda s, k: s.put(k, ROWS, parent=3), ["int"]),
    "text": (lambda s, _: s.contains("0123456789abcdef"), ["str"]),
    "nothing": (lambda s, _: s.match_prefix(None), ["NoneType"]),
    "numbers": (lambda s, _: s.touch([1, 2]), ["keys[0]", "int"]),
    "an empty hash": (lambda s, _: s.lease([b"x", b""]), ["keys[1]"]),
    "a negative token": (lambda s, _: s.keys([1, 2, -1]), ["2", "-1"]),
    "a token too large": (lambda s, _: s.keys(np.array([2**32])), ["0", "4294967296"]),
    "a digest too long": (lambda s, _: s.keys([1, 2], extra=[(0, 1, bytes(65))]), ["65", "64"]),
    "an empty digest": (lambda s, _: s.keys([1, 2], extra=[(0, 1, b"")]), ["0"]),
    "an extra that ends first": (lambda s, _: s.keys([1, 2], extra=[(2, 1, b"x")]), ["2", "1"]),
    "a stride through a chain": (lambda _, k: k[::2], ["2"]),
}

CONFIG_ERRORS: dict[str, tuple[Any, list[str]]] = {
    "a pool": (lambda s, k: s.put(k, ROWS, pool="ssm"), ["pool"]),
    "a priority": (lambda s, k: s.put(k, ROWS, priority=7), ["7", "-1", "1"]),
    "a negative wait": (lambda s, k: s.put(k, ROWS, timeout_s=-0.5), ["-0.5"]),
    "an endless wait": (lambda s, k: s.get(k, ROWS.copy(), timeout_s=float("inf")), ["inf"]),
    "a requirement": (lambda s, k: s.match(k, require={"kv": "all"}), ["require"]),
    "an option of a store": (
        lambda *_: keystow.Store(LAYOUT, ram="1MiB", polcy="lru"),
        ["polcy", "Did you mean 'policy'?"],
    ),
    "a policy": (
        lambda *_: keystow.Store(LAYOUT, ram="1MiB", policy="lrru"),
        ["'lrru'", "'lru'"],
    ),
    "an SSD": (
        lambda *_: keystow.Store(LAYOUT, ram="1MiB", ssd="/nvme"),
        ["ssd='/nvme'", "how much room"],
    ),
    "no RAM": (lambda *_: keystow.Store(LAYOUT, ram=0), ["ram=0", "without ssd="]),
    "RAM for no block": (lambda *_: keystow.Store(LAYOUT, ram=BLOCK - 1), ["4095", "4096"]),
    "RAM beyond the machine": (
        lambda *_: keystow.Store(keystow.Layout.opaque("", block_bytes=1 << 28), ram="64TiB"),
        ["65536.00 GiB"],
    ),
    "absurd RAM": (lambda *_: keystow.Store(LAYOUT, ram=1 << 70), [str(1 << 70)]),
    "blocks of minus one": (lambda *_: keystow.Store(block_bytes=-1, ram="1MiB"), ["-1"]),
    "absurd blocks": (
        lambda *_: keystow.Store(block_bytes="257MiB", ram="1GiB"),
        ["269484032", "268435456"],
    ),
}

CASES = [
    pytest.param(kind, *case, id=f"{kind.__name__}: {name}")
    for kind, cases in [
        (keystow.LayoutError, LAYOUT_ERRORS),
        (keystow.KeyFormatError, KEY_ERRORS),
        (keystow.ConfigError, CONFIG_ERRORS),
    ]
    for name, case in cases.items()
]


@pytest.mark.parametrize(("kind", "call", "numbers"), CASES)
def test_the_error_and_that_nothing_changed(
    store: keystow.Store, kind: type[keystow.KeystowError], call: Any, numbers: list[str]
) -> None:
    keys = store.keys(range(8))
    store.events()
    with store.lease(keys[:2]):
        before = state(store)
        with pytest.raises(kind) as caught:
            call(store, keys)
        check_nothing_changed(store, before)
    error = caught.value
    prefix = {"LayoutError": "LAY", "KeyFormatError": "KEY", "ConfigError": "CFG"}[kind.__name__]
    assert re.fullmatch(rf"KS-{prefix}-\d\d\d", error.code)
    assert str(error).startswith(f"{kind.__name__} [{error.code}]: ")
    assert str(error).endswith(f" Hint: {error.hint}")
    assert len(error.hint) > 10
    for number in numbers:
        assert number in error.message, error.message
    assert isinstance(error.context, dict)


def test_a_lease_with_too_high_a_demand_pins_and_touches_nothing(store: keystow.Store) -> None:
    keys = store.keys(range(8))
    with store.lease(keys[:2]):
        before = state(store)
        with pytest.raises(
            keystow.CapacityError, match=r"7 of 8 .* 6 there \(2 of 8 frames"
        ) as caught:
            store.lease(keys, min_blocks=7)
        after = state(store)
    assert caught.value.code == "KS-CAP-001"
    assert caught.value.context["found"] == 6
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"misses"}
    assert after["misses"] - before["misses"] == 8
    assert store._validate()["pins"] == 0
    # The chain is still older than the block that came last: it loses its tail.
    fresh = store.keys(range(900, 902))
    assert store.put(fresh, ROWS[:2]) == 2
    assert store.contains(store.keys(range(50, 52))) == [False, True]
    assert store.match_prefix(keys) == 4


def test_a_wrong_row_late_in_a_long_batch_stops_it_before_the_first(store: keystow.Store) -> None:
    keys = store.keys(range(100, 108))
    rows: list[object] = [bytes(BLOCK)] * 7
    before = state(store)
    for bad in (bytes(BLOCK + 1), strided(), "text", None):
        with pytest.raises(keystow.LayoutError, match=r"7|4097"):
            store.put(keys, [*rows, bad])
    assert state(store) == before
