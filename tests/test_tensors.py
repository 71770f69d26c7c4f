"""Blocks and outs in every form of memory: right bytes, or a LayoutError and nothing changed.

Method: the same bytes go in through one form and come out through another; every torch dtype is
carried bit for bit; each kind of unusable memory is tried on put and get, with counters compared.
"""

from __future__ import annotations

import array
import ctypes
import mmap
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import keystow
from keystow import LayoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4096
COUNT = 4
LAYOUT = keystow.Layout.opaque("tensors", block_bytes=BLOCK, block_tokens=16)
DATA = np.random.default_rng(11).integers(0, 256, (COUNT, BLOCK), np.uint8)

# Bytes an item, by dtype; every dtype that this torch has and that has whole bytes.
DTYPES = [
    name
    for name in (
        "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz "
        "float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 int64 int32 int16 int8 uint64 uint32 "
        "uint16 uint8 bool complex64 complex128"
    ).split()
    if hasattr(torch, name)
]


@pytest.fixture
def store() -> Iterator[keystow.Store]:
    with keystow.Store(LAYOUT, ram="1MiB", deterministic=True) as store:
        yield store


@pytest.fixture
def keys(store: keystow.Store) -> keystow.Keys:
    return store.keys(range(16 * COUNT))


def anonymous_map() -> mmap.mmap:
    return mmap.mmap(-1, COUNT * BLOCK)


