"""Eviction policies in their plainest form, for the real ones to be compared with.

Owns: the textbook's LRU, FIFO and ARC with their invariants, Belady's MIN, and the same policies
under the store's rule over prefix chains. Never looks at keystow. Method: lists, oldest first, and
a scan for each question; nothing is fast, so that everything can be read beside its definition.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Block: TypeAlias = Hashable
Chain: TypeAlias = Sequence[Hashable]


@dataclass
class Counts:
    """What a cache has seen, in blocks."""

    plain: int = 0
    prefix: int = 0
    evictions: int = 0


def leading(chain: Chain, resident: Iterable[Block]) -> int:
    """How many blocks at the head of a chain are resident."""
    return sum(1 for _ in takewhile(set(resident).__contains__, chain))


# ---- the textbook: any block may leave ----


@dataclass
class Textbook:
    """A request is looked up, then each of its blocks is accessed once, tail first."""

    capacity: int
    counts: Counts = field(default_factory=Counts)

    def request(self, chain: Chain) -> None:
        content = set(self.content())
        self.counts.plain += sum(block in content for block in chain)
        self.counts.prefix += leading(chain, content)
        for block in reversed(chain):
            self.access(block)
            self.check()

    def content(self) -> list[Block]:
        raise NotImplementedError

    def access(self, block: Block) -> bool:
        raise NotImplementedError

    def check(self) -> None:
        assert len(self.content()) == len(set(self.content())) <= self.capacity


@dataclass
class Lru(Textbook):
    """The least recently used block leaves."""

    moves_hits = True
    order: list[Block] = field(default_factory=list)

    def content(self) -> list[Block]:
        return self.order

    def access(self, block: Block) -> bool:
        hit = block in self.order
        if hit and not self.moves_hits:
            return True
        if hit:
            self.order.remove(block)
        elif len(self.order) == self.capacity:
            self.order.pop(0)
            self.counts.evictions += 1
        self.order.append(block)
        return hit


@dataclass
class Fifo(Lru):
    """The block that came first leaves."""

    moves_hits = False


@dataclass
class DoubleList:
    """DBL(2c): blocks seen once lately, and blocks seen again. It knows nothing of p."""

    capacity: int
    once: list[Block] = field(default_factory=list)
    again: list[Block] = field(default_factory=list)

    def access(self, block: Block) -> None:
        if block in self.once or block in self.again:
            (self.once if block in self.once else self.again).remove(block)
            self.again.append(block)
            return
        if len(self.once) == self.capacity:
            self.once.pop(0)
        elif len(self.once) + len(self.again) == 2 * self.capacity:
            self.again.pop(0)
        self.once.append(block)


@dataclass
class ArcLists:
    """T1, T2, B1, B2 and p of the paper's figure 4."""

    capacity: int
    t1: list[Block] = field(default_factory=list)
    t2: list[Block] = field(default_factory=list)
    b1: list[Block] = field(default_factory=list)
    b2: list[Block] = field(default_factory=list)
    p: float = 0.0

    def touch(self, block: Block) -> None:
        (self.t1 if block in self.t1 else self.t2).remove(block)
        self.t2.append(block)

    def aim(self, block: Block) -> float:
        """The p that the arrival of a block leads to."""
        if block in self.b1:
            return min(float(self.capacity), self.p + max(1.0, len(self.b2) / len(self.b1)))
        if block in self.b2:
            return max(0.0, self.p - max(1.0, len(self.b1) / len(self.b2)))
        return self.p

    def takes_from_t1(self, block: Block) -> bool:
        """Which list REPLACE names."""
        size, p = len(self.t1), self.aim(block)
        return size >= 1 and (size > p or (block in self.b2 and size == p))

    def drops_without_ghost(self, block: Block) -> bool:
        """Case IV, A, second half: T1 fills the cache, its oldest is deleted outright."""
        new = block not in self.b1 and block not in self.b2
        return new and len(self.t1) == self.capacity

    def arrive(self, block: Block, victim: Block | None) -> None:
        """Let a block in, its victim out; None: there was room."""
        outright = self.drops_without_ghost(block)
        again = block in self.b1 or block in self.b2
        p = self.aim(block)
        if not again and not outright:
            if len(self.t1) + len(self.b1) == self.capacity:
                self.b1.pop(0)
            elif self.total() == 2 * self.capacity:
                self.b2.pop(0)
        self.p = p
        if victim is not None:
            seen_once = victim in self.t1
            (self.t1 if seen_once else self.t2).remove(victim)
            if not outright:
                (self.b1 if seen_once else self.b2).append(victim)
        for ghosts in (self.b1, self.b2):
            if block in ghosts:
                ghosts.remove(block)
        (self.t2 if again else self.t1).append(block)

    def total(self) -> int:
        return sum(map(len, (self.t1, self.t2, self.b1, self.b2)))

    def check(self) -> None:
        c, resident = self.capacity, len(self.t1) + len(self.t2)
        everything = [*self.t1, *self.t2, *self.b1, *self.b2]
        assert len(everything) == len(set(everything)), "a block on two lists"
        assert resident <= c
        assert len(self.t1) + len(self.b1) <= c
        assert len(everything) <= 2 * c
        assert 0 <= self.p <= c
        assert resident == c or not (self.b1 or self.b2), "ghosts before the cache was full"


