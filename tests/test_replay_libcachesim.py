"""The textbook policies agree with libCacheSim, a simulator by other people, access by access.

Method: a trace of single-block requests, so that replay's hits are those of the accesses. The real
traces are flattened tail first. Replay tells only totals, so it runs over leading parts of a trace:
over every one of a short random trace, where equal totals mean equal hits, and over a few of a
real one. Our own references say hit or miss at each access of the short ones too.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import accumulate

import pytest

import keystow
from keystow.trace import TRACES, packaged
from reference_policies import TEXTBOOK

libcachesim = pytest.importorskip("libcachesim", reason="no wheel of libCacheSim for this Python")

POLICIES = {"lru": libcachesim.LRU, "fifo": libcachesim.FIFO, "arc": libcachesim.ARC}
PARTS = 8
SIZES = {"conversation": (182, 9139, 45697), "synthetic": (43, 2196, 10981)}


def outcomes(accesses: list[int], policy: str, size: int) -> list[bool]:
    """Hit or miss of each access, as libCacheSim has it."""
    simulator = POLICIES[policy](size)
    request = libcachesim.Request()
    request.obj_size = 1
    hits = []
    for block in accesses:
        request.obj_id = block + 1
        hits.append(bool(simulator.get(request)))
    return hits


def hits_of(accesses: list[int], policy: str, size: int) -> int:
    requests = [[block] for block in accesses]
    return keystow.replay(requests, policy, ram_blocks=size, chains=False).plain_hits


@cache
def tail_first(name: str) -> list[int]:
    return [block for request in packaged(name) for block in reversed(request.blocks)]


@cache
def part(name: str, number: int) -> tuple[int, keystow.Trace]:
    """The first accesses of a real trace: how many, and as requests of one block."""
    length = len(tail_first(name)) * number // PARTS
    return length, keystow.Trace([block] for block in tail_first(name)[:length])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(30))
def test_every_access_of_random_traces(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    size, kinds = rng.randint(1, 16), rng.choice((0.5, 0.8, 1.2))
    accesses = [int(rng.paretovariate(kinds)) % 80 for _ in range(300)]
    want = outcomes(accesses, policy, size)
    reference = TEXTBOOK[policy](size)
    assert [reference.access(block) for block in accesses] == want
    totals = [hits_of(accesses[:end], policy, size) for end in range(1, len(accesses) + 1)]
    assert totals == list(accumulate(want))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", TRACES)
def test_real_traces(name: str, policy: str) -> None:
    for size in SIZES[name]:
        totals = list(accumulate(outcomes(tail_first(name), policy, size)))
        for number in range(1, PARTS + 1):
            length, trace = part(name, number)
            found = keystow.replay(trace, policy, ram_blocks=size, chains=False)
            assert found.plain_hits == totals[length - 1], (size, length)
