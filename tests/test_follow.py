"""Following other members' directories: found, right or a miss, gone within a second, taken home.

Method: owners and followers under one temporary root, in this process and in children, over both
engines. The bytes of a block are a function of its key alone, so that a follower can judge every
read whatever the owner was doing; what an owner takes away is looked for a second later.
"""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import keystow
from disk import (
    BLOCK_BYTES,
    block,
    capacity_for,
    child,
    files_below,
    keys_of,
    member_folder,
    open_store,
    put,
    said,
    there,
)
from keystow.directories import directories, remove
from keystow.inspection import inspect

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("engine")

# Slots of a table that a follower reads whole, and of one whose owner tells of its changes.
SHORT, LONG = 64, 3000
CHANGES_BYTES = 17 * 4096
# What an owner takes away is served for so long at most.
SERVED_S = 1.0
PATIENCE_S = 20.0
READS = 100_000
READERS = ("siblings", "siblings", "path")

OWNER = """
import random, time
root, slots, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng, keys = random.Random(seed), range(slots * 4 // 3)
blocks = {number: block(number) for number in keys}
store = open_store(root, member="owner", capacity=int(sys.argv[4]))
say("open")
while True:
    numbers = rng.sample(keys, 16)
    store.put(keys_of(numbers), [blocks[number] for number in numbers], chained=False)
    roll = rng.random()
    if roll < 0.02:
        store.remove(keys_of(rng.sample(keys, 8)), durable=True)
    elif roll < 0.021:
        store.clear()
    elif roll < 0.03:
        # Its table settles, and it goes on.
        time.sleep(0.3)
"""

