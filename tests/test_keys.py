"""Keys name the same blocks everywhere and for ever.

Method: fixed bytes made by another BLAKE3 from the definition in rust/core/src/key.rs; the same
bytes from a child process with another hash seed; every form of token ids against a list; cut
chains against whole ones. A changed golden vector would make every cache go cold.
"""

from __future__ import annotations

import array
import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import keystow
from keystow import KeyFormatError, Keys, Layout, LayoutError, block_keys

LAYOUT = Layout.opaque("golden", block_bytes=4096, block_tokens=16)
PLAIN = [
    "4ade9ae64ebd291e18b37ab3f1e2f36f",
    "7ecbabe35d1ff9d6bba3fe27ea274227",
    "a91fc3e63102b49164444e58bda0272a",
]
DRESSED = ["24b3ddfa84459ed1578429d44064667f", "d064e989303eec2ea585028f81daedc4"]
FOREIGN = ["2f0f294cd1cd9b7b54f4825cc9327c27", "03f66f4429a4e4dd3b8f7a00660bf0c3"]

CHILD = """
from keystow import Layout, block_keys
layout = Layout.opaque("golden", block_bytes=4096, block_tokens=16)
print(*(key.hex() for key in block_keys(list(range(48)), layout=layout)))
"""


def hexes(keys: Keys) -> list[str]:
    return [key.hex() for key in keys]


def chain(tokens: object, layout: Layout = LAYOUT, **options: object) -> Keys:
    return block_keys(tokens, layout=layout, **options)


def test_golden_fingerprints() -> None:
    assert LAYOUT.describe() == (
        '{"block_bytes":4096,"block_tokens":16,"format":1,"kind":"opaque","name":"golden"}'
    )
    assert LAYOUT.fingerprint.hex() == "d2f870cc2c65fef1c4c679cc82e5f9be"
    assert chain([]).fingerprint == LAYOUT.fingerprint
    salted = chain([], namespace="tenant-7", salt="pepper")
    assert salted.fingerprint.hex() == "adc09ac8f7825d23a95cb36d26faa60a"
    assert chain([], namespace="tenant-7", salt=b"pepper") == salted


def test_golden_keys() -> None:
    assert hexes(chain(list(range(48)))) == PLAIN
    assert hexes(chain(list(range(48 + 15)))) == PLAIN
    dressed = chain(
        [0, 2**32 - 1] * 16,
        namespace="tenant-7",
        salt="pepper",
        parent=bytes(range(16)),
        extra=[(10, 20, b"image"), (0, 2**63, b"lora")],
    )
    assert hexes(dressed) == DRESSED
    assert hexes(Keys.of([b"engine block 0", bytes(32)], layout=LAYOUT)) == FOREIGN


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_golden_keys_in_another_process(seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == PLAIN


def test_store_makes_the_same_keys() -> None:
    with keystow.Store(LAYOUT, ram="1MiB", namespace="tenant-7", salt="pepper") as store:
        keys = store.keys(range(48), extra=[(3, 4, b"x")], parent=bytes(16))
        options = {"extra": [(3, 4, b"x")], "parent": bytes(16), "salt": "pepper"}
        assert keys == chain(range(48), namespace="tenant-7", **options)
        assert store.fingerprint == keys.fingerprint
        hashes = [b"a", b"bc"]
        made = Keys.of(hashes, layout=LAYOUT, namespace="tenant-7", salt="pepper")
        assert store.keys_of(hashes) == made


# ---- forms of token ids ----

IDS = [0, 1, 7, 100, 127, 3, 3, 9] * 6
WHOLE = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 5, 6, 7] * 4


@pytest.mark.parametrize("code", list("bBhHiIlLqQ"))
def test_every_integer_dtype_of_numpy(code: str) -> None:
    expected = chain(IDS)
    values = np.array(IDS, dtype=code)
    assert chain(values) == expected
    assert chain(array.array(code, IDS)) == expected
    assert chain(memoryview(values)) == expected
    assert chain(values.astype(values.dtype.newbyteorder("<"))) == expected
    assert chain(np.repeat(values, 3)[::3]) == expected
    assert chain(values[::-1].copy()[::-1]) == expected


