"""Errors say what went wrong, where, and the way out, and survive pickling.

Method: every class is built, shown and pickled; options are misspelt; sizes are read in all
spellings; arguments of verbs are broken one at a time, and the store is compared before and after.
"""

from __future__ import annotations

import copy
import pickle
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

import keystow
from keystow import errors
from keystow.config import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYOUT = keystow.Layout.opaque("errors", block_bytes=4096, block_tokens=16)
CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.fixture
def store() -> Iterator[keystow.Store]:
    with keystow.Store(LAYOUT, ram="1MiB", deterministic=True) as store:
        yield store


@pytest.mark.parametrize("kind", CLASSES)
def test_form_and_pickle(kind: type[errors.KeystowError]) -> None:
    error = kind("9 of 8.", code="KS-XXX-001", hint="take fewer.", context={"asked": 9})
    assert str(error) == f"{kind.__name__} [KS-XXX-001]: 9 of 8. Hint: take fewer."
    error.add_note("while testing")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own
        assert type(again) is kind
        assert str(again) == str(error)
        assert (again.code, again.hint, again.context) == (
            "KS-XXX-001",
            "take fewer.",
            {"asked": 9},
        )
        assert again.__notes__ == ["while testing"]
    assert issubclass(kind, keystow.KeystowError)
    assert kind is keystow.__dict__[kind.__name__]
    assert str(kind("bare.")) == f"{kind.__name__}: bare."


def test_an_error_from_the_core_is_complete(store: keystow.Store) -> None:
    with pytest.raises(keystow.CapacityError) as caught:
        store.lease(store.keys(range(32)), min_blocks=2)
    error = caught.value
    assert re.fullmatch(r"CapacityError \[KS-CAP-001\]: 2 of 2 .* Hint: .*\.", str(error))
    assert error.code == "KS-CAP-001"
    assert error.hint
    assert error.context["min_blocks"] == 2
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ram": "1MiB", "polcy": "lru"}, "Did you mean 'policy'?"),
        ({"ram": "1MiB", "zzz": 1}, "no option 'zzz'"),
        ({"ram": "1MiB", "policy": "lur"}, "Did you mean 'lru'?"),
        ({"ram": "1MiB", "policy": None}, "policy=None"),
        ({}, "ram= is missing"),
        ({"ram": 0}, "without ssd="),
        ({"ram": "1MiB", "ssd": "/nvme/kv"}, "how much room"),
        ({"ram": "1 potato"}, "no size"),
        ({"ram": -1}, "no size"),
        ({"ram": 4095}, "hold no block"),
        ({"ram": "900TiB"}, "frames"),
        ({"ram": "1MiB", "clock": "manual"}, "deterministic=True"),
        ({"ram": "1MiB", "clock": "sundial"}, "clock='sundial'"),
        ({"ram": "1MiB", "prefault": "later"}, "prefault='later'"),
        ({"ram": "1MiB", "put_wait_s": -1}, "put_wait_s=-1"),
        ({"ram": "1MiB", "put_wait_s": float("nan")}, "put_wait_s=nan"),
        ({"ram": "1MiB", "io_timeout_s": "1"}, "io_timeout_s='1'"),
        ({"ram": "1MiB", "block_bytes": 4096}, "both"),
        ({"ram": "1MiB", "layout": "config.json"}, "not a Layout"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object], says: str) -> None:
    with pytest.raises(keystow.ConfigError, match=re.escape(says)) as caught:
        keystow.Store(**{"layout": LAYOUT, **options})
    assert caught.value.code.startswith("KS-CFG-")
    assert caught.value.hint


def test_neither_layout_nor_block_bytes() -> None:
    with pytest.raises(keystow.ConfigError, match="neither"):
        keystow.Store(ram="1MiB")
    with pytest.raises(keystow.ConfigError, match=r"1 to 268435456"):
        keystow.Store(block_bytes=1 << 30, ram="8GiB")


def test_more_memory_than_there_is() -> None:
    with pytest.raises(keystow.ConfigError) as caught:
        keystow.Store(block_bytes="256MiB", ram="4TiB")
    assert caught.value.code == "KS-CFG-102"


