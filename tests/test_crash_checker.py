"""The kill campaign sees what it is there to see, and works at all.

Method: its checker is told histories with a violation and without; its rows are torn, shifted and
exchanged; a campaign of a few cycles runs, and one whose owner lost a block fails.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crash.damage import Damage
from crash.truth import SETTLED_S, Truth
from crash.universe import UNTOUCHED, WRONG, Universe, version_of
from crash.wire import ITEMS_MAX, Decoder, Kind, Record, send

UNIVERSE = Universe(seed=5, chains=4, chain_blocks=8, block_bytes=4096)
V1, V2 = version_of(1, 0, 1, 0), version_of(1, 0, 2, 100)
KILLED_S = 100.0


def told(*records: tuple[Kind, int, tuple[int, ...], float]) -> Truth:
    truth = Truth(UNIVERSE)
    for kind, call, items, time_s in records:
        truth.take(Record(kind, call, time_s, items, ""))
    return truth


def put(version: int, call: int, first: int = 0, count: int = 8) -> list[tuple]:
    return [
        (Kind.PUT_BEGIN, call, (version, first, count), 1.0),
        (Kind.PUT_END, call, (count,), 1.0),
    ]


def remove(call: int, durable: int = 1, ended_s: float = 2.0) -> list[tuple]:
    return [
        (Kind.REMOVE_BEGIN, call, (durable, 2, 3), 2.0),
        (Kind.REMOVE_END, call, (1,), ended_s),
    ]


def clear(call: int) -> list[tuple]:
    return [(Kind.CLEAR_BEGIN, call, (), 2.0), (Kind.CLEAR_END, call, (1,), 2.0)]


def wrong_after(truth: Truth, number: int, version: int, *, closed: bool = False) -> bool:
    truth.died(KILLED_S, closed=closed)
    truth.found(np.array([number]), np.array([version], np.uint64))
    return truth.wrong > 0


def test_bytes_of_nobody_of_others_and_of_the_erased_are_wrong() -> None:
    assert not wrong_after(told(*put(V1, 1)), 3, V1)
    assert wrong_after(told(*put(V1, 1)), 3, V2)
    assert wrong_after(told(*put(V1, 1)), 3, WRONG)
    assert wrong_after(told(*put(V1, 1)), 8, V1)
    for erase in (remove(2), clear(2)):
        assert wrong_after(told(*put(V1, 1), *erase), 3, V1)
        assert not wrong_after(told(*put(V1, 1), *erase, *put(V2, 3)), 3, V2)
        assert wrong_after(told(*put(V1, 1), *erase, *put(V2, 3)), 3, V1)
    assert not wrong_after(told(*put(V1, 1), *remove(2)), 5, V1)


def test_what_overlaps_an_erasure_may_stand_on_either_side() -> None:
    begun, ended = put(V1, 1)
    erasing, erased = remove(2)
    for history in ([begun, erasing, ended, erased], [begun, erasing, erased], [begun, ended]):
        assert not wrong_after(told(*history), 3, V1)
    assert not wrong_after(told(begun, ended, erasing), 3, V1)
    unconfirmed = (Kind.REMOVE_END, 2, (0,), 2.0)
    assert not wrong_after(told(begun, ended, erasing, unconfirmed), 3, V1)


def test_a_removal_that_was_not_durable_settles() -> None:
    early, late = KILLED_S - SETTLED_S - 0.1, KILLED_S - SETTLED_S + 0.1
    flush = [(Kind.FLUSH_BEGIN, 3, (), late), (Kind.FLUSH_END, 3, (0,), late)]
    assert wrong_after(told(*put(V1, 1), *remove(2, 0, early)), 3, V1)
    assert not wrong_after(told(*put(V1, 1), *remove(2, 0, late)), 3, V1)
    assert wrong_after(told(*put(V1, 1), *remove(2, 0, late), *flush), 3, V1)
    assert wrong_after(told(*put(V1, 1), *remove(2, 0, late)), 3, V1, closed=True)


def test_a_version_in_flight_at_a_kill_is_over_with_it() -> None:
    truth = told(put(V1, 1)[0])
    assert not wrong_after(truth, 3, V1)
    for record in remove(2):
        truth.take(Record(record[0], record[1], record[3], record[2], ""))
    assert wrong_after(truth, 3, V1)


def test_a_live_read_is_judged_by_what_had_been_erased_when_it_began() -> None:
    got = [(Kind.GET_BEGIN, 9, (3, 1), 3.0), (Kind.GET_END, 9, (V1,), 3.0)]
    assert told(*put(V1, 1), *got).wrong == 0
    assert told(*put(V1, 1), *remove(2), *got).wrong == 1
    assert told(*put(V1, 1), got[0], *remove(2), got[1]).wrong == 0


def stored(*numbers: int, told_s: float, since_s: float = 0.0) -> tuple:
    return (Kind.EVENTS, 0, (int(since_s * 1e9), *(n * 2 for n in numbers)), told_s)


def evicted(*numbers: int, told_s: float) -> tuple:
    return (Kind.EVENTS, 0, (0, *(n * 2 + 1 for n in numbers)), told_s)


def kept(truth: Truth, *, closed: bool = False) -> list[int]:
    truth.died(KILLED_S, closed=closed)
    return np.flatnonzero(truth.kept).tolist()


def test_what_must_be_found_is_what_was_settled_and_not_taken_away() -> None:
    early, late = KILLED_S - SETTLED_S - 0.1, KILLED_S - SETTLED_S + 0.1
    history = [*put(V1, 1), stored(1, 2, 3, told_s=early), stored(4, told_s=late)]
    assert kept(told(*history)) == [1, 2, 3]
    assert kept(told(*history, evicted(1, told_s=late))) == [2, 3]
    assert kept(told(*history, remove(2)[0])) == [1]
    assert kept(told(*history, *remove(2))) == [1]
    again = [stored(2, told_s=early, since_s=1.9), stored(3, told_s=early, since_s=2.1)]
    assert kept(told(*history, *remove(2), *again)) == [1, 3]
    assert kept(told(*history, (Kind.BLIND, 0, (), late))) == []
    assert kept(told(*put(V1, 1)), closed=True) == list(range(8))
    assert kept(told(*put(V1, 1), *remove(2)), closed=True) == [0, 1, 5, 6, 7]


def test_a_row_is_only_its_own_key_version_and_place() -> None:
    numbers = np.arange(8)
    for version in (V1, V2):
        length = UNIVERSE.length(version)
        out = UNIVERSE.out(8)
        out[:, :length] = UNIVERSE.blocks(0, 8, version)
        assert (UNIVERSE.versions(numbers, out) == version).all()
        assert (UNIVERSE.versions(numbers + 1, out) == WRONG).all()
        for at in (0, 17, length - 1, *range(length, length + (length < 4096))):
            torn = out.copy()
            torn[3, at] ^= 1
            assert (UNIVERSE.versions(numbers, torn) != version).tolist() == [
                n == 3 for n in range(8)
            ]
        swapped = out.copy()
        swapped[[0, 1], 512:1024] = out[[1, 0], 512:1024]
        assert (UNIVERSE.versions(numbers, swapped) == WRONG).sum() == 2
    assert (UNIVERSE.versions(numbers, UNIVERSE.out(8)) == WRONG).all()
    assert UNIVERSE.out(1)[0, 0] == UNTOUCHED


def test_records_survive_any_cut_of_the_stream() -> None:
    read_end, write_end = os.pipe()
    send(write_end, Kind.PUT_BEGIN, 7, V1, 2, 3)
    send(write_end, Kind.GET_END, 8, *range(ITEMS_MAX))
    send(write_end, Kind.FAULT, 9, text="x" * 5000)
    with pytest.raises(ValueError, match="atomic"):
        send(write_end, Kind.GET_END, 8, *range(ITEMS_MAX + 1))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        stream = pipe.read()
    for cut in (1, 13, len(stream)):
        decoder = Decoder()
        pieces = [stream[at : at + cut] for at in range(0, len(stream), cut)]
        records = [record for piece in pieces for record in decoder.feed(piece)]
        assert [record.kind for record in records] == [Kind.PUT_BEGIN, Kind.GET_END, Kind.FAULT]
        assert records[0].items == (V1, 2, 3)
        assert records[1].items == tuple(range(ITEMS_MAX))


DAMAGE = """
flip zero noise swap_sectors copy_sectors truncate extend delete swap_files take_foreign restore_old
"""


@pytest.mark.parametrize("kind", DAMAGE.split())
def test_damage_is_done(tmp_path: Path, kind: str) -> None:
    files, donor = tmp_path / "files", tmp_path / "donor"
    for folder in (files, donor):
        folder.mkdir()
        for name in ("SUPER", "table", "slots.0000"):
            (folder / name).write_bytes(os.urandom(1 << 15))
    damage = Damage(files, donor, tmp_path / "old", random.Random(3))
    damage.snapshot()
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    for _ in range(3):
        # A restore finds something to turn back.
        if kind == "restore_old":
            (files / "table").write_bytes(b"new")
        assert getattr(damage, kind)()
    after = {path.name: path.read_bytes() for path in files.iterdir()}
    assert before != after or kind == "restore_old"
    assert damage.turned_back == (kind == "restore_old")
    assert bool(damage.foreign) == (kind == "take_foreign")


def test_a_short_campaign_runs_clean(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crash.campaign", "--cycles", "2", "--seed", "7"]
    tests = Path(__file__).resolve().parent
    done = subprocess.run(
        [*command, "--dir", str(tmp_path)], cwd=tests, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong blocks, 0 of " in done.stdout
    assert list(tmp_path.iterdir()) == [], "it left its directories"
