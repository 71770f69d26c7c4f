"""A store on a real directory: what comes back, what a close or a kill leaves, what it tells.

Method: small stores under a temporary directory, some of them in processes of their own that are
killed; every block read is compared with what was put under its key.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

import keystow
from disk import BLOCK_BYTES, block, child, files_below, keys_of, open_store, put, said, there

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

BLOCKS = 100


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def test_a_chain_of_many_times_the_ram_comes_back(root: Path) -> None:
    with open_store(root, ram=8 * BLOCK_BYTES) as store:
        assert put(store, range(BLOCKS)) == BLOCKS
        out = bytearray(BLOCK_BYTES * BLOCKS)
        assert store.get(keys_of(range(BLOCKS)), out) == BLOCKS
        assert out == b"".join(map(block, range(BLOCKS)))
        assert store.flush() == 0
        store._validate()


def test_a_match_says_where(root: Path) -> None:
    with open_store(root, ram=8 * BLOCK_BYTES) as store:
        put(store, range(20))
        store.flush()
        match = store.match(keys_of(range(24)))
        assert (int(match), len(match), match.blocks) == (20, 20, 20)
        assert match.ram + match.ssd == 20
        assert match.ram == store.stats().blocks_ram <= 8
        assert match.bytes == 20 * BLOCK_BYTES
        assert match.load_s > 0
        says = f"Match(20 of 24 blocks: {match.ram} ram, {match.ssd} ssd, load "
        assert repr(match).startswith(says)
        for rows in (20, 24):
            out = [bytearray(BLOCK_BYTES) for _ in range(rows)]
            assert match.get(out) == 20
            assert out[:20] == [block(number) for number in range(20)]


def test_a_lease_brings_blocks_to_ram(root: Path) -> None:
    with open_store(root, ram=8 * BLOCK_BYTES) as store:
        put(store, range(20))
    with open_store(root, ram=8 * BLOCK_BYTES) as store:
        assert store.match(keys_of(range(20))).ssd == 20
        with store.lease(keys_of(range(6)), min_blocks=6) as lease:
            assert [bytes(view) for view in lease] == [block(n) for n in range(6)]
            assert store.match(keys_of(range(6))).ram == 6
            assert store.stats().frames_pinned == 6
            assert store.match(keys_of(range(6)), pin=True).ram == 6
        # The room of the blocks before them.
        with store.match(keys_of(range(6, 12)), pin=True) as match:
            assert (match.blocks, match.ssd) == (6, 6)
            assert [bytes(view) for view in match.lease()] == [block(n) for n in range(6, 12)]
        # More than there are frames: as many as can be pinned at once, and no more.
        with store.lease(keys_of(range(20))) as lease:
            assert 0 < len(lease) <= 8
            assert [bytes(view) for view in lease] == [block(n) for n in range(len(lease))]
        with pytest.raises(keystow.CapacityError):
            store.lease(keys_of(range(20)), min_blocks=9)
        store._validate()


@pytest.mark.parametrize("how", ["close", "with", "flush and drop"])
def test_what_was_put_is_there_after_a_reopen(root: Path, how: str) -> None:
    store = open_store(root)
    put(store, range(BLOCKS))
    if how == "close":
        assert tuple(store.close()) == (BLOCKS, 0)
        assert tuple(store.close()) == (0, 0)
    elif how == "with":
        with store:
            pass
    else:
        assert store.flush(timeout_s=30) == 0
    del store
    with open_store(root) as store:
        assert store.stats().recovered == BLOCKS
        assert store.match(keys_of(range(BLOCKS))).ssd == BLOCKS
        assert len(there(store, range(BLOCKS))) == BLOCKS


def test_a_forgotten_store_gives_its_directory_back(root: Path) -> None:
    for start in range(0, 200, 20):
        store = open_store(root)
        put(store, range(start, start + 20))
        del store
    with open_store(root) as store:
        there(store, range(200))
        store._validate()


def test_a_close_without_time_leaves_and_says_so(root: Path) -> None:
    store = open_store(root, ram=64 * BLOCK_BYTES, write_bytes_per_s=1)
    put(store, range(60))
    written, left = store.close(timeout_s=0)
    assert written + left == 60
    with open_store(root) as store:
        assert set(there(store, range(60))) <= set(range(60))
        assert store.stats().recovered <= 60


def test_the_write_budget_holds(root: Path) -> None:
    with open_store(root, ram=64 * BLOCK_BYTES, write_bytes_per_s=1) as store:
        for numbers in (range(60), range(100, 160)):
            blocks = [block(number) for number in numbers]
            assert store.put(keys_of(numbers), blocks, chained=False) == 60
            time.sleep(0.2)
        stats = store.stats()
        assert 0 < stats.ssd_writes < 20
        # What was refused left RAM unwritten.
        assert stats.ssd_refused > 0
        assert stats.ssd_dropped_refused > 30
        assert stats.blocks == 120 - stats.evictions < 90


def test_a_get_ends_in_time(root: Path) -> None:
    with open_store(root) as store:
        put(store, range(BLOCKS))
    with open_store(root) as store:
        out = bytearray(BLOCK_BYTES * BLOCKS)
        for timeout_s in (0.0, 0.001, 30.0):
            got = store.get(keys_of(range(BLOCKS)), out, timeout_s=timeout_s)
            rows = [out[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES] for n in range(got)]
            assert rows == [block(number) for number in range(got)]
        assert got == BLOCKS


def test_kill_loses_nothing_that_was_flushed(root: Path) -> None:
    script = """