@dataclass
class Arc(Textbook):
    """Megiddo & Modha's adaptive replacement cache, beside the two lists it must equal."""

    full: bool = False

    def __post_init__(self) -> None:
        self.lists = ArcLists(self.capacity)
        self.double = DoubleList(self.capacity)

    def content(self) -> list[Block]:
        return [*self.lists.t1, *self.lists.t2]

    def access(self, block: Block) -> bool:
        self.double.access(block)
        lists = self.lists
        if block in lists.t1 or block in lists.t2:
            lists.touch(block)
            return True
        victim = None
        if len(lists.t1) + len(lists.t2) == self.capacity:
            from_t1 = lists.drops_without_ghost(block) or lists.takes_from_t1(block)
            victim = (lists.t1 if from_t1 else lists.t2)[0]
            self.counts.evictions += 1
        lists.arrive(block, victim)
        return False

    def check(self) -> None:
        super().check()
        self.lists.check()
        assert [*self.lists.b1, *self.lists.t1] == self.double.once
        assert [*self.lists.b2, *self.lists.t2] == self.double.again
        is_full = len(self.content()) == self.capacity
        assert is_full or not self.full, "once full, always full"
        self.full = is_full


TEXTBOOK: dict[str, type[Textbook]] = {"lru": Lru, "fifo": Fifo, "arc": Arc}


# ---- the store's rule: ends of chains only, never the request's own ----


@dataclass
class ChainRule:
    """A request is looked up, its resident run touched, its absent blocks inserted, tail first.

    A victim has no resident child, is none of the request's blocks, and is not pinned. A block
    keeps the parent it came with. Where room runs out, as many blocks are stored as have left,
    from the head on.
    """

    capacity: int
    counts: Counts = field(default_factory=Counts)
    parent: dict[Block, Block | None] = field(default_factory=dict)
    pins: Counter[Block] = field(default_factory=Counter)
    own: frozenset[Block] = frozenset()

    def request(self, chain: Chain) -> tuple[int, int]:
        """Serve a request; its leading run, and how many of its leading blocks are then stored."""
        run = leading(chain, self.parent)
        self.counts.plain += sum(block in self.parent for block in chain)
        self.counts.prefix += run
        self.use(chain[:run])
        return run, self.put(chain)

    def use(self, run: Chain) -> None:
        """Touch a resident run, tail first."""
        for block in reversed(run):
            self.touch(block)

    def put(self, chain: Chain) -> int:
        above = dict(reversed([*zip(chain, [None, *chain], strict=False)]))
        present = [block for block in above if block in self.parent]
        absent = [block for block in dict.fromkeys(chain) if block not in self.parent]
        absent = absent[: self.capacity - len(present)]
        self.own = frozenset(chain)
        announced: list[Block] = []
        for block in reversed(absent):
            if not self.make_room(block, len(announced)):
                break
            announced.append(block)
        stored = absent[: len(announced)]
        for block in announced:
            if block not in stored:
                self.withdraw(block)
        for block in reversed(stored):
            if block not in announced:
                self.arrive(block, None)
            self.parent[block] = above[block]
        self.own = frozenset()
        self.check()
        return leading(chain, self.parent)

    def make_room(self, block: Block, coming: int) -> bool:
        """Announce a block that has a place, or whose victim has left."""
        victim = None
        if len(self.parent) + coming == self.capacity:
            victim = self.victim(block)
            if victim is None:
                return False
            del self.parent[victim]
            self.counts.evictions += 1
        self.arrive(block, victim)
        return True

    def oldest(self, order: Iterable[Block]) -> Block | None:
        """The first of an order that may leave."""
        with_child = set(self.parent.values())
        stay = with_child | self.own | {block for block, count in self.pins.items() if count}
        return next((block for block in order if block not in stay), None)

    def check(self) -> None:
        assert len(self.parent) <= self.capacity

    def touch(self, block: Block) -> None:
        raise NotImplementedError

    def victim(self, block: Block) -> Block | None:
        raise NotImplementedError

    def arrive(self, block: Block, victim: Block | None) -> None:
        raise NotImplementedError

    def withdraw(self, block: Block) -> None:
        raise NotImplementedError


