"""Several devices as one tier: spread, lost, left out, away and back.

Method: directories stand for devices; one is lost by taking its directory away or cutting its files
short. Blocks are 256 KiB, so that a chain of some hundred has more than one stretch of 32 MiB.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

import keystow
from disk import child, keys_of
from keystow.inspection import inspect
from model import payload, raw_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BLOCK_BYTES = 256 << 10
LAYOUT = keystow.Layout.opaque("devices", block_bytes=BLOCK_BYTES, block_tokens=1)
STRETCH = (32 << 20) // BLOCK_BYTES
CHAIN = 3 * STRETCH // 2
RAM_BLOCKS = 16
CAPACITY = "100MiB"


def block(number: int) -> bytes:
    """The bytes of a block."""
    return payload(raw_key(number), 0, BLOCK_BYTES)


def open_over(*roots: Path, **options: Any) -> keystow.Store:
    """A store over devices, with little RAM."""
    devices = [keystow.Ssd(root, CAPACITY, **options) for root in roots]
    return keystow.Store(LAYOUT, ram=RAM_BLOCKS * BLOCK_BYTES, ssd=devices)


def put(store: keystow.Store, numbers: Iterable[int]) -> int:
    """Put blocks as one chain."""
    numbers = list(numbers)
    return store.put(keys_of(numbers), [block(number) for number in numbers])


def there(store: keystow.Store, numbers: Iterable[int]) -> list[int]:
    """Which of the blocks are there; wrong bytes fail."""
    numbers = list(numbers)
    out = bytearray(BLOCK_BYTES * len(numbers))
    got = store.get_each(keys_of(numbers), out)
    for at, number in enumerate(numbers):
        row = out[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]
        assert not got[at] or row == block(number), f"block {number} has other bytes"
    return [number for number, is_there in zip(numbers, got, strict=True) if is_there]


def blocks_in(root: Path) -> int:
    """How many blocks a device's directory has."""
    (found,) = inspect(root)
    return int(found["contents"]["live"])


def filled(*roots: Path) -> None:
    """Fill the devices with one chain, and close them."""
    with open_over(*roots) as store:
        assert put(store, range(CHAIN)) == CHAIN
        assert store.flush(timeout_s=60) == 0


