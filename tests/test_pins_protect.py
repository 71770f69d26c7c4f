"""The pins of a lease keep every block it will read, whatever else may leave.

Method: first the rule alone, on random legal states of two tiers, with legal evictions chosen
adversarially until none is left: one pin a stretch loses nothing, fewer pins do. Then the store:
random forests with breaks, leases on runs through them, and an adversary who puts, removes and
clears until nothing else is left.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import keystow
from model import payload, raw_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

BLOCK_BYTES = 64
FRAME_BYTES = 4096
STATES = 4_000
ENDINGS = 4

Tiers = dict[int, str]  # block -> "R" (only in RAM), "S" (only on SSD) or "RS"
Parents = dict[int, int | None]


def evictions(blocks: Tiers, parent: Parents, pins: Collection[int]) -> Iterator[tuple[int, str]]:
    """Give every copy that may leave, as (block, what is left of it)."""
    kids = Counter(parent[block] for block in blocks)
    kids_ram = Counter(parent[block] for block, tiers in blocks.items() if "R" in tiers)
    for block, tiers in blocks.items():
        if block in pins:
            continue
        if tiers == "RS" and not kids_ram[block]:
            yield block, "S"
        if not kids[block]:
            yield block, "R" if tiers == "RS" else ""


def apply(blocks: Tiers, block: int, left: str) -> None:
    if left:
        blocks[block] = left
    else:
        del blocks[block]


def random_state(rng: random.Random) -> tuple[Tiers, Parents]:
    """Return what appends, cleanings, demotions and promotions can leave."""
    blocks: Tiers = {}
    parent: Parents = {}
    for number in range(rng.randint(4, 24)):
        step = rng.random()
        if step < 0.5 or not blocks:
            parent[number] = rng.choice(list(blocks)) if blocks and rng.random() < 0.9 else None
            blocks[number] = "R"
            continue
        block = rng.choice(list(blocks))
        demotions = [b for b, left in evictions(blocks, parent, ()) if left == "S"]
        if step < 0.7 and blocks[block] == "R":
            blocks[block] = "RS"
        elif step < 0.9 and demotions:
            blocks[rng.choice(demotions)] = "S"
        elif blocks[block] == "S":
            blocks[block] = "RS"
    return blocks, parent


def random_run(rng: random.Random, blocks: Tiers, parent: Parents) -> list[int]:
    """Return a path from a root, or the ends of two: a run whose link breaks in its middle."""

    def path() -> list[int]:
        at, up = rng.choice(list(blocks)), []
        while at is not None:
            up.append(at)
            at = parent[at]
        return up[::-1]

    first = path()
    if rng.random() < 0.5:
        return first
    second = [block for block in path() if block not in first]
    return first[rng.randrange(len(first)) :] + second[rng.randrange(len(second) + 1) :]


def deepest_only(run: list[int], tier: list[str], parent: Parents) -> set[int]:  # noqa: ARG001
    return {run[-1]}


def deepest_per_tier(run: list[int], tier: list[str], parent: Parents) -> set[int]:  # noqa: ARG001
    return set({t: block for block, t in zip(run, tier, strict=True)}.values())


def every_stretch(run: list[int], tier: list[str], parent: Parents) -> set[int]:
    def ends(i: int) -> bool:
        last = i == len(run) - 1
        return last or parent[run[i + 1]] != run[i] or (tier[i] == "R" and tier[i + 1] != "R")

    return {block for i, block in enumerate(run) if ends(i)}


def loses(
    rng: random.Random, blocks: Tiers, parent: Parents, pins: set[int], reads: dict[int, str]
) -> bool:
    blocks = dict(blocks)
    while moves := list(evictions(blocks, parent, pins)):
        apply(blocks, *rng.choice(moves))
        if any(tier not in blocks.get(block, "") for block, tier in reads.items()):
            return True
    return False


@pytest.mark.parametrize(
    ("rule", "keeps_all"),
    [(every_stretch, True), (deepest_only, False), (deepest_per_tier, False)],
)
def test_the_rule(rule: Callable[..., set[int]], keeps_all: bool) -> None:  # noqa: FBT001
    rng = random.Random(11)
    lost = 0
    for _ in range(STATES):
        blocks, parent = random_state(rng)
        if not blocks:
            continue
        run = random_run(rng, blocks, parent)
        tier = ["R" if "R" in blocks[block] else "S" for block in run]
        pins = rule(run, tier, parent)
        reads = dict(zip(run, tier, strict=True))
        lost += any(loses(rng, blocks, parent, pins, reads) for _ in range(ENDINGS))
    assert (lost == 0) == keeps_all, f"{lost} of {STATES}"


# ---- the store ----


class Adversary:
    """A store, what was put into it, and every means to make a block leave."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.frames = self.rng.randint(2, 24)
        ram = self.frames * FRAME_BYTES
        self.store = keystow.Store(block_bytes=BLOCK_BYTES, ram=ram, deterministic=True)
        self.fresh = 1000

    def put(self, numbers: list[int], parent: int | None = None) -> int:
        keys = [raw_key(number) for number in numbers]
        above = None if parent is None else raw_key(parent)
        blocks = [payload(key, 0, BLOCK_BYTES) for key in keys]
        return self.store.put(b"".join(keys), blocks, parent=above)

    def walk(self) -> list[int]:
        """Return numbers of a run: ascending stretches, with jumps that break the chain."""
        numbers = [self.rng.randrange(40)]
        for _ in range(self.rng.randrange(10)):
            jump = self.rng.random() < 0.2
            numbers.append(self.rng.randrange(40) if jump else (numbers[-1] + 1) % 40)
        return list(dict.fromkeys(numbers))

    def attack(self) -> None:
        step = self.rng.randrange(6)
        if step == 0:
            self.store.remove(b"".join(raw_key(n) for n in self.walk()[:2]))
        elif step == 1 and self.rng.random() < 0.1:
            self.store.clear()
        elif step == 2:
            self.put(self.walk(), self.rng.choice([None, self.rng.randrange(40)]))
        else:
            new = [self.fresh + i for i in range(self.rng.randint(1, self.frames))]
            self.fresh += len(new)
            self.put(new)