FOLLOWER = """
import random, threading
root, slots, seed = Path(sys.argv[1]), *map(int, sys.argv[2:4])
follow = "siblings" if sys.argv[4] == "siblings" else [member_folder(root, "owner")]
rng, keys = random.Random(seed), range(slots * 4 // 3)
# Little of its own, so that most of what it finds is the owner's.
store = open_store(root, member=str(seed), capacity=capacity_for(8), follow=follow)
say("open")
asked = threading.Thread(target=sys.stdin.readline)
asked.start()
done = hits = 0
while asked.is_alive():
    numbers = rng.sample(keys, 40)
    hits += len(there(store, numbers))
    done += len(numbers)
stats = store.stats()
say(f"{done} {hits} {stats.followed_hits} {stats.followed_bad}")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that is on its way."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def stored(root: Path, numbers: range, member: str = "owner", **options: object) -> keystow.Store:
    """A store whose blocks are all on its SSD."""
    store = open_store(root, member=member, **options)
    put(store, numbers)
    assert store.flush() == 0
    return store


def test_other_members_blocks_are_found_and_come_home(root: Path) -> None:
    with (
        stored(root, range(12)) as owner,
        open_store(root, member="0", follow="siblings", ram=64 * BLOCK_BYTES) as store,
    ):
        before = files_below(member_folder(root, "owner"))
        match = store.match(keys_of(range(15)))
        assert (match.blocks, match.ram, match.ssd, match.followed) == (12, 0, 0, 12)
        assert match.bytes == 12 * BLOCK_BYTES
        assert "12 followed" in repr(match)
        assert store.match_prefix(keys_of(range(15))) == 12
        assert store.contains(keys_of([14, 3, 99])) == [False, True, False]
        out = bytearray(12 * BLOCK_BYTES)
        assert store.get(keys_of(range(12)), out) == 12
        assert out == b"".join(block(number) for number in range(12))
        stats = store.stats()
        assert (stats.followed_members, stats.followed_hits, stats.followed_bad) == (1, 12, 0)
        assert stats.followed_hit_bytes == stats.bytes_out == 12 * BLOCK_BYTES
        assert (stats.hits, stats.misses, stats.fallbacks) == (12, 0, owner.stats().fallbacks)
        # The next time they are one's own.
        assert store.match(keys_of(range(12))).ram == 12
        assert store.get(keys_of(range(12)), out) == 12
        assert store.stats().followed_hits == 12
        assert files_below(member_folder(root, "owner")) == before
    assert not owner.stats().ssd_io_errors


def test_runs_of_ones_own_and_of_others_are_one_chain(root: Path) -> None:
    chain = range(20)
    with (
        stored(root, chain),
        open_store(root, member="0", follow="siblings", ram=64 * BLOCK_BYTES) as store,
    ):
        put(store, range(5))
        store.put(keys_of(range(9, 12)), [block(n) for n in range(9, 12)], parent=keys_of([8]))
        match = store.match(keys_of(chain))
        assert (match.ram, match.followed) == (8, 12)
        out = bytearray(20 * BLOCK_BYTES)
        assert store.get(keys_of(chain), out) == 20
        assert out == b"".join(block(number) for number in chain)
        assert store.stats().followed_hits == 12
        assert there(store, chain).keys() == set(chain)


def test_a_lease_brings_them_to_ram_first(root: Path) -> None:
    with (
        stored(root, range(8)),
        open_store(root, member="0", follow="siblings", ram=64 * BLOCK_BYTES) as store,
    ):
        with store.lease(keys_of(range(8)), min_blocks=8) as lease:
            assert [bytes(lease[i]) for i in range(8)] == [block(n) for n in range(8)]
        with store.match(keys_of(range(8))) as match:
            assert match.ram == 8


def test_a_row_too_short_for_a_followed_block_is_refused(root: Path) -> None:
    with stored(root, range(3)), open_store(root, member="0", follow="siblings") as store:
        with pytest.raises(keystow.LayoutError) as caught:
            store.get(keys_of(range(3)), bytearray(3 * 100))
        assert caught.value.code == "KS-LAY-003"
        assert store.stats().followed_hits == 0


@pytest.mark.parametrize("slots", [SHORT, LONG])
def test_right_bytes_or_a_miss_while_the_owner_writes_and_dies(root: Path, slots: int) -> None:
    capacity = capacity_for(slots) + (CHANGES_BYTES if slots == LONG else 0)
    with ExitStack() as stack:

        def owner(seed: int) -> subprocess.Popen[str]:
            process = stack.enter_context(child(OWNER, root, slots, seed, capacity))
            assert said(process) == "open"
            return process

        process = owner(0)
        followers = [
            stack.enter_context(child(FOLLOWER, root, slots, seed, how))
            for seed, how in enumerate(READERS, 1)
        ]
        assert [said(follower) for follower in followers] == ["open"] * 3
        for seed in range(1, 4):
            time.sleep(1.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = owner(seed)
        for follower in followers:
            assert follower.stdin
            follower.stdin.write("enough\n")
            follower.stdin.flush()
        told = [[int(number) for number in said(follower).split()] for follower in followers]
    assert sum(done for done, *_ in told) >= READS, told
    # Most of what was found came from the owner, and was judged by its bytes.
    assert all(followed > 100 for _, _, followed, _ in told), told


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("slots", [SHORT, LONG])
def test_what_was_removed_is_served_for_a_second_at_most(
    root: Path, slots: int, *, durable: bool
) -> None:
    capacity = capacity_for(slots) + (CHANGES_BYTES if slots == LONG else 0)
    with (
        stored(root, range(40), capacity=capacity) as owner,
        open_store(root, member="0", follow="siblings") as store,
    ):
        assert all(store.contains(keys_of(range(40))))
        assert owner.remove(keys_of(range(10, 20)), durable=durable) == 10
        time.sleep(SERVED_S)
        # A get looks for itself; what a lookup says is as old as the last look.
        assert there(store, range(10, 20)) == {}
        assert store.contains(keys_of(range(8, 22))) == [True] * 2 + [False] * 10 + [True] * 2
        assert store.match_prefix(keys_of(range(40))) == 10
        assert len(there(store, range(10))) == 10


@pytest.mark.parametrize("slots", [SHORT, LONG])
def test_what_was_cleared_is_served_for_a_second_at_most(root: Path, slots: int) -> None:
    capacity = capacity_for(slots) + (CHANGES_BYTES if slots == LONG else 0)
    with (
        stored(root, range(40), capacity=capacity) as owner,
        open_store(root, member="0", follow="siblings") as store,
    ):
        assert store.match_prefix(keys_of(range(40))) == 40
        owner.clear()
        time.sleep(SERVED_S)
        assert there(store, range(40)) == {}
        assert not any(store.contains(keys_of(range(40))))
        put(owner, range(50, 60))
        assert owner.flush() == 0
        until(lambda: store.match_prefix(keys_of(range(50, 60))) == 10)
        assert len(there(store, range(50, 60))) == 10


@pytest.mark.parametrize("how", ["store.clear()", "store.remove(keys_of(range(40)))"])
@pytest.mark.parametrize("slots", [SHORT, LONG])
def test_the_last_word_of_an_owner_that_dies_is_heard(root: Path, slots: int, how: str) -> None:
    capacity = capacity_for(slots) + (CHANGES_BYTES if slots == LONG else 0)
    script = f"""
