"""The store itself hits, stores and evicts exactly what its model says, request by request.

Method: a deterministic store of one-byte blocks (a frame each) is driven as an engine drives it:
match, get of the run, put of the whole chain. On production traces its counts must be those of
`replay(chains=True)`; on small random traces with leases held and dropped at random, where fewer
blocks may leave, every answer and the whole content must be those of a naive model.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass
from functools import cache

import pytest

import keystow
from keystow.trace import TRACES, packaged
from reference_policies import CHAINS, ChainRule, leading

FRAME_BYTES = 4096
POLICIES = ("lru", "arc")
SIZES = {
    "conversation": (182, 1827, 9139, 18279, 45697, 91395),
    "synthetic": (43, 439, 2196, 4392, 10981, 21962),
}
BY_DEFAULT = 2
IDS = 60


def open_store(policy: str, frames: int) -> keystow.Store:
    return keystow.Store(block_bytes=1, ram=frames * FRAME_BYTES, policy=policy, deterministic=True)


def payload(chain: list[int]) -> bytes:
    """One byte a block, that its neighbours and its namesakes of other traces don't have."""
    return bytes((block * 167 + 13) & 0xFF for block in chain)


@dataclass
class Engine:
    """A store, and the chains that are served through it."""

    store: keystow.Store

    def keys(self, chain: list[int]) -> keystow.Keys:
        return self.store.keys_of(array("Q", chain).tobytes(), width=8)

    def serve(self, chain: list[int]) -> tuple[int, int]:
        """Serve a request; its leading run, and how many of its leading blocks are then stored."""
        keys = self.keys(chain)
        matched = int(self.store.match(keys))
        assert sum(self.store.contains(keys)) == matched, "plain hits are prefix hits"
        out = bytearray(matched)
        assert self.store.get(keys[:matched], out) == matched
        assert out == payload(chain[:matched])
        return matched, self.store.put(keys, payload(chain))


@cache
def loaded(name: str) -> keystow.Trace:
    return keystow.Trace.packaged(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "frames" in metafunc.fixturenames:
        count = None if metafunc.config.getoption("--all-capacities") else BY_DEFAULT
        cells = [(name, frames) for name in TRACES for frames in SIZES[name][:count]]
        metafunc.parametrize(("name", "frames"), cells)


@pytest.mark.parametrize("policy", POLICIES)
def test_production_traces(name: str, frames: int, policy: str) -> None:
    hits = evictions = 0
    with open_store(policy, frames) as store:
        engine = Engine(store)
        for entry in packaged(name):
            matched, stored = engine.serve(entry.blocks)
            hits += matched
            assert stored == min(len(entry.blocks), frames), "a put stores what fits"
        store._validate()
        evictions = store.stats().evictions
    model = keystow.replay(loaded(name), policy, ram_blocks=frames)
    assert (hits, evictions) == (model.prefix_hits, model.evictions)
    assert hits == model.plain_hits


@dataclass
class Pair:
    """A store and its model, and the leases that both have out."""

    engine: Engine
    model: ChainRule
    leases: list[tuple[keystow.Lease, list[int]]]

    def serve(self, chain: list[int]) -> None:
        assert self.engine.serve(chain) == self.model.request(chain)

    def lease(self, chain: list[int]) -> None:
        """Pin the resident run of a chain; like a get, it touches what it delivers."""
        lease = self.engine.store.lease(self.engine.keys(chain))
        run = chain[: len(lease)]
        assert len(run) == leading(chain, self.model.parent)
        self.model.use(run)
        self.model.pins.update(run)
        self.leases.append((lease, run))

    def release(self, index: int) -> None:
        lease, run = self.leases.pop(index)
        assert b"".join(bytes(view) for view in lease) == payload(run), "held and unchanged"
        lease.release()
        self.model.pins.subtract(run)

    def compare(self) -> None:
        store = self.engine.store
        there = store.contains(self.engine.keys(list(range(IDS))))
        assert [block for block in range(IDS) if there[block]] == sorted(self.model.parent)
        stats, recount = store.stats(), store._validate()
        assert stats.evictions == self.model.counts.evictions
        pinned = {block for block, count in self.model.pins.items() if count}
        assert stats.frames_pinned == len(pinned)
        assert recount["resident"] == stats.blocks == len(self.model.parent)


def chain_of(rng: random.Random) -> list[int]:
    """A walk down a tree of fewer than `IDS` blocks, near its middle more often."""
    chain, node = [], rng.choice((0, 0, 1))
    while node < IDS and rng.random() < 0.9:
        chain.append(node)
        node = 2 * node + 2 + (rng.random() < 0.4)
    return chain


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(30))
def test_random_leases(policy: str, seed: int) -> None:
    rng = random.Random(seed)
    frames = rng.randint(1, 16)
    held_max = rng.choice((1, 4, 12))
    with open_store(policy, frames) as store:
        pair = Pair(Engine(store), CHAINS[policy](frames), [])
        for _ in range(250):
            dice = rng.random()
            if dice < 0.6:
                pair.serve(chain_of(rng))
            elif dice < 0.8 and len(pair.leases) < held_max:
                pair.lease(chain_of(rng))
            elif pair.leases:
                pair.release(rng.randrange(len(pair.leases)))
            pair.compare()
        while pair.leases:
            pair.release(-1)
        pair.compare()
        assert store._validate()["pins"] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_where_all_is_leased_nothing_changes(policy: str) -> None:
    with open_store(policy, 4) as store:
        pair = Pair(Engine(store), CHAINS[policy](4), [])
        for chain in ([0, 2, 6], [1], [0, 2, 7], [0, 2, 6, 14]):
            pair.serve(chain)
        for chain in ([0, 2, 6, 14], [1, 4]):
            pair.lease(chain)
        for chain in ([3], [0, 3, 8], [1, 4], [7]):
            pair.serve(chain)
            pair.compare()
        while pair.leases:
            pair.release(0)
        for chain in ([3], [0, 3, 8], [7], [1, 4]):
            pair.serve(chain)
            pair.compare()
