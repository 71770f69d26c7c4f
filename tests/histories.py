"""Runs of keys as callers ask for them: parts of a few chains that share prefixes, and jumbles.

Owns: the strategies from which the state machines draw. Never looks at a store.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from model import raw_key

KEYS = [raw_key(n) for n in range(12)]
# Prefixes in common, a chain that joins another one in its middle, and one that runs backwards.
CHAINS = [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [0, 1, 2, 8, 9],
    [0, 10, 11],
    [8, 9, 3, 4],
    [11, 6, 5, 2],
    [7, 6, 5],
]


@dataclass(frozen=True)
class Run:
    """Block numbers of a call, and the one before them if the caller knows it."""

    numbers: tuple[int, ...]
    above: int | None = None

    @property
    def keys(self) -> list[bytes]:
        return [KEYS[n] for n in self.numbers]

    @property
    def parent(self) -> bytes | None:
        return None if self.above is None else KEYS[self.above]

    def packed(self) -> bytes:
        return b"".join(self.keys)


@st.composite
def pieces(draw: st.DrawFn) -> Run:
    """Part of a chain; the caller may or may not know what comes before it."""
    chain = draw(st.sampled_from(CHAINS))
    start = draw(st.one_of(st.just(0), st.integers(0, len(chain) - 1)))
    end = draw(st.integers(start + 1, len(chain)))
    knows = start > 0 and draw(st.booleans())
    return Run(tuple(chain[start:end]), chain[start - 1] if knows else None)


def jumbles(most: int) -> st.SearchStrategy[Run]:
    """Keys in any order, some of them twice, under any parent."""
    numbers = st.integers(0, len(KEYS) - 1)
    return st.builds(Run, st.lists(numbers, max_size=most).map(tuple), st.none() | numbers)


RUNS = st.one_of(pieces(), pieces(), pieces(), jumbles(6))
QUESTIONS = st.one_of(pieces(), pieces(), jumbles(40))