import os, signal
store = open_store(Path(sys.argv[1]), member="owner", capacity={capacity})
put(store, range(60))
say(f"left {{store.flush()}}")
sys.stdin.readline()
{how}
os.kill(os.getpid(), signal.SIGKILL)
"""
    with child(script, root) as owner:
        assert said(owner) == "left 0"
        with open_store(root, member="0", follow="siblings") as store:
            assert store.match_prefix(keys_of(range(60))) == 60
            assert owner.stdin
            owner.stdin.write("now\n")
            owner.stdin.flush()
            assert owner.wait() == -signal.SIGKILL
            time.sleep(SERVED_S)
            assert there(store, range(40)) == {}
            assert not any(store.contains(keys_of(range(40))))
            assert len(there(store, range(40, 60))) == (0 if "clear" in how else 20)


def test_what_came_home_outlives_its_owner_until_it_is_removed_here(root: Path) -> None:
    with (
        stored(root, range(8)) as owner,
        open_store(root, member="0", follow="siblings", ram=64 * BLOCK_BYTES) as store,
    ):
        assert len(there(store, range(4))) == 4
        # Removed here, it is found there again.
        assert store.remove(keys_of([2])) == 1
        assert len(there(store, [2])) == 1
        owner.clear()
        time.sleep(SERVED_S)
        assert list(there(store, range(8))) == [0, 1, 2, 3]
        store.clear()
        assert there(store, range(8)) == {}


def test_a_replaced_directory_is_noticed(root: Path) -> None:
    with open_store(root, member="0", follow="siblings") as store:
        with stored(root, range(10)):
            until(lambda: store.match_prefix(keys_of(range(10))) == 10)
        assert len(there(store, range(3))) == 3, "also while nobody has it open"
        shutil.rmtree(member_folder(root, "owner"))
        with stored(root, range(20, 30)):
            until(lambda: store.match_prefix(keys_of(range(20, 30))) == 10)
            assert len(there(store, range(20, 24))) == 4
            assert there(store, range(5, 10)) == {}
        (member_folder(root, "owner") / "SUPER").write_bytes(b"\xff" * 8192)
        with stored(root, range(40, 50), on_mismatch="reset"):
            until(lambda: store.match_prefix(keys_of(range(40, 50))) == 10)
            assert there(store, range(24, 30)) == {}
        shutil.rmtree(member_folder(root, "owner"))
        until(lambda: store.match_prefix(keys_of(range(40, 50))) == 0)
        until(lambda: store.stats().followed_members == 0)


def test_siblings_that_come_later_are_found(root: Path) -> None:
    with open_store(root, member="0", follow="siblings") as store:
        assert store.stats().followed_members == 0
        with stored(root, range(6), member="b"), stored(root, range(6, 12), member="c"):
            until(lambda: store.match_prefix(keys_of(range(12))) == 12)
            assert len(there(store, range(12))) == 12
            assert store.stats().followed_members == 2


def test_paths_are_members_or_roots_and_say_why_they_cannot_be_followed(
    root: Path, tmp_path: Path
) -> None:
    other, later, foreign = tmp_path / "other", tmp_path / "later", tmp_path / "foreign"
    layout = keystow.Layout.opaque("foreign", block_bytes=BLOCK_BYTES, block_tokens=1)
    with (
        stored(root, range(4)),
        stored(other, range(4, 8), member="b"),
        stored(foreign, range(4), member="x", layout=layout),
    ):
        stranger = foreign / layout.fingerprint.hex() / "x"
        # The root of one's own is no other than its other members.
        follow = [root, member_folder(other, "b"), later, stranger, foreign]
        with open_store(root, member="0", follow=follow) as store:
            assert store.match(keys_of(range(8))).followed == 8
            assert store.stats().followed_members == 2
            says = "\n".join(store.stats().fallbacks)
            assert f"{later} is not followed: there is no such directory" in says
            assert f"{stranger} is not followed: it is of another layout" in says
            assert f"{foreign} is not followed: no store of this layout there" in says
            with stored(later, range(8, 12), member="c"):
                until(lambda: store.match_prefix(keys_of(range(12))) == 12)
                assert str(later) not in "\n".join(store.stats().fallbacks)


def test_what_a_sibling_has_is_not_written_again(root: Path) -> None:
    with (
        stored(root, range(40)),
        open_store(root, member="0", follow="siblings", replicated=True) as store,
    ):
        assert len(there(store, range(40))) == 40
        put(store, range(30))
        # More than RAM holds: what the sibling has leaves unwritten and at once.
        assert store.flush() == store.stats().blocks_ram > 0
        stats = store.stats()
        assert (stats.ssd_writes, stats.ssd_write_bytes, stats.ssd_blocks) == (0, 0, 0)
        assert stats.ssd_replica_skips >= 16
        assert stats.ssd_dropped_waited == 0
        put(store, range(100, 104))
        store.flush()
        assert store.stats().ssd_blocks == 4
        assert len(there(store, range(40))) == 40
    with open_store(root, member="1", follow="siblings") as store:
        assert len(there(store, range(40))) == 40
        assert store.flush() == 0
        assert store.stats().ssd_blocks > 0


def test_a_follower_neither_takes_nor_drops_a_lock(root: Path) -> None:
    script = """