@pytest.mark.parametrize("seed", range(60))
def test_leased_bytes_stand_still_under_attack(seed: int) -> None:
    evil = Adversary(seed)
    for _ in range(20):
        evil.put(evil.walk(), evil.rng.choice([None, None, evil.rng.randrange(40)]))
    held = []
    for _ in range(3):
        run = [raw_key(number) for number in evil.walk()]
        held.append((evil.store.lease(b"".join(run)), run))
        for _ in range(20):
            evil.attack()
            for lease, keys in held:
                blocks = list(map(bytes, lease))
                assert blocks == [payload(key, 0, BLOCK_BYTES) for key in keys[: len(lease)]]
        evil.store._validate()
    for lease, _ in held:
        lease.release()
    recount = evil.store._validate()
    assert recount["pins"] == 0
    assert recount["evictable"] == recount["blocks"]
    assert evil.put(list(range(5000, 5000 + evil.frames))) == evil.frames
    recount = evil.store._validate()
    assert recount["holes"] == recount["hidden"] == 0, "all that stood there has gone"


@pytest.mark.parametrize("seed", range(60))
def test_a_lease_keeps_no_more_than_its_ancestors(seed: int) -> None:
    """What nothing stands on can all leave at once: a put gets every such frame, and only those."""
    evil = Adversary(1000 + seed)
    for _ in range(30):
        evil.put(evil.walk())
    with evil.store.lease(b"".join(raw_key(number) for number in evil.walk())) as lease:
        before = evil.store._validate()
        room = before["evictable"] + before["frames_free"]
        assert evil.put(list(range(5000, 5000 + evil.frames))) == room
        after = evil.store._validate()
        assert after["frames_pinned"] == len(lease)
        assert after["frames_free"] == 0


def test_a_run_over_a_break_pins_the_block_before_it() -> None:
    """Block b stays the child of a, so a lease on [c, b] needs a pin on each."""
    a, b, c = range(3)
    evil = Adversary(0)
    evil.put([a, b])
    evil.put([c, b])
    keys = b"".join(map(raw_key, [c, b]))
    with evil.store.lease(keys, min_blocks=2):
        assert evil.store._validate()["pins"] == 2
        for number in range(100, 200):
            evil.put([number])
        assert evil.store.match_prefix(keys) == 2
        assert evil.store.contains(raw_key(a)) == [True], "the ancestor of b stays too"
    with evil.store.lease(b"".join(map(raw_key, [a, b]))):
        assert evil.store._validate()["pins"] == 1, "one chain needs one pin"
        for number in range(200, 300):
            evil.put([number])
        assert evil.store.contains(raw_key(c)) == [False]