@pytest.mark.parametrize("name", "int8 int16 int32 int64 uint8 uint16 uint32 uint64".split())
def test_every_integer_dtype_of_torch(name: str) -> None:
    values = torch.tensor(IDS, dtype=torch.int64).to(getattr(torch, name))
    assert chain(values) == chain(IDS)
    table = torch.stack([values, values * 0], dim=1)
    assert chain(table[:, 0]) == chain(IDS)


def test_large_ids_in_every_form_that_holds_them() -> None:
    expected = chain(WHOLE)
    assert chain(np.array(WHOLE, dtype=np.uint32)) == expected
    assert chain(np.array(WHOLE, dtype=np.int64)) == expected
    assert chain(np.array(WHOLE, dtype=np.uint64)) == expected
    assert chain(torch.tensor(WHOLE)) == expected
    assert chain(tuple(WHOLE)) == expected
    assert chain(list(np.array(WHOLE))) == expected
    assert chain(token for token in WHOLE) == expected
    assert chain(range(48)) == chain(list(range(48)))
    assert chain(bytes(range(48))) == chain(list(range(48)))


@pytest.mark.parametrize("bad", [-1, 2**32, 2**64, -(2**63)])
def test_an_id_out_of_range_is_named(bad: int) -> None:
    tokens = [1] * 20 + [bad] + [1] * 20
    with pytest.raises(KeyFormatError, match=f"token 20 is {bad}") as caught:
        chain(tokens)
    assert caught.value.code == "KS-KEY-104"
    assert caught.value.context == {"index": 20}
    if -(2**63) <= bad < 2**63:
        for form in (np.array(tokens), np.repeat(np.array(tokens), 2)[::2], torch.tensor(tokens)):
            with pytest.raises(KeyFormatError, match=f"token 20 is {bad}"):
                chain(form)


@pytest.mark.parametrize("bad", [[1.0], ["1"], [None], [[1]]])
def test_an_item_that_is_no_integer_is_named(bad: list[object]) -> None:
    with pytest.raises(KeyFormatError, match="token 0 is"):
        chain(bad)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 16), np.int64),
        np.zeros(16),
        np.zeros(16, ">i4"),
        np.zeros(16, bool),
        torch.zeros(16),
        torch.zeros((1, 16), dtype=torch.int64),
        torch.zeros(16, dtype=torch.bool),
        "abc",
        5,
        None,
    ],
    ids=str,
)
def test_what_holds_no_row_of_ids_is_refused(bad: object) -> None:
    with pytest.raises(LayoutError) as caught:
        chain(bad)
    assert caught.value.code == "KS-LAY-111"


def test_a_single_value_is_refused() -> None:
    for bad in (np.array(5), np.zeros(())):
        with pytest.raises(LayoutError, match="a single value without an axis"):
            chain(bad)


def test_ids_on_a_device_are_refused() -> None:
    with pytest.raises(LayoutError, match="device meta"):
        chain(torch.zeros(16, dtype=torch.int64, device="meta"))


# ---- chains, parents, extras ----

extras = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 40), st.binary(min_size=1, max_size=5)).map(
        lambda it: (it[0], it[0] + it[1], it[2])
    ),
    max_size=4,
)


