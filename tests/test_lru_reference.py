"""Under lru the store hits exactly what a textbook LRU hits that knows nothing of chains.

Method: random request histories whose chains share prefixes, each request looked up, its hits
loaded and its misses put, beside an OrderedDict in which each request's accesses go tail first, so
that no block is used later than its parent: then the leaf rule must cost nothing.
"""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

import keystow
from model import raw_key

BLOCK_BYTES = 16
FRAME_BYTES = 4096
REQUESTS = 1_000


class Textbook:
    """The last `capacity` distinct keys."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.order: OrderedDict[bytes, None] = OrderedDict()

    def request(self, chain: list[bytes]) -> int:
        hits = next((i for i, key in enumerate(chain) if key not in self.order), len(chain))
        for key in reversed(chain[: self.capacity]):
            self.order[key] = None
            self.order.move_to_end(key)
            if len(self.order) > self.capacity:
                self.order.popitem(last=False)
        return hits


def histories(seed: int) -> list[list[bytes]]:
    """Chains from a tree in which some branches are asked for far more often than others."""
    rng = random.Random(seed)
    trunks: list[list[int]] = [[]]
    fresh = iter(range(1 << 20))
    chains = []
    for _ in range(REQUESTS):
        trunk = rng.choice(trunks[: 1 + int(len(trunks) * rng.random() ** 2)])
        chain = trunk[: rng.randint(0, len(trunk))]
        chain = chain + [next(fresh) for _ in range(rng.choice([0, 0, 1, 2, 5, 9]))]
        trunks.append(chain)
        chains.append([raw_key(number) for number in chain])
    return chains


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 16, 40, 100, 400])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hits_of_each_request(capacity: int, seed: int) -> None:
    rival = Textbook(capacity)
    ram = capacity * FRAME_BYTES
    with keystow.Store(block_bytes=BLOCK_BYTES, ram=ram, deterministic=True) as store:
        hits = 0
        for number, chain in enumerate(histories(seed)):
            packed = b"".join(chain)
            out = bytearray(BLOCK_BYTES * len(chain))
            found = store.match_prefix(packed)
            assert found == store.get(packed, out) == rival.request(chain), number
            assert out[: found * 16] == packed[: found * 16]
            assert store.put(packed, packed) == min(len(chain), capacity), number
            hits += found
        everything = [key for chain in histories(seed) for key in chain]
        there = store.contains(b"".join(everything))
        assert there == [key in rival.order for key in everything]
        stats = store.stats()
        assert stats.hits == hits > 0
        assert stats.evictions == stats.puts - stats.blocks > 0
        store._validate()