store = open_store(Path(sys.argv[1]))
put(store, range(80))
say(f"left {store.flush()}")
for number in range(100, 100_000, 10):
    put(store, range(number, number + 10))
    if number == 200:
        say("busy")
"""
    with child(script, root) as process:
        assert said(process) == "left 0"
        assert said(process) == "busy"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open_store(root) as store:
            assert set(there(store, range(80))) == set(range(80))
            numbers = range(100, 2_000)
            assert set(there(store, numbers)) <= set(numbers)
            store._validate()


def test_kill_loses_nothing_that_was_written_a_second_ago(root: Path) -> None:
    script = """
import time
store = open_store(Path(sys.argv[1]), ram="4MiB")
put(store, range(200))
while store.stats().ssd_writes < 200: time.sleep(0.01)
time.sleep(1.0)
say("ready")
time.sleep(60)
"""
    with child(script, root) as process:
        assert said(process) == "ready"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open_store(root) as store:
            assert len(there(store, range(200))) == 200


@pytest.mark.parametrize("durable", [True, False])
def test_removed_stays_removed(root: Path, durable: bool) -> None:  # noqa: FBT001
    with open_store(root) as store:
        put(store, range(50))
        store.flush()
        assert store.remove(keys_of(range(20, 30)), durable=durable) == 10
        assert store.remove(keys_of(range(20, 30)), durable=durable) == 0
        assert sorted(there(store, range(50))) == [*range(20), *range(30, 50)]
        assert int(store.match(keys_of(range(50)))) == 20
    with open_store(root) as store:
        assert sorted(there(store, range(50))) == [*range(20), *range(30, 50)]
        # The head of a tail that stands under a hole.
        assert put(store, range(50), version=1) == 50
        found = there(store, range(50), versions=2)
        assert [number for number, version in found.items() if version] == list(range(20, 30))


@pytest.mark.parametrize("verb", ["remove", "clear"])
def test_a_kill_right_after_brings_nothing_back(root: Path, verb: str) -> None:
    script = f"""
import os, signal
store = open_store(Path(sys.argv[1]))
put(store, range(100))
store.flush()
if {verb!r} == "remove":
    store.remove(keys_of(range(100)))
else:
    store.clear()