@given(
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=70), cut=st.integers(0, 17), extra=extras
)
def test_a_cut_chain_goes_on(
    tokens: list[int], cut: int, extra: list[tuple[int, int, bytes]]
) -> None:
    layout = Layout.opaque("four", block_bytes=4096, block_tokens=4)
    whole = chain(tokens, layout, extra=extra)
    at = min(cut, len(whole)) * 4
    head = chain(tokens[:at], layout, extra=extra)
    later = [(max(start - at, 0), end - at, digest) for start, end, digest in extra if end > at]
    tail = chain(tokens[at:], layout, extra=later, parent=head)
    assert hexes(head) + hexes(tail) == hexes(whole)
    assert tail.parent == whole[at // 4 :].parent


def test_an_extra_changes_its_blocks_and_those_behind_them() -> None:
    plain = chain(list(range(64)))
    dressed = chain(list(range(64)), extra=[(31, 33, b"image")])
    assert [a == b for a, b in zip(plain, dressed, strict=True)] == [True, False, False, False]
    last = chain(list(range(64)), extra=[(48, 49, b"image")])
    assert [a == b for a, b in zip(plain, last, strict=True)] == [True, True, True, False]
    assert chain(list(range(64)), extra=[(64, 99, b"behind")]) == plain
    assert chain(list(range(64)), extra=[]) == plain


@pytest.mark.parametrize(
    "bad",
    [
        [(1, 1, b"x")],
        [(2, 1, b"x")],
        [(0, 1, b"")],
        [(0, 1, b"x" * 65)],
        [(-1, 1, b"x")],
        [(0, 1, "text")],
        [(0, 1)],
        [7],
        5,
    ],
    ids=str,
)
def test_a_bad_extra_is_refused(bad: object) -> None:
    with pytest.raises(KeyFormatError, match="extra"):
        chain(list(range(16)), extra=bad)


def test_parents() -> None:
    keys = chain(list(range(64)))
    assert keys.parent is None
    assert keys[2:].parent == keys[1]
    assert keys[2:][1:].parent == keys[2]
    assert keys[2:2].parent == keys[1]
    assert keys[0:0].parent is None
    rest = list(range(32, 64))
    assert chain(rest, parent=keys[:2]) == keys[2:]
    assert chain(rest, parent=keys[1]) == keys[2:]
    assert chain(rest, parent=keys[2:2]) == keys[2:]
    assert chain(rest, parent=keys[:0]) == chain(rest)
    assert chain(rest, parent=keys[1])[1:].parent == keys[2]
    for bad in (b"short", "0" * 16, 7, bytearray(16)):
        with pytest.raises(KeyFormatError, match="parent"):
            chain(rest, parent=bad)
    with pytest.raises(KeyFormatError, match="parent have fingerprint"):
        chain(rest, parent=chain(list(range(16)), namespace="other"))


# ---- an engine's own hashes ----


def test_hashes_packed_and_listed_are_the_same() -> None:
    hashes = [bytes([i]) * 32 for i in range(5)]
    listed = Keys.of(hashes, layout=LAYOUT)
    assert Keys.of(b"".join(hashes), layout=LAYOUT, width=32) == listed
    assert Keys.of(np.frombuffer(b"".join(hashes), np.int64), layout=LAYOUT, width=32) == listed
    assert len({*listed}) == 5
    assert listed.tokens == 80
    assert listed[2:].parent == listed[1]
    assert listed[0] != hashes[0][:16]
    assert Keys.of(hashes, layout=LAYOUT, namespace="other") != listed


@pytest.mark.parametrize(
    ("hashes", "width"),
    [
        (bytes(33), 32),
        (bytes(32), None),
        (bytes(32), 0),
        (bytes(32), -1),
        ([bytes(32)], 32),
        ([b""], None),
        (["text"], None),
        ([7], None),
        ("text", None),
        (None, None),
    ],
    ids=str,
)
def test_bad_hashes_are_refused(hashes: object, width: int | None) -> None:
    with pytest.raises(KeyFormatError):
        Keys.of(hashes, layout=LAYOUT, width=width)


# ---- Keys as an object ----


def test_keys_are_a_sequence_of_bytes() -> None:
    keys = chain(list(range(48)))
    assert len(keys) == 3
    assert [*keys] == [keys[0], keys[1], keys[2]]
    assert keys[-1] == keys[2]
    assert type(keys[0]) is bytes
    assert len(keys[0]) == 16
    assert keys.tokens == 48
    assert keys[:2] == chain(list(range(32)))
    assert keys[1:] != keys[:2]
    assert keys != [*keys]
    assert keys[5:] == chain([])
    for index in (3, -4, 2**62, -(2**62)):
        with pytest.raises(IndexError):
            keys[index]
    with pytest.raises(TypeError):
        keys["0"]
    with pytest.raises(KeyFormatError, match="step 2"):
        keys[::2]
    with pytest.raises(TypeError):
        Keys()
    assert repr(keys) == "Keys(3 = 48 tokens, 4ade9ae6..a91fc3e6)"
    assert repr(keys[:0]) == "Keys(0)"


def test_equality_and_hash_go_by_keys_and_fingerprint() -> None:
    keys = chain(list(range(48)))
    again = chain(list(range(48)))
    assert keys == again
    assert hash(keys) == hash(again)
    assert hash(keys[1:]) == hash(again[1:])
    assert {keys: 1}[again] == 1
    assert chain([]) != chain([], namespace="other")


def test_the_buffer_is_packed_shared_and_read_only() -> None:
    keys = chain(list(range(48)))
    view = memoryview(keys)
    assert view.readonly
    assert view.nbytes == 48
    assert bytes(view) == b"".join(keys)
    whole, part = np.frombuffer(keys, np.uint8), np.frombuffer(keys[1:], np.uint8)
    assert np.shares_memory(whole, part)
    assert bytes(keys[3:]) == b""
    del keys
    assert bytes(view[16:]) == bytes(part)


def test_pickle_and_copy() -> None:
    keys = chain(list(range(48)), parent=bytes(16))
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for some in (keys, keys[1:], keys[3:], keys[:0]):
            back = pickle.loads(pickle.dumps(some, protocol))  # noqa: S301 - our own bytes
            assert back == some
            assert back.parent == some.parent
            assert back.tokens == some.tokens
            assert back.fingerprint == some.fingerprint
    assert copy.copy(keys) is keys
    assert copy.deepcopy(keys) is keys


def test_without_block_tokens_there_are_no_token_keys() -> None:
    layout = Layout.opaque("hashes only", block_bytes=4096)
    with pytest.raises(LayoutError, match="keys_of"):
        block_keys([1] * 16, layout=layout)
    with pytest.raises(LayoutError, match="keys_of"):
        Keys.of([b"x"], layout=layout).tokens  # noqa: B018 - the property raises
    assert len(Keys.of([b"x"], layout=layout)) == 1


def test_what_is_no_layout_is_refused() -> None:
    for bad in ("config.json", None, {}, b"layout"):
        with pytest.raises(LayoutError, match="not a Layout"):
            block_keys([1] * 16, layout=bad)
        with pytest.raises(LayoutError, match="not a Layout"):
            Keys.of([b"x"], layout=bad)


def test_keys_of_another_fingerprint_are_refused_everywhere() -> None:
    foreign = chain(list(range(32)), namespace="other")
    with keystow.Store(LAYOUT, ram="1MiB") as store:
        own = store.keys(list(range(32)))
        out = np.zeros((2, 4096), np.uint8)
        calls = [
            lambda: store.put(foreign, out),
            lambda: store.put(own, out, parent=foreign),
            lambda: store.get(foreign, out),
            lambda: store.get_each(foreign, out),
            lambda: store.match(foreign),
            lambda: store.match_prefix(foreign),
            lambda: store.contains(foreign),
            lambda: store.lease(foreign),
            lambda: store.touch(foreign),
            lambda: store.remove(foreign),
        ]
        for call in calls:
            with pytest.raises(KeyFormatError, match="fingerprint") as caught:
                call()
            assert caught.value.code == "KS-KEY-101"
        assert store.stats().puts == 0


def test_raw_and_listed_keys_reach_the_same_blocks() -> None:
    with keystow.Store(LAYOUT, ram="1MiB") as store:
        keys = store.keys(list(range(48)))
        assert store.put(keys, bytes(3 * 4096)) == 3
        for raw in (
            bytes(keys),
            bytearray(keys),
            memoryview(keys),
            np.frombuffer(keys, np.uint64),
            np.frombuffer(keys, np.uint8).reshape(3, 16),
            torch.frombuffer(bytearray(keys), dtype=torch.uint8),
        ):
            assert store.match_prefix(raw) == 3
        assert store.match_prefix(bytes(keys) + bytes(16)) == 3
        assert store.match_prefix([*keys]) == 0, "a list is hashed, never taken as keys"
        hashes = [b"h0", b"h1"]
        assert store.put(hashes, bytes(2 * 4096)) == 2
        assert store.match_prefix(store.keys_of(hashes)) == 2
        for bad in (bytes(17), "text", None, 7, [7], [b""], {b"x": 1}):
            with pytest.raises(KeyFormatError):
                store.match_prefix(bad)


def test_a_slice_is_put_under_the_key_before_it() -> None:
    with keystow.Store(LAYOUT, ram="1MiB") as store:
        keys = store.keys(list(range(64)))
        assert store.put(keys[2:], bytes(2 * 4096)) == 2
        assert store.match_prefix(keys) == 0
        assert store.match_prefix(keys[2:]) == 2
        assert store._validate()["holes"] == 1
        assert store.put(keys[:2], bytes(2 * 4096)) == 2
        assert store.match_prefix(keys) == 4
        assert store._validate()["holes"] == 0
