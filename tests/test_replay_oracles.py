"""Replay counts exactly what independent references counted on two production traces.

Method: the numbers in tests/data were made by plain scans (hours of Python) that share no code with
this project: both rules, six sizes from 0.1 % to 50 % of the different blocks, three policies.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import keystow
from keystow.trace import TRACES, packaged
from reference_policies import belady

DATA = Path(__file__).parent / "data"
RULES = {True: "hits_chains.json", False: "hits_textbook.json"}
POLICIES = ("lru", "arc", "fifo")


@cache
def expected(*, chains: bool) -> dict[str, Any]:
    return json.loads((DATA / RULES[chains]).read_text())


@cache
def loaded(name: str) -> keystow.Trace:
    return keystow.Trace.packaged(name)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("chains", [True, False], ids=["chains", "textbook"])
@pytest.mark.parametrize("name", TRACES)
def test_every_size(name: str, chains: bool, policy: str) -> None:  # noqa: FBT001
    want = expected(chains=chains)[name]
    assert len(want["ram_blocks"]) == 6
    for at, ram_blocks in enumerate(want["ram_blocks"]):
        found = keystow.replay(loaded(name), policy, ram_blocks=ram_blocks, chains=chains)
        hits = (found.plain_hits, found.prefix_hits)
        assert hits == (want[policy]["plain"][at], want[policy]["prefix"][at]), ram_blocks
        assert (found.ram_hits, found.ssd_hits, found.ssd_writes) == (found.prefix_hits, 0, 0)
        shape = (found.requests, found.refs, found.unique, found.malformed)
        assert shape == (want["requests"], want["refs"], want["unique"], 0)


@pytest.mark.parametrize("name", TRACES)
def test_room_for_all_hits_whatever_was_seen_before(name: str) -> None:
    trace = loaded(name)
    for policy in POLICIES:
        for ram_blocks in (trace.unique, trace.unique + 1, 1 << 40):
            found = keystow.replay(trace, policy, ram_blocks=ram_blocks)
            assert found.prefix_hits == found.plain_hits == trace.refs - trace.unique
            assert found.evictions == 0


def test_the_bound_of_our_own_reference_is_the_known_one() -> None:
    want = expected(chains=False)["synthetic"]
    requests = [request.blocks for request in packaged("synthetic")]
    for at in (1, 3):
        found = belady(requests, want["ram_blocks"][at])
        assert (found.plain, found.prefix) == (want["min"]["plain"][at], want["min"]["prefix"][at])