def test_sizes() -> None:
    assert parse_size(4096) == 4096
    assert parse_size(np.int64(4096)) == 4096
    assert parse_size("4096") == 4096
    assert parse_size("0") == 0
    assert parse_size("4GiB") == 4 << 30
    assert parse_size(" 4 gib ") == 4 << 30
    assert parse_size("100GB") == 100 * 10**9
    assert parse_size("1.5TiB") == 3 << 39
    assert parse_size("12,288 KiB") == 12 << 20
    assert parse_size("7kB") == 7000
    for bad in ("", "GiB", "4G", "4Gi", "-1GiB", "1e9", "nan", "1.2.3MB", "0x10", "4GiB!", "2EB"):
        with pytest.raises(keystow.ConfigError) as caught:
            parse_size(bad, "ram")
        assert caught.value.context == {"ram": bad}
    for bad in (True, 1.5, None, b"4GiB", -1, 2**61):
        with pytest.raises(keystow.ConfigError):
            parse_size(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, k, b: s.put(k, b, timeout_s=-1),
        lambda s, k, b: s.put(k, b, timeout_s=float("nan")),
        lambda s, k, b: s.put(k, b, timeout_s=float("inf")),
        lambda s, k, b: s.put(k, b, priority=2),
        lambda s, k, b: s.put(k, b, priority=-2),
        lambda s, k, b: s.put(k, b, pool="kv"),
        lambda s, k, b: s.get(k, b, timeout_s=-1),
        lambda s, k, _: s.match(k, require={"kv": "all"}),
        lambda s, k, _: s.lease(k, min_blocks=-1),
        lambda s, *_: s.close(timeout_s=-1),
    ],
)
def test_bad_options_of_verbs_change_nothing(
    store: keystow.Store, call: Callable[..., object]
) -> None:
    keys = store.keys(range(64))
    store.put(keys[:2], bytes(2 * 4096))
    before = store.stats().as_dict()
    with pytest.raises(keystow.ConfigError) as caught:
        call(store, keys, bytearray(4 * 4096))
    assert caught.value.hint
    after = store.stats().as_dict()
    ignore = {"lock_holds"}
    assert {k: v for k, v in after.items() if k not in ignore} == {
        k: v for k, v in before.items() if k not in ignore
    }
    assert not store.closed


def test_good_options_of_verbs_are_taken(store: keystow.Store) -> None:
    keys = store.keys(range(32))
    options = {"parent": None, "chained": False, "priority": -1, "pool": None, "timeout_s": 0}
    assert store.put(keys, bytes(8192), **options) == 2
    assert store.get(keys, bytearray(8192), timeout_s=1e9) == 2
    assert store.match(keys, require=None).blocks == 2
    with pytest.raises(TypeError):
        store.put(keys, bytes(8192), prioritty=1)


def test_pickling_what_owns_memory(store: keystow.Store) -> None:
    keys = store.keys(range(32))
    store.put(keys, bytes(8192))
    for owner in (store, store.lease(keys), store.match(keys), store.match(keys, pin=True)):
        for how in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"cannot pickle .* Hint: "):
                how(owner)


def test_after_close() -> None:
    store = keystow.Store(LAYOUT, ram="1MiB")
    keys = store.keys(range(32))
    store.put(keys, bytes(8192))
    match = store.match(keys)
    assert store.close() == store.close() or store.closed
    out = bytearray(8192)
    calls = [
        lambda: store.put(keys, out),
        lambda: store.get(keys, out),
        lambda: store.get_each(keys, out),
        lambda: store.match(keys),
        lambda: store.match_prefix(keys),
        lambda: store.contains(keys),
        lambda: store.lease(keys),
        lambda: store.touch(keys),
        lambda: store.remove(keys),
        store.clear,
        store.events,
        store.__enter__,
        store._validate,
        lambda: match.get(out),
        match.lease,
    ]
    for call in calls:
        with pytest.raises(keystow.StoreClosedError) as caught:
            call()
        assert caught.value.code == "KS-CLO-001"
    assert store.stats().state == "closed"
    assert store.stats().puts == 2
    assert "closed)" in repr(store)
    assert store.keys(range(32)) == keys
