"""Replay equals the plainest form of each policy, on any trace and under both rules.

Method: hypothesis draws traces of chains (an id fixes its parent, as real ones do) and of any ids
in any order (repeats, cycles, pieces without heads); hits, leading hits and evictions must equal
those of reference_policies.py, which checks its own invariants at every access.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keystow
from reference_policies import Lru, belady, run

if TYPE_CHECKING:
    from collections.abc import Sequence

POLICIES = ("lru", "arc", "fifo")
BRANCHES = 3

Requests: TypeAlias = list[list[int]]


def chain_of(turns: Sequence[int]) -> list[int]:
    """The ids of a walk down a tree: each stands for all turns so far."""
    chain, node = [], 0
    for turn in turns:
        node = node * BRANCHES + turn + 1
        chain.append(node)
    return chain


WALKS = st.lists(st.lists(st.integers(0, BRANCHES - 1), max_size=8), max_size=50)
CHAINS = WALKS.map(lambda walks: [chain_of(turns) for turns in walks])
ANYTHING = st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=50)
SIZES = st.integers(1, 14)


@st.composite
def skewed(draw: st.DrawFn) -> Requests:
    """A longer trace of chains, some of them much more popular than others."""
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    depth = draw(st.integers(1, 12))
    walks = (
        [min(int(rng.paretovariate(1.2)) - 1, 2) for _ in range(rng.randint(0, depth))]
        for _ in range(250)
    )
    return [chain_of(turns) for turns in walks]


def counted(requests: Requests, policy: str, size: int, *, chains: bool) -> tuple[int, int, int]:
    found = keystow.replay(requests, policy, ram_blocks=size, chains=chains)
    return found.plain_hits, found.prefix_hits, found.evictions


def expect(requests: Requests, policy: str, size: int, *, chains: bool) -> tuple[int, int, int]:
    counts = run(requests, policy, size, chains=chains)
    return counts.plain, counts.prefix, counts.evictions


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("chains", [True, False], ids=["chains", "textbook"])
@given(requests=st.one_of(CHAINS, ANYTHING, skewed()), size=SIZES)
@settings(max_examples=120, deadline=None)
def test_equal_to_the_reference(
    chains: bool,  # noqa: FBT001
    policy: str,
    requests: Requests,
    size: int,
) -> None:
    want = expect(requests, policy, size, chains=chains)
    assert counted(requests, policy, size, chains=chains) == want


@pytest.mark.parametrize("policy", POLICIES)
@given(requests=st.one_of(CHAINS, skewed()), size=SIZES)
@settings(max_examples=60, deadline=None)
def test_prefix_hits_are_plain_hits_under_the_rule_of_chains(
    policy: str, requests: Requests, size: int
) -> None:
    plain, prefix, _ = counted(requests, policy, size, chains=True)
    assert plain == prefix


@given(requests=st.one_of(CHAINS, skewed()), size=SIZES)
@settings(max_examples=60, deadline=None)
def test_lru_hits_the_same_under_both_rules(requests: Requests, size: int) -> None:
    chains = counted(requests, "lru", size, chains=True)
    assert chains[:2] == counted(requests, "lru", size, chains=False)[:2]


@given(accesses=st.lists(st.integers(0, 30), max_size=200))
@settings(max_examples=60, deadline=None)
def test_lru_hits_exactly_the_stack_distances_below_its_size(accesses: list[int]) -> None:
    stack: list[int] = []
    distances = []
    for block in accesses:
        if block in stack:
            distances.append(len(stack) - 1 - stack.index(block))
            stack.remove(block)
        stack.append(block)
    for size in range(1, 33):
        found = keystow.replay([[block] for block in accesses], ram_blocks=size, chains=False)
        assert found.plain_hits == sum(distance < size for distance in distances)
        cache = Lru(size)
        for block in accesses:
            cache.access(block)
        assert cache.content() == stack[-size:], "the last distinct blocks"


@given(requests=st.one_of(CHAINS, skewed()), size=SIZES)
@settings(max_examples=60, deadline=None)
def test_a_larger_lru_hits_all_that_a_smaller_one_does(requests: Requests, size: int) -> None:
    for chains in (True, False):
        small = counted(requests, "lru", size, chains=chains)
        large = counted(requests, "lru", size + 1, chains=chains)
        assert small[0] <= large[0]
        assert small[1] <= large[1]


@pytest.mark.parametrize("policy", POLICIES)
@given(requests=st.one_of(CHAINS, skewed(), ANYTHING), size=SIZES)
@settings(max_examples=60, deadline=None)
def test_nothing_beats_the_bound(policy: str, requests: Requests, size: int) -> None:
    requests = [list(dict.fromkeys(chain)) for chain in requests]
    bound = belady(requests, size)
    for chains in (True, False):
        plain, prefix, _ = counted(requests, policy, size, chains=chains)
        assert prefix <= plain <= bound.plain


@pytest.mark.parametrize("policy", POLICIES)
@given(requests=st.one_of(CHAINS, ANYTHING), size=SIZES, seed=st.integers(0, 1 << 32))
@settings(max_examples=40, deadline=None)
def test_relabelling_changes_nothing(policy: str, requests: Requests, size: int, seed: int) -> None:
    rng = random.Random(seed)
    labels = {}
    for block in {block for chain in requests for block in chain}:
        number = (rng.getrandbits(87) << 32) + block
        forms = (number, -number, str(number), str(number).encode(), block + (1 << 63))
        labels[block] = rng.choice(forms)
    relabelled = [[labels[block] for block in chain] for chain in requests]
    for chains in (True, False):
        before = keystow.replay(requests, policy, ram_blocks=size, chains=chains)
        assert keystow.replay(relabelled, policy, ram_blocks=size, chains=chains) == before


@pytest.mark.parametrize("policy", POLICIES)
@given(requests=st.one_of(CHAINS, skewed()), size=SIZES)
@settings(max_examples=40, deadline=None)
def test_named_twice_in_a_request_is_touched_once(
    policy: str, requests: Requests, size: int
) -> None:
    twice = [chain + chain for chain in requests]
    once = counted(requests, policy, size, chains=True)
    assert counted(twice, policy, size, chains=True)[2] == once[2], "other blocks left"


@pytest.mark.parametrize("policy", ["lru", "fifo"])
@given(requests=st.one_of(CHAINS, skewed()), size=SIZES)
@settings(max_examples=40, deadline=None)
def test_asked_twice_in_a_row_is_touched_once(policy: str, requests: Requests, size: int) -> None:
    plain, prefix, evictions = counted(requests, policy, size, chains=True)
    again = sum(min(len(chain), size) for chain in requests)
    twice = [chain for chain in requests for _ in range(2)]
    want = (plain + again, prefix + again, evictions)
    assert counted(twice, policy, size, chains=True) == want