@pytest.mark.usefixtures("engine")
def test_a_chain_is_spread_and_comes_back(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    filled(*roots)
    held = [blocks_in(root) for root in roots]
    assert sum(held) == CHAIN
    assert min(held) >= CHAIN // 4
    with open_over(*roots) as store:
        stats = store.stats()
        assert (stats.recovered, stats.recovered_orphans) == (CHAIN, 0)
        assert (stats.ssd_devices, stats.ssd_devices_away, stats.ssd_state) == (2, 0, "ok")
        assert there(store, range(CHAIN)) == list(range(CHAIN))
        store._validate()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("lost", [0, 1])
def test_what_a_lost_device_had_is_recomputed_once(tmp_path: Path, lost: int) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    filled(*roots)
    held = blocks_in(roots[1 - lost])
    folder = roots[lost] / LAYOUT.fingerprint.hex()
    shutil.rmtree(folder)
    # Something stands in its place that is no directory.
    folder.write_text("no disk")
    with open_over(*roots) as store:
        stats = store.stats()
        assert (stats.recovered, stats.ssd_devices) == (held, 1)
        assert any("left out" in why and str(roots[lost]) in why for why in stats.fallbacks)
        assert len(there(store, range(CHAIN))) == held
        assert put(store, range(CHAIN)) == CHAIN
        assert there(store, range(CHAIN)) == list(range(CHAIN))
        assert store.flush(timeout_s=60) == 0
    with open_over(*roots) as store:
        assert store.stats().recovered == CHAIN
        assert there(store, range(CHAIN)) == list(range(CHAIN))
        store._validate()
    folder.unlink()
    # A new device in its place is empty, and takes its share from now on.
    with open_over(*roots) as store:
        assert (store.stats().ssd_devices, store.stats().recovered) == (2, CHAIN)
        assert put(store, range(1000, 1000 + STRETCH)) == STRETCH
        assert store.flush(timeout_s=60) == 0
    assert blocks_in(roots[lost]) > 0


@pytest.mark.usefixtures("engine")
def test_a_device_that_fails_under_a_store(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    filled(*roots)
    held = blocks_in(roots[0])
    with open_over(*roots) as store:
        os.truncate(roots[1] / LAYOUT.fingerprint.hex() / "0" / "slots.0000", 0)
        assert len(there(store, range(CHAIN))) == held
        stats = store.stats()
        assert (stats.ssd_state, stats.ssd_devices_away) == ("degraded", 1)
        assert any("left alone" in why and str(roots[1]) in why for why in stats.fallbacks)
        # The other device takes what is computed again.
        assert put(store, range(CHAIN)) == CHAIN
        assert there(store, range(CHAIN)) == list(range(CHAIN))
        store._validate()
        store.flush(timeout_s=30)


def test_what_was_removed_while_a_device_was_away_stays_removed(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    filled(*roots)
    held = blocks_in(roots[0])
    with open_over(roots[0]) as store:
        assert store.remove(keys_of(range(CHAIN))) == held
        assert there(store, range(CHAIN)) == []
    with open_over(*roots) as store:
        assert there(store, range(CHAIN)) == []
        assert any("not there at the last open" in why for why in store.stats().fallbacks)
        assert put(store, range(CHAIN)) == CHAIN
        assert store.flush(timeout_s=60) == 0
    with open_over(*roots) as store:
        assert store.stats().recovered == CHAIN


OWNER = """
from test_devices import *
from pathlib import Path

store = open_over(*map(Path, sys.argv[1:]))
assert put(store, range(CHAIN)) == CHAIN
assert store.flush(timeout_s=60) == 0
say("flushed")
sys.stdin.read()
"""


@pytest.mark.usefixtures("engine")
def test_all_devices_are_warm_after_a_kill(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    with child(OWNER, *roots) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "flushed\n"
        with pytest.raises(keystow.StoreLockedError):
            open_over(roots[2])
        owner.send_signal(signal.SIGKILL)
        owner.wait(timeout=30)
    with open_over(*roots) as store:
        assert there(store, range(CHAIN)) == list(range(CHAIN))
        store._validate()


def test_a_sibling_over_the_same_devices_is_followed(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    with open_over(*roots) as owner:
        assert put(owner, range(CHAIN)) == CHAIN
        assert owner.flush(timeout_s=60) == 0
        with open_over(*roots, member="1", follow="siblings") as store:
            assert store.match(keys_of(range(CHAIN))).followed == CHAIN
            assert there(store, range(CHAIN)) == list(range(CHAIN))
            assert store.stats().followed_members == 2
            store._validate()


def test_a_locked_device_gives_the_others_back(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    with open_over(roots[1]):
        with pytest.raises(keystow.StoreLockedError):
            open_over(*roots)
        with open_over(roots[0]) as store:
            assert put(store, range(4)) == 4


def test_texts_take_the_options_beside_them(tmp_path: Path) -> None:
    given = keystow.Ssd(tmp_path / "a", CAPACITY, member="7", dwpd=1.0)
    with keystow.Store(LAYOUT, ram="16MiB", ssd=[given, f"{tmp_path / 'b'}:{CAPACITY}"]):
        pass
    for root in ("a", "b"):
        assert (tmp_path / root / LAYOUT.fingerprint.hex() / "7").is_dir()


def test_a_simulated_tier_has_several_devices() -> None:
    device = keystow.Ssd("", CAPACITY, engine="sim", seed=3)
    options: dict[str, Any] = {"deterministic": True, "clock": "manual"}
    with keystow.Store(LAYOUT, ram="4MiB", ssd=[device] * 3, **options) as store:
        assert put(store, range(CHAIN)) == CHAIN
        assert store.stats().ssd_devices == 3
        assert there(store, range(CHAIN)) == list(range(CHAIN))


@pytest.mark.parametrize(
    ("ssd", "code", "says"),
    [
        (["/a:1GiB", "/b"], "KS-CFG-214", "how much room"),
        (["/a:1GiB", None], "KS-CFG-230", "None"),
        (["/a:1GiB", "/a/:2GiB"], "KS-CFG-230", "'/a' twice"),
        ([["/a:1GiB", "/b:1GiB"]], "KS-CFG-214", "list"),
        (
            [keystow.Ssd("/a", "1GiB", member="0"), keystow.Ssd("/b", "1GiB", member="1")],
            "KS-CFG-230",
            "member='0' and member='1'",
        ),
        (
            [keystow.Ssd("/a", "1GiB", dwpd=1), keystow.Ssd("/b", "1GiB")],
            "KS-CFG-230",
            "write budget",
        ),
        ([f"/{at}:1GiB" for at in range(17)], "KS-CFG-007", "17 devices"),
    ],
    ids=str,
)
def test_no_devices(ssd: Any, code: str, says: str) -> None:
    with pytest.raises(keystow.ConfigError, match=re.escape(says)) as caught:
        keystow.Store(LAYOUT, ram="16MiB", ssd=ssd)
    assert caught.value.code == code
    assert caught.value.hint


def test_write_budgets_add_up() -> None:
    from keystow.devices import read_devices  # noqa: PLC0415 - no user needs it

    def budget(*devices: keystow.Ssd) -> int | None:
        read = read_devices(list(devices))
        assert read is not None
        return read.budget_bytes_per_s

    a, b = (keystow.Ssd(path, "1GiB", write_bytes_per_s="10MB") for path in ("/a", "/b"))
    assert budget(a, b) == 20_000_000
    assert budget(a) == 10_000_000
    c, d = (keystow.Ssd(path, "86400GB", dwpd=1.0) for path in ("/c", "/d"))
    assert budget(c, d) == 2_000_000_000
