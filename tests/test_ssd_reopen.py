"""A directory opened again: with other settings, with damage, and again and again.

Method: what one store left is opened by another with more or less room, other options, or after
files were cut, swapped, flipped or put beside it. Whatever happens: right bytes, a miss, or a
FormatError that leaves everything as it was; and after a reset the store works.
"""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest

import keystow
from disk import (
    BLOCK_BYTES,
    LAYOUT,
    capacity_for,
    files_below,
    keys_of,
    member_folder,
    open_store,
    put,
    there,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

BLOCKS = 100
CAPACITY = capacity_for(BLOCKS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a store that is full."""
    root = tmp_path / "kv"
    with open_store(root, capacity=CAPACITY) as store:
        assert put(store, range(BLOCKS)) == BLOCKS
    return root


def bytes_of(root: Path) -> int:
    return sum(length for length in files_below(root).values() if length > 0)


def test_the_same_again_and_again(root: Path) -> None:
    for _ in range(5):
        with open_store(root, capacity=CAPACITY) as store:
            stats = store.stats()
            assert (stats.recovered, stats.recovered_orphans) == (BLOCKS, 0)
            assert stats.recovered_bytes == BLOCKS * BLOCK_BYTES
            assert stats.recovery_s > 0
            assert stats.ssd_slots_free == 0
            assert len(there(store, range(BLOCKS))) == BLOCKS


def test_larger_grows_in_place(root: Path) -> None:
    more = capacity_for(3 * BLOCKS)
    with open_store(root, capacity=more) as store:
        assert len(there(store, range(BLOCKS))) == BLOCKS
        assert store.stats().ssd_slots_total == 3 * BLOCKS
        assert put(store, range(BLOCKS, 3 * BLOCKS)) == 2 * BLOCKS
    assert CAPACITY < bytes_of(root) <= more
    with open_store(root, capacity=more) as store:
        assert len(there(store, range(3 * BLOCKS))) == 3 * BLOCKS


@pytest.mark.parametrize("slots", [60, 42, 1])
def test_smaller_keeps_what_there_is_room_for(root: Path, slots: int) -> None:
    less = capacity_for(slots)
    with open_store(root, capacity=less) as store:
        found = there(store, range(BLOCKS))
        assert 0 < len(found) <= slots
        assert store.stats().ssd_slots_total == slots
        assert any("smaller" in line or str(slots) in line for line in store.stats().fallbacks)
        assert put(store, range(5)) == min(5, slots + 16)
        store._validate()
    assert bytes_of(root) <= less
    with open_store(root, capacity=CAPACITY) as store:
        assert 0 < len(there(store, range(BLOCKS))) <= slots


@pytest.mark.parametrize(
    "options",
    [
        {"ram": 0},
        {"ram": "8MiB"},
        {"policy": "arc"},
        {"engine": "pool"},
        {"io_timeout_s": 30.0, "put_wait_s": 0.0},
        {"write_bytes_per_s": "1kB"},
        {"deterministic": True},
    ],
    ids=str,
)
def test_other_options_of_the_same_blocks(root: Path, options: dict[str, Any]) -> None:
    with open_store(root, capacity=CAPACITY, **options) as store:
        assert len(there(store, range(BLOCKS))) == BLOCKS
    with open_store(root, capacity=CAPACITY) as store:
        assert len(there(store, range(BLOCKS))) == BLOCKS


@pytest.mark.parametrize(
    "options",
    [
        {"layout": keystow.Layout.opaque("other", block_bytes=BLOCK_BYTES, block_tokens=1)},
        {"layout": keystow.Layout.opaque("disk", block_bytes=2 * BLOCK_BYTES, block_tokens=1)},
        {"namespace": "tenant"},
        {"salt": b"weights of May"},
        {"member": "1"},
    ],
    ids=str,
)
def test_other_blocks_stand_beside_it(root: Path, options: dict[str, Any]) -> None:
    before = files_below(root)
    with (
        open_store(root, capacity=CAPACITY) as store,
        open_store(root, **{"layout": LAYOUT, **options}) as other,
    ):
        assert there(other, range(BLOCKS)) == {}
        put(other, range(10), version=1)
        assert set(there(store, range(BLOCKS), versions=2).values()) == {0}
    assert {name: files_below(root)[name] for name in before} == before
    with open_store(root, **{"layout": LAYOUT, **options}) as other:
        assert len(there(other, range(10), versions=2)) == 10


# Damage


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * share))

    return damage


def flip(name: str, every: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        for at in range(every // 2, len(data), every):
            data[at] ^= 0x10
        (folder / name).write_bytes(data)

    return damage


def fill(name: str, byte: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(bytes([byte]) * (folder / name).stat().st_size)

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def swap(one: str, other: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / one).rename(folder / "x")
        (folder / other).rename(folder / one)
        (folder / "x").rename(folder / other)

    return damage


def folder_for_file(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def link_for_file(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        elsewhere = folder.parents[2] / "elsewhere"
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)

    return damage


def turn_slots(folder: Path) -> None:
    """Every block stands where its neighbour stood."""
    data = (folder / "slots.0000").read_bytes()
    (folder / "slots.0000").write_bytes(data[BLOCK_BYTES:] + data[:BLOCK_BYTES])


# The least and the most blocks that may be there after it, or None where the open is refused.
DAMAGE: dict[str, tuple[Callable[[Path], None], tuple[int, int] | None]] = {
    "slots gone": (remove("slots.0000"), (0, 0)),
    "slots cut to half": (cut("slots.0000", 0.5), (BLOCKS // 2, BLOCKS // 2)),
    "slots cut to nothing": (cut("slots.0000", 0), (0, 0)),
    "slots zero": (fill("slots.0000", 0), (0, 0)),
    "slots turned": (turn_slots, (0, 0)),
    "a bit of every second block": (flip("slots.0000", 2 * BLOCK_BYTES), (50, 50)),
    "table gone": (remove("table"), (0, 0)),
    "table cut to one page": (cut("table", 1 / 3), (42, 42)),
    "table ones": (fill("table", 255), (0, 0)),
    "a bit of every page": (flip("table", 4096), (0, 0)),
    "SUPER: a bit of each copy": (flip("SUPER", 400), None),
    "SUPER ones": (fill("SUPER", 255), None),
    "SUPER cut": (cut("SUPER", 0.3), None),
    "SUPER and table swapped": (swap("SUPER", "table"), None),
    "layout gone": (remove("layout.json"), (BLOCKS, BLOCKS)),
    "a directory for the table": (folder_for_file("table"), None),
    "a link for the slots": (link_for_file("slots.0000"), None),
    "a link for SUPER": (link_for_file("SUPER"), None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(root: Path, name: str) -> None:
    damage, wanted = DAMAGE[name]
    folder = member_folder(root)
    damage(folder)
    if wanted:
        with open_store(root, capacity=CAPACITY) as store:
            found = there(store, range(BLOCKS))
            assert wanted[0] <= len(found) <= wanted[1]
            assert store.stats().state == "open"
            assert put(store, range(BLOCKS), version=1) == BLOCKS
            again = there(store, range(BLOCKS), versions=2)
            assert len(again) == BLOCKS
            assert {n for n, version in again.items() if version == 0} == set(found)
            store._validate()
        return
    before, elsewhere = files_below(root), root.parent / "elsewhere"
    linked = elsewhere.read_bytes() if elsewhere.exists() else b""
    with pytest.raises((keystow.FormatError, keystow.SsdError)) as caught:
        open_store(root, capacity=CAPACITY)
    assert str(folder) in str(caught.value)
    assert files_below(root) == before
    if (folder / "table").is_dir():
        # A reset removes files only.
        (folder / "table").rmdir()
    if isinstance(caught.value, keystow.FormatError):
        assert caught.value.hint
    with open_store(root, capacity=CAPACITY, on_mismatch="reset") as store:
        assert there(store, range(BLOCKS)) == {}
        assert any(str(folder) in line for line in store.stats().fallbacks)
        assert put(store, range(BLOCKS), version=1) == BLOCKS
    with open_store(root, capacity=CAPACITY) as store:
        assert set(there(store, range(BLOCKS), versions=2).values()) == {1}
    assert not linked or elsewhere.read_bytes() == linked


def test_one_good_copy_of_super_is_enough(root: Path) -> None:
    path = member_folder(root) / "SUPER"
    for copy in range(2):
        data = bytearray(path.read_bytes())
        data[copy * 4096 : copy * 4096 + 64] = os.urandom(64)
        path.write_bytes(data)
        with open_store(root, capacity=CAPACITY) as store:
            assert len(there(store, range(BLOCKS))) == BLOCKS


def test_random_damage_gives_right_bytes_or_a_miss(root: Path, tmp_path: Path) -> None:
    rng = random.Random(11)
    for round_ in range(15):
        copy = tmp_path / f"copy-{round_}"
        shutil.copytree(root, copy)
        folder = member_folder(copy)
        for _ in range(rng.randrange(1, 6)):
            path = folder / rng.choice(["table", "table", "slots.0000", "SUPER"])
            data = bytearray(path.read_bytes())
            at, length = rng.randrange(len(data)), rng.choice([1, 8, 96, 4096])
            source = rng.randrange(len(data))
            piece = rng.choice(
                [bytes(length), rng.randbytes(length), data[source : source + length]]
            )
            data[at : at + len(piece)] = piece
            path.write_bytes(data)
        try:
            store = open_store(copy, capacity=CAPACITY)
        except keystow.FormatError:
            store = open_store(copy, capacity=CAPACITY, on_mismatch="reset")
        with store:
            there(store, range(BLOCKS))
            assert put(store, range(BLOCKS), version=1) == BLOCKS
            assert len(there(store, range(BLOCKS), versions=2)) == BLOCKS
            store._validate()
        shutil.rmtree(copy)


def test_an_old_copy_of_the_directory_gives_old_bytes_or_a_miss(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(root, old)
    with open_store(root, capacity=CAPACITY) as store:
        store.remove(keys_of(range(50)))
        put(store, range(50), version=1)
    for name in ("SUPER", "table", "slots.0000"):
        mixed = tmp_path / f"mixed-{name}"
        shutil.copytree(root, mixed)
        shutil.copy(member_folder(old) / name, member_folder(mixed) / name)
        with open_store(mixed, capacity=CAPACITY) as store:
            there(store, range(BLOCKS), versions=2)
            store._validate()


def test_what_is_not_ours_is_left_alone(root: Path) -> None:
    folder = member_folder(root)
    strange = [folder / "notes.txt", folder / "slots.0000.bak", root / "lost+found" / "x"]
    for path in strange:
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious")
    for options in ({}, {"on_mismatch": "reset"}, {"capacity": capacity_for(10)}):
        with open_store(root, **{"capacity": CAPACITY, **options}) as store:
            assert len(there(store, range(BLOCKS))) >= 1
    assert all(path.read_text() == "precious" for path in strange)