OUTS = {
    "bytearray": lambda: bytearray(COUNT * BLOCK),
    "memoryview": lambda: memoryview(bytearray(COUNT * BLOCK)),
    "memoryview 2-D": lambda: memoryview(bytearray(COUNT * BLOCK)).cast("B", (COUNT, BLOCK)),
    "array": lambda: array.array("q", bytes(COUNT * BLOCK)),
    "ctypes": ctypes.c_uint8 * (COUNT * BLOCK),
    "mmap": anonymous_map,
    "numpy flat": lambda: np.zeros(COUNT * BLOCK, np.uint8),
    "numpy float": lambda: np.zeros((COUNT, BLOCK // 8)),
    "numpy 5-D": lambda: np.zeros((COUNT, 2, 2, 64, 4), np.float32),
    "numpy list": lambda: [np.zeros(BLOCK, np.uint8) for _ in range(COUNT)],
    "numpy tuple 2-D": lambda: tuple(np.zeros((64, 16), np.float32) for _ in range(COUNT)),
    "bytearrays": lambda: [bytearray(BLOCK) for _ in range(COUNT)],
    "torch": lambda: torch.zeros((COUNT, BLOCK), dtype=torch.uint8),
    "torch flat": lambda: torch.zeros(COUNT * BLOCK, dtype=torch.uint8),
    "torch bf16": lambda: torch.zeros((COUNT, 32, 64), dtype=torch.bfloat16),
    "torch list": lambda: [torch.zeros(BLOCK, dtype=torch.uint8) for _ in range(COUNT)],
    "torch and numpy": lambda: [
        torch.zeros(BLOCK, dtype=torch.uint8),
        np.zeros(BLOCK // 2, np.int16),
        bytearray(BLOCK),
        memoryview(bytearray(BLOCK)),
    ],
}


def content(out: object) -> bytes:
    if isinstance(out, (list, tuple)):
        return b"".join(content(row) for row in out)
    if isinstance(out, torch.Tensor):
        return out.contiguous().view(torch.uint8).numpy().tobytes()
    return bytes(memoryview(out).cast("B"))


@pytest.mark.parametrize("form", OUTS)
def test_every_form_out_and_in(store: keystow.Store, keys: keystow.Keys, form: str) -> None:
    assert store.put(keys, DATA) == COUNT
    out = OUTS[form]()
    assert store.get(keys, out) == COUNT
    assert content(out) == DATA.tobytes()
    each = OUTS[form]()
    assert store.get_each(keys, each) == [True] * COUNT
    assert content(each) == DATA.tobytes()
    store.clear()
    assert store.put(keys, out) == COUNT
    back = np.zeros_like(DATA)
    assert store.get(keys, back) == COUNT
    assert (back == DATA).all()


@pytest.mark.parametrize(
    "source",
    [
        DATA.tobytes(),
        memoryview(DATA.tobytes()),
        [row.tobytes() for row in DATA],
        np.frombuffer(DATA.tobytes(), np.int32).reshape(COUNT, -1),
    ],
    ids=["bytes", "memoryview", "list of bytes", "read-only numpy"],
)
def test_read_only_memory_can_be_put(
    store: keystow.Store, keys: keystow.Keys, source: object
) -> None:
    assert store.put(keys, source) == COUNT
    out = bytearray(COUNT * BLOCK)
    assert store.get(keys, out) == COUNT
    assert out == DATA.tobytes()


@pytest.mark.parametrize("name", DTYPES)
def test_every_torch_dtype_bit_for_bit(store: keystow.Store, keys: keystow.Keys, name: str) -> None:
    dtype = getattr(torch, name)
    raw = torch.from_numpy(DATA & 1 if name == "bool" else DATA.copy())
    assert store.put(keys, raw.view(dtype)) == COUNT
    out = torch.zeros_like(raw).view(dtype)
    assert store.get(keys, out) == COUNT
    assert torch.equal(out.view(torch.uint8), raw)
    rows = [torch.zeros(BLOCK, dtype=torch.uint8).view(dtype) for _ in range(COUNT)]
    assert store.get(keys, rows) == COUNT
    assert torch.equal(torch.stack([row.view(torch.uint8) for row in rows]), raw)


def test_slices_of_tensors_start_where_they_start(store: keystow.Store, keys: keystow.Keys) -> None:
    pool = torch.zeros((COUNT + 3, BLOCK), dtype=torch.uint8)
    pool[2 : 2 + COUNT] = torch.from_numpy(DATA)
    assert store.put(keys, pool[2 : 2 + COUNT]) == COUNT
    out = np.full((COUNT + 2, BLOCK), 7, np.uint8)
    assert store.get(keys, out[1:-1]) == COUNT
    assert (out[1:-1] == DATA).all()
    assert (out[[0, -1]] == 7).all()


def test_short_blocks_and_long_rows(store: keystow.Store, keys: keystow.Keys) -> None:
    sizes = [1, 100, 4095, 4096]
    blocks = [row[:size].tobytes() for row, size in zip(DATA, sizes, strict=True)]
    assert store.put(keys, blocks) == COUNT
    out = np.full((COUNT, BLOCK + 8), 7, np.uint8)
    assert store.get(keys, out) == COUNT
    for row, block in zip(out, blocks, strict=True):
        assert row[: len(block)].tobytes() == block
        assert (row[len(block) :] == 7).all(), "the rest of a row is left alone"
    with store.lease(keys) as lease:
        assert [view.nbytes for view in lease] == sizes


def test_no_keys_no_rows(store: keystow.Store, keys: keystow.Keys) -> None:
    none = keys[:0]
    for empty in (b"", bytearray(), [], (), np.zeros((0, 8)), torch.zeros((0, 8))):
        assert store.put(none, empty) == 0
    for empty in (bytearray(), [], np.zeros((0, 8)), torch.zeros((0, 8))):
        assert store.get(none, empty) == 0
        assert store.get_each(none, empty) == []
    assert store.match(none).blocks == 0
    assert len(store.lease(none)) == 0
    for wrong in (b"x", [b""], np.zeros((1, 8))):
        with pytest.raises(LayoutError):
            store.put(none, wrong)


# ---- refusals ----


class NoBuffer:
    """Nothing like memory."""


def conjugate() -> torch.Tensor:
    return torch.zeros((COUNT, 8), dtype=torch.complex64).conj()


BAD_ANYWHERE = {
    "too few rows": (lambda: np.zeros((COUNT - 1, 8)), "KS-LAY-101"),
    "too many rows": (lambda: np.zeros((COUNT + 1, 8)), "KS-LAY-101"),
    "no leading axis": (lambda: np.zeros(()), "KS-LAY-103"),
    "torch scalar": (lambda: torch.zeros(()), "KS-LAY-101"),
    "flat and odd": (lambda: bytearray(COUNT * 8 + 1), "KS-LAY-101"),
    "short list": (lambda: [bytearray(8)] * (COUNT - 1), "KS-LAY-101"),
    "long list": (lambda: [bytearray(8)] * (COUNT + 1), "KS-LAY-101"),
    "torch rows": (lambda: torch.zeros((COUNT + 1, 8)), "KS-LAY-101"),
    "None": (lambda: None, "KS-LAY-102"),
    "int": (lambda: 7, "KS-LAY-102"),
    "str": (lambda: "x" * COUNT, "KS-LAY-102"),
    "dict": (lambda: {i: bytearray(8) for i in range(COUNT)}, "KS-LAY-102"),
    "object": (NoBuffer, "KS-LAY-102"),
    "class": (lambda: torch.Tensor, "KS-LAY-102"),
    "list of ints": (lambda: [1] * COUNT, "KS-LAY-102"),
    "list of lists": (lambda: [[bytearray(8)]] * COUNT, "KS-LAY-102"),
    "strided numpy": (lambda: np.zeros((COUNT, 16))[:, ::2], "KS-LAY-104"),
    "fortran": (lambda: np.zeros((COUNT, 16), order="F"), "KS-LAY-104"),
    "every other row": (lambda: np.zeros((2 * COUNT, 16))[::2], "KS-LAY-104"),
    "strided view": (lambda: memoryview(bytearray(COUNT * 16))[::2], "KS-LAY-104"),
    "strided torch": (lambda: torch.zeros((COUNT, 16))[:, ::2], "KS-LAY-104"),
    "transposed torch": (lambda: torch.zeros((16, COUNT)).t(), "KS-LAY-104"),
    "expanded torch": (lambda: torch.zeros((1, 16)).expand(COUNT, 16), "KS-LAY-104"),
    "strided row": (lambda: [np.zeros((8, 2))[:, 0] for _ in range(COUNT)], "KS-LAY-104"),
    "meta": (lambda: torch.zeros((COUNT, 8), device="meta"), "KS-LAY-106"),
    "meta row": (lambda: [torch.zeros(8, device="meta")] * COUNT, "KS-LAY-106"),
    "sparse": (lambda: torch.eye(COUNT).to_sparse(), "KS-LAY-104"),
    "conjugate": (conjugate, "KS-LAY-109"),
}
BAD_OUT = {
    "bytes": (lambda: bytes(COUNT * BLOCK), "KS-LAY-105"),
    "read-only numpy": (lambda: np.frombuffer(DATA.tobytes(), np.uint8).reshape(COUNT, -1),
                        "KS-LAY-105"),
    "read-only view": (lambda: memoryview(bytes(COUNT * BLOCK)), "KS-LAY-105"),
    "read-only row": (lambda: [bytearray(BLOCK)] * 3 + [bytes(BLOCK)], "KS-LAY-105"),
    "keys": (lambda: keystow.block_keys(range(64), layout=LAYOUT), "KS-LAY-105"),
    "short rows": (lambda: np.zeros((COUNT, BLOCK - 1), np.uint8), "KS-LAY-003"),
    "requires grad": (lambda: torch.zeros((COUNT, 1024), requires_grad=True), "KS-LAY-108"),
}  # fmt: skip
BAD_BLOCKS = {
    "long rows": (lambda: np.zeros((COUNT, BLOCK + 1), np.uint8), "KS-LAY-002"),
    "one long row": (lambda: [bytes(8)] * 3 + [bytes(BLOCK + 1)], "KS-LAY-002"),
}


def counters(store: keystow.Store) -> dict[str, object]:
    moving = {"lock_holds", "lock_blocks_max", "policy_steps"}
    return {name: it for name, it in store.stats().as_dict().items() if name not in moving}


@pytest.mark.parametrize("case", [*BAD_ANYWHERE, *BAD_BLOCKS])
def test_bad_blocks_change_nothing(store: keystow.Store, keys: keystow.Keys, case: str) -> None:
    make, code = (BAD_ANYWHERE | BAD_BLOCKS)[case]
    before = counters(store)
    with pytest.raises(LayoutError) as caught:
        store.put(keys, make())
    assert caught.value.code == code
    assert caught.value.hint
    assert counters(store) == before
    assert store.match_prefix(keys) == 0
    assert store.events() == []


@pytest.mark.parametrize("case", [*BAD_ANYWHERE, *BAD_OUT])
def test_bad_outs_change_nothing(store: keystow.Store, keys: keystow.Keys, case: str) -> None:
    make, code = (BAD_ANYWHERE | BAD_OUT)[case]
    store.put(keys, DATA)
    for verb in (store.get, store.get_each):
        out = make()
        with pytest.raises(LayoutError) as caught:
            verb(keys, out)
        assert caught.value.code == code
        assert caught.value.hint
    assert store.stats().bytes_out == 0
    store._validate()


def test_a_numpy_dtype_without_buffer_says_the_way_out(
    store: keystow.Store, keys: keystow.Keys
) -> None:
    with pytest.raises(LayoutError, match=r"view\(numpy\.uint8\)") as caught:
        store.put(keys, np.zeros((COUNT, 8), "datetime64[s]"))
    assert caught.value.code == "KS-LAY-103"
    assert caught.value.__cause__ is not None


def test_errors_name_the_row_and_the_shape(store: keystow.Store, keys: keystow.Keys) -> None:
    with pytest.raises(LayoutError, match=r"out\[3\] is bytes of length 4096"):
        store.get(keys, [bytearray(BLOCK)] * 3 + [bytes(BLOCK)])
    with pytest.raises(LayoutError, match=r"ndarray of shape \(3, 8\) and dtype float64.* 4 keys"):
        store.put(keys, np.zeros((3, 8)))


def test_a_bytearray_can_not_shrink_during_a_call_and_can_after(
    store: keystow.Store, keys: keystow.Keys
) -> None:
    out = bytearray(COUNT * BLOCK)
    store.put(keys, out)
    store.get(keys, out)
    out.clear()