say("gone")
os.kill(os.getpid(), signal.SIGKILL)
"""
    with child(script, root) as process:
        assert said(process) == "gone"
        process.wait()
        with open_store(root) as store:
            assert there(store, range(100)) == {}
            assert put(store, range(100), version=1) == 100
            assert set(there(store, range(100), versions=2).values()) == {1}


def test_cleared_stays_cleared(root: Path) -> None:
    with open_store(root) as store:
        put(store, range(50))
        store.flush()
        store.clear()
        assert there(store, range(50)) == {}
        put(store, range(5, 8), version=1)
    with open_store(root) as store:
        assert there(store, range(50), versions=2) == {5: 1, 6: 1, 7: 1}


# What it tells


def test_the_log_says_what_was_found(
    root: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="keystow")
    with open_store(root) as store:
        put(store, range(64))
    with open_store(root) as store:
        direct = "O_DIRECT" if store.stats().ssd_direct else "buffered"
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert said[0].startswith("recovered 0 blocks (0 bytes) in ")
    assert said[1].startswith("recovered 64 blocks (256.0 KiB) in ")
    assert said[1].endswith(f" s; {engine}, {direct}")
    (next(root.rglob("SUPER")).parent / "notes.txt").write_text("somebody's")
    caplog.clear()
    with open_store(root) as store:
        warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert tuple(warned) == store.stats().fallbacks
    assert any("notes.txt" in line for line in warned)
    assert len(files_below(root)) == 8


def test_counters_reconcile(root: Path, engine: str) -> None:
    rng = random.Random(7)
    with open_store(root, ram=12 * BLOCK_BYTES, capacity="512KiB") as store:
        for _ in range(150):
            start = rng.randrange(200)
            numbers = range(start, start + rng.randrange(1, 30))
            choice = rng.random()
            if choice < 0.6:
                put(store, numbers)
            elif choice < 0.95:
                there(store, numbers)
            elif choice < 0.99:
                store.remove(keys_of(numbers))
            else:
                store.clear()
        assert store.flush() == 0
        stats = store.stats()
        came = stats.puts + stats.put_again + stats.recovered
        left = stats.evictions + stats.removed + stats.cleared + stats.ssd_lost
        assert stats.blocks == came - left == len(there(store, range(230)))
        assert stats.evictions >= stats.ssd_evictions > 0
        assert stats.blocks_ram <= stats.frames_total == 12
        # Flushed: every block is on SSD.
        assert stats.ssd_blocks == stats.blocks
        taken = stats.ssd_slots_total - stats.ssd_slots_free - stats.ssd_quarantined
        assert taken == stats.ssd_blocks
        assert stats.ssd_writes * BLOCK_BYTES == stats.ssd_write_bytes
        assert stats.ssd_reads * BLOCK_BYTES == stats.ssd_read_bytes
        assert (stats.ssd_state, stats.ssd_engine) == ("ok", engine)
        for name in ("lost", "bad_tags", "io_errors", "disk_full", "late", "breaker_opened"):
            assert getattr(stats, f"ssd_{name}") == 0, name
        store._validate()


def test_stats_are_all_there(root: Path) -> None:
    names = {name for name in dir(keystow.Stats) if not name.startswith("_")} - {"as_dict"}
    ram_only = keystow.Store(block_bytes=4096, ram="64KiB").stats()
    assert set(ram_only.as_dict()) == names
    tier = {name for name in names if name.startswith(("ssd_", "recover"))}
    assert len(tier) > 40
    assert all(not getattr(ram_only, name) for name in tier)
    assert all(getattr(keystow.Stats, name).__doc__ for name in names)
    with open_store(root) as store:
        put(store, range(10))
    after = store.stats()
    assert (after.state, after.ssd_writes, after.ssd_unclean) == ("closed", 10, False)
    assert repr(after).startswith("Stats(state='closed', numa='', frames_total=16, ")
    assert "ssd_state='ok'" in repr(after)


def test_events_tell_what_each_tier_holds(root: Path) -> None:
    rng = random.Random(3)
    numbers = range(120)
    keys = [keys_of([n]) for n in numbers]
    with open_store(root, capacity="256KiB") as store:
        put(store, range(30))
    with open_store(root, ram=8 * BLOCK_BYTES, capacity="256KiB") as store:
        tiers: dict[str, set[bytes | None]] = defaultdict(set)
        next_sequence = 0
        for _ in range(60):
            start = rng.randrange(100)
            run = range(start, start + rng.randrange(1, 20))
            if rng.random() < 0.6:
                put(store, run)
            elif rng.random() < 0.9:
                there(store, run)
            else:
                store.remove(keys_of(run))
            store.flush()
            for event in store.events():
                assert event.sequence == next_sequence
                next_sequence += 1
                tier = tiers[event.tier]
                if event.kind == "stored":
                    assert event.key not in tier
                    tier.add(event.key)
                else:
                    tier.remove(event.key)
            stats = store.stats()
            assert len(tiers["ram"]) == stats.blocks_ram
            assert len(tiers["ssd"]) == stats.ssd_blocks
        found = store.contains(b"".join(keys))
        everything = tiers["ram"] | tiers["ssd"]
        assert everything == {key for key, got in zip(keys, found, strict=True) if got}
        store.clear()
        assert [(e.kind, e.key, e.tier) for e in store.events()] == [("cleared", None, "")]


def test_repr_tells_both_tiers(root: Path) -> None:
    with open_store(root) as store:
        put(store, range(3))
        slots = store.stats().ssd_slots_total
        store.flush()
        says = f"Store(3 of 16 blocks in RAM, 3 of {slots:,} on SSD, no gets yet, lru, open)"
        assert repr(store) == says


def test_many_threads_see_right_bytes(root: Path) -> None:
    with open_store(root, ram=16 * BLOCK_BYTES, capacity="1MiB") as store:
        wrong: list[BaseException] = []

        def work(seed: int) -> None:
            rng = random.Random(seed)
            try:
                end = time.monotonic() + 1.5
                while time.monotonic() < end:
                    start = rng.randrange(300)
                    run = range(start, start + rng.randrange(1, 24))
                    if rng.random() < 0.5:
                        put(store, run)
                    elif rng.random() < 0.95:
                        there(store, run)
                    else:
                        store.remove(keys_of(run), durable=False)
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert store.flush() == 0
        stats = store.stats()
        assert stats.state == "open"
        assert stats.ssd_reads > 0
        assert stats.ssd_bad_tags == stats.ssd_lost == 0
        store._validate()