try:
    open_store(Path(sys.argv[1]), member="owner")
    say("open")
except keystow.StoreLockedError as error:
    say(error.code)
"""
    with stored(root, range(4)) as owner:
        with open_store(root, member="0", follow="siblings") as store:
            assert len(there(store, range(4))) == 4
        with child(script, root) as process:
            assert said(process) == "KS-LCK-001"
        owner.close()
        with (
            open_store(root, member="0", follow="siblings") as store,
            open_store(root, member="owner") as again,
        ):
            assert len(there(store, range(4))) == len(there(again, range(4))) == 4


def test_a_forked_follower_ends_in_peace(root: Path) -> None:
    script = """
import os
store = open_store(Path(sys.argv[1]), member="0", follow="siblings")
found = len(there(store, range(4)))
if os.fork() == 0:
    try:
        store.match(keys_of(range(4)))
    except keystow.StoreClosedError as error:
        say(error.code)
    del store
    sys.exit()
os.wait()
say(f"{found} {len(there(store, range(4)))}")
store.close()
say("closed")
"""
    with stored(root, range(4)), child(script, root) as process:
        assert [said(process) for _ in range(3)] == ["KS-CLO-002", "4 4", "closed"]


def test_hints_for_followers_are_the_stores_own(root: Path) -> None:
    capacity = capacity_for(LONG) + CHANGES_BYTES
    with stored(root, range(40), capacity=capacity) as owner:
        hints = member_folder(root, "owner") / "changes"
        assert hints.stat().st_size == CHANGES_BYTES
        sizes = [size for size in files_below(root).values() if size > 0]
        assert sum(sizes) <= capacity
        assert owner.stats().ssd_slots_total == LONG
        [told] = inspect(root)
        assert (told["contents"]["live"], told["contents"]["warnings"]) == (40, [])
        with open_store(root, member="0", follow="siblings") as store:
            assert store.match_prefix(keys_of(range(40))) == 40
            pages = store.stats().followed_pages
            owner.remove(keys_of([7]), durable=True)
            until(lambda: store.match_prefix(keys_of(range(40))) == 7)
            # The pages that changed, and not the table again.
            assert pages + 1 <= store.stats().followed_pages <= pages + 40
    with stored(root, range(40, 44), capacity=capacity):
        assert hints.stat().st_size == CHANGES_BYTES
    found = {it.member: it for it in directories(root)}
    assert found.keys() == {"0", "owner"}
    assert found["owner"].error is None
    remove(root, found["owner"])
    assert not hints.parent.exists()


def test_an_owner_without_hints_is_followed_all_the_same(root: Path) -> None:
    capacity = capacity_for(LONG) + CHANGES_BYTES
    with stored(root, range(40), capacity=capacity) as owner:
        (member_folder(root, "owner") / "changes").unlink()
        with open_store(root, member="0", follow="siblings") as store:
            assert store.match_prefix(keys_of(range(40))) == 40
            put(owner, range(50, 54))
            owner.remove(keys_of(range(5, 10)), durable=True)
            assert owner.flush() == 0
            time.sleep(SERVED_S)
            assert there(store, range(5, 10)) == {}
            until(lambda: store.match_prefix(keys_of(range(50, 54))) == 4)
            assert len(there(store, range(50, 54))) == 4


def test_a_deterministic_store_follows_without_a_thread(root: Path) -> None:
    with (
        stored(root, range(6)) as owner,
        open_store(root, member="0", follow="siblings", deterministic=True) as store,
    ):
        assert len(there(store, range(3))) == 3
        owner.remove(keys_of([4]), durable=True)
        time.sleep(SERVED_S)
        assert list(there(store, range(6))) == [0, 1, 2, 3, 5]