@dataclass
class LruChains(ChainRule):
    """The least recently used of the blocks that may leave."""

    moves_hits = True
    order: list[Block] = field(default_factory=list)

    def touch(self, block: Block) -> None:
        if self.moves_hits:
            self.order.remove(block)
            self.order.append(block)

    def victim(self, block: Block) -> Block | None:  # noqa: ARG002 - any block gets the same
        return self.oldest(self.order)

    def arrive(self, block: Block, victim: Block | None) -> None:
        if victim is not None:
            self.order.remove(victim)
        self.order.append(block)

    def withdraw(self, block: Block) -> None:
        self.order.remove(block)


@dataclass
class FifoChains(LruChains):
    """The first that came of the blocks that may leave."""

    moves_hits = False


@dataclass
class ArcChains(ChainRule):
    """The oldest that may leave of the list REPLACE names, else of the other; its ghost stays."""

    def __post_init__(self) -> None:
        self.lists = ArcLists(self.capacity)

    def touch(self, block: Block) -> None:
        self.lists.touch(block)

    def victim(self, block: Block) -> Block | None:
        lists = self.lists
        if lists.drops_without_ghost(block) or lists.takes_from_t1(block):
            named, other = lists.t1, lists.t2
        else:
            named, other = lists.t2, lists.t1
        victim = self.oldest(named)
        return self.oldest(other) if victim is None else victim

    def arrive(self, block: Block, victim: Block | None) -> None:
        self.lists.arrive(block, victim)

    def withdraw(self, block: Block) -> None:
        (self.lists.t1 if block in self.lists.t1 else self.lists.t2).remove(block)

    def check(self) -> None:
        super().check()
        self.lists.check()
        assert {*self.lists.t1, *self.lists.t2} == set(self.parent)


CHAINS: dict[str, type[ChainRule]] = {"lru": LruChains, "fifo": FifoChains, "arc": ArcChains}


def run(requests: Iterable[Chain], policy: str, capacity: int, *, chains: bool) -> Counts:
    """Count a whole trace."""
    cache = (CHAINS if chains else TEXTBOOK)[policy](capacity)
    for chain in requests:
        cache.request(chain)
    return cache.counts


# ---- the bound ----


def belady(requests: Sequence[Chain], capacity: int) -> Counts:
    """MIN: after each request the blocks that will be asked for soonest stay.

    Of those asked for by the same request the deepest leaves first, so that hits are leading runs.
    """
    never = len(requests)
    upcoming: dict[Block, list[tuple[int, int]]] = {}
    for number in reversed(range(never)):
        for depth, block in enumerate(requests[number]):
            upcoming.setdefault(block, []).append((number, depth))
    counts = Counts()
    use: dict[Block, tuple[int, int]] = {}
    latest: list[tuple[int, int, Block]] = []
    for chain in requests:
        counts.plain += sum(block in use for block in chain)
        counts.prefix += sum(1 for _ in takewhile(use.__contains__, chain))
        for depth, block in enumerate(chain):
            upcoming[block].pop()
            use[block] = upcoming[block][-1] if upcoming[block] else (never, depth)
            heapq.heappush(latest, (-use[block][0], -use[block][1], block))
        while len(use) > capacity:
            number, depth, block = heapq.heappop(latest)
            if use.get(block) == (-number, -depth):
                del use[block]
                counts.evictions += 1
    return counts
