"""Scans, loops, shifts, giant and hostile chains: right counts, in bounded steps.

Method: traces whose hits are known in closed form, or bounded; and for every one of them, under
every policy, both rules and several sizes, the blocks looked at by searches for victims stay within
a few per access, however long the lists that they cross.
"""

from __future__ import annotations

import random

import pytest

import keystow

POLICIES = ("lru", "arc", "fifo")
STEPS_PER_EVENT_MAX = 2
"""An insert, a touch and a waking pay for one look each, a victim for its own."""


def scan(length: int) -> list[list[int]]:
    return [[block] for block in range(length)]


def loop(length: int, rounds: int) -> list[list[int]]:
    return scan(length) * rounds


def shifts(length: int, window: int) -> list[list[int]]:
    """A window that moves on by one block a request: chains that grow at one end, whole."""
    return [list(range(start, start + window)) for start in range(length)]


def growing(length: int, step: int) -> list[list[int]]:
    """One chain, asked for again each time it has grown."""
    return [list(range(end)) for end in range(step, length + 1, step)]


def zipf(requests: int, heads: int, depth: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    chains = []
    for _ in range(requests):
        head = min(int(rng.paretovariate(1.0)), heads)
        chains.append([head * depth + at for at in range(rng.randint(1, depth))])
    return chains


def star(children: int) -> list[list[int]]:
    """One head under all, then everything again from the last on."""
    rays = [[0, child] for child in range(1, children + 1)]
    return rays + rays[::-1]


def heads_in_the_way(size: int) -> list[list[int]]:
    """Brings ARC to where REPLACE names T2 and all but the youngest of T2 have a child in T1."""
    half = size // 2
    filler, stranger = iter(range(10 * size, 20 * size)), iter(range(20 * size, 30 * size))
    requests = [[-1], [-1], *([next(filler)] for _ in range(size - 1))]
    # Each new block pushes the oldest of T1 out, and asking for that one again moves p up.
    for oldest in range(10 * size, 10 * size + half):
        requests += [[next(stranger)], [oldest]]
    heads = range(half)
    requests += [[head] for head in heads for _ in range(2)]
    requests += [[next(stranger)] for _ in range(4)]
    requests += [[head, size + head] for head in heads]
    requests += [[head, size + head] for head in heads[-4:]]
    return requests + [[next(stranger)] for _ in range(4)]


def backwards(length: int) -> list[list[int]]:
    """Children before their parents, then the same blocks with every parent a child."""
    order = list(range(length))
    return [order[at : at + 3][::-1] for at in range(0, length, 2)] + [order, order[::-1]]


def pieces(length: int, seed: int) -> list[list[int]]:
    """Parts of one chain in any order, most without its head."""
    rng = random.Random(seed)
    starts = [rng.randrange(length) for _ in range(400)]
    return [list(range(start, min(length, start + rng.randint(0, 40)))) for start in starts]


def cycles(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(60) for _ in range(rng.randint(0, 12))] for _ in range(1_500)]


def hits_with_room_for_all(requests: list[list[int]]) -> int:
    seen: set[int] = set()
    hits = 0
    for request in requests:
        hits += sum(block in seen for block in request)
        seen.update(request)
    return hits


HOSTILE: dict[str, list[list[int]]] = {
    "scan": scan(20_000),
    "loop": loop(600, 20),
    "shifts": shifts(1_500, 40),
    "growing": growing(2_000, 40),
    "zipf": zipf(4_000, 500, 12, 1),
    "star": star(10_000),
    "heads in the way": heads_in_the_way(500),
    "backwards": backwards(4_000),
    "pieces": pieces(5_000, 2),
    "cycles": cycles(3),
    "empty": [[], [], []],
    "nothing": [],
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", HOSTILE)
def test_steps_are_bounded_and_counts_add_up(name: str, policy: str) -> None:
    trace = keystow.Trace(HOSTILE[name])
    returning = hits_with_room_for_all(HOSTILE[name])
    for chains in (True, False):
        for size in (1, 2, 37, 500, 9_000):
            found = keystow.replay(trace, policy, ram_blocks=size, chains=chains)
            events = found.refs + found.evictions
            assert found.steps <= STEPS_PER_EVENT_MAX * events, (chains, size)
            assert 0 <= found.prefix_hits <= found.plain_hits <= returning
            assert found.evictions <= found.refs
            if found.unique <= size:
                assert (found.plain_hits, found.evictions) == (returning, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_blocks_that_never_return_hit_nothing_and_push_each_other_out(policy: str) -> None:
    for chains in (True, False):
        found = keystow.replay(scan(50_000), policy, ram_blocks=1_000, chains=chains)
        assert (found.plain_hits, found.evictions) == (0, 49_000)
        assert found.steps <= 2 * found.evictions


@pytest.mark.parametrize("size", [1, 99, 100])
def test_a_loop_hits_nothing_until_it_fits(size: int) -> None:
    for policy in ("lru", "fifo"):
        for chains in (True, False):
            found = keystow.replay(loop(100, 10), policy, ram_blocks=size, chains=chains)
            assert found.plain_hits == (900 if size == 100 else 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_chain_far_longer_than_the_cache_keeps_its_head(policy: str) -> None:
    chain = list(range(50_000))
    for size in (1, 1_000, 49_999, 50_000):
        found = keystow.replay([chain] * 4, policy, ram_blocks=size)
        assert (found.prefix_hits, found.evictions) == (3 * size, 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_giant_chain_that_a_scan_takes_apart_goes_from_its_tail(policy: str) -> None:
    chain = list(range(50_000))
    strangers = [[-1 - block] for block in range(20_000)]
    found = keystow.replay([chain, *strangers, chain], policy, ram_blocks=50_000)
    assert found.prefix_hits == found.plain_hits
    assert found.steps <= STEPS_PER_EVENT_MAX * (found.refs + found.evictions)
    if policy != "arc":
        assert found.prefix_hits == 30_000


def test_one_arc_victim_crosses_tens_of_thousands_of_heads_in_few_steps_an_access() -> None:
    size = 40_000
    requests = heads_in_the_way(size)
    before = keystow.replay(requests[:-4], "arc", ram_blocks=size)
    found = keystow.replay(requests, "arc", ram_blocks=size)
    assert found.evictions - before.evictions == 4
    assert found.steps - before.steps > 0.9 * size / 2, "the list of heads was crossed"
    assert found.steps <= STEPS_PER_EVENT_MAX * (found.refs + found.evictions)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_block_of_room_holds_the_last_head(policy: str) -> None:
    requests = [[1, 2, 3], [1, 2], [1], [4, 5], [4], [1]]
    found = keystow.replay(requests, policy, ram_blocks=1)
    assert (found.prefix_hits, found.evictions) == (3, 2)
