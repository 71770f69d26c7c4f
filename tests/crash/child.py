"""The process that is killed: puts, gets, removes and clears at full speed, and tells each call.

Method: ``python -m crash.child JSON``; every call is announced on the pipe before and after it, and
the store's own events are passed on, so that the parent knows what may and what must be found.
SIGUSR1 asks it to go quiet (no more calls, wait until the disk is idle), SIGUSR2 to clear at once,
SIGTERM to close in order.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import keystow
from crash.universe import MISS, WRONG, Universe, version_of
from crash.wire import ITEMS_MAX, Kind, send

if TYPE_CHECKING:
    from collections.abc import Callable

PUTTERS = 2
POLL_S = 0.02
# The disk counts as idle when nothing was written for so many polls.
IDLE_POLLS = 8
ERASE_PAUSE_S = 0.04
# Of the interpreter's threads: else those who wait for a disk wait for each other.
SWITCH_S = 0.0005


@dataclass(frozen=True)
class Orders:
    """What the parent asks for."""

    pipe: int
    root: str
    capacity: int
    ram: int
    step: int
    seed: int
    seed_of_keys: int
    chains: int
    chain_blocks: int
    block_bytes: int
    clears: bool

    @property
    def universe(self) -> Universe:
        return Universe(self.seed_of_keys, self.chains, self.chain_blocks, self.block_bytes)


class Child:
    """One store and the threads that use it."""

    def __init__(self, orders: Orders, asked: dict[int, bool]) -> None:
        self.orders = orders
        self.universe = orders.universe
        self.calls = itertools.count(1)
        self.stop = threading.Event()
        self.asked = asked
        ssd = keystow.Ssd(orders.root, orders.capacity, on_mismatch="reset")
        self.store = keystow.Store(
            block_bytes=orders.block_bytes, ram=orders.ram, ssd=ssd, put_wait_s=30
        )
        self.polled_ns = time.monotonic_ns()

    def tell(self, kind: Kind, call: int, *items: int, text: str = "") -> None:
        send(self.orders.pipe, kind, call, *items, text=text)

    def piece(self, rng: random.Random) -> tuple[int, int]:
        """Draw a run of keys: mostly from the head of a chain, sometimes out of its middle."""
        length = self.universe.chain_blocks
        first = 0 if rng.random() < 0.7 else rng.randrange(length)
        count = length - first if rng.random() < 0.5 else rng.randint(1, length - first)
        return rng.randrange(self.universe.chains) * length + first, count

    def put(self, thread: int, rng: random.Random) -> None:
        for number in itertools.count(1):
            if self.stop.is_set():
                return
            first, count = self.piece(rng)
            short = rng.randint(1, 255) if rng.random() < 0.15 else 0
            version = version_of(self.orders.step, thread, number, short)
            blocks = self.universe.blocks(first, count, version)
            call = next(self.calls)
            self.tell(Kind.PUT_BEGIN, call, version, first, count)
            stored = self.store.put(
                self.universe.run(first, count),
                blocks,
                parent=self.universe.parent(first),
                chained=rng.random() > 0.03,
            )
            self.tell(Kind.PUT_END, call, stored)

    def get(self, rng: random.Random) -> None:
        while not self.stop.is_set():
            first, count = self.piece(rng)
            numbers = np.arange(first, first + count)
            keys, out = self.universe.run(first, count), self.universe.out(count)
            call = next(self.calls)
            how = rng.randrange(4)
            self.tell(Kind.GET_BEGIN, call, first, count)
            if how == 0:
                there = np.array(self.store.get_each(keys, out))
            elif how == 1:
                with self.store.lease(keys) as lease:
                    for at, view in enumerate(lease):
                        out[at, : len(view)] = view
                    there = np.arange(count) < len(lease)
                    view = None  # it would keep the pins
            else:
                there = np.arange(count) < self.store.get(keys, out)
            versions = np.full(count, MISS, np.uint64)
            versions[there] = self.universe.versions(numbers[there], out[there])
            for at in np.flatnonzero(versions == WRONG):
                text = self.universe.evidence(first + int(at), out[at])
                way = ["get_each", "lease", "get", "get"][how]
                self.tell(Kind.WRONG, call, text=f"{way} of {count} from {first}: {text}")
            self.tell(Kind.GET_END, call, *versions.tolist())

    def erase(self, rng: random.Random) -> None:
        while not self.stop.wait(rng.random() * 2 * ERASE_PAUSE_S):
            call, draw = next(self.calls), rng.random()
            if self.asked[signal.SIGUSR2] or (draw < 0.02 and self.orders.clears):
                self.asked[signal.SIGUSR2] = False
                self.tell(Kind.CLEAR_BEGIN, call)
                self.tell(Kind.CLEAR_END, call, self.confirmed(self.store.clear))
            elif draw < 0.05:
                self.tell(Kind.FLUSH_BEGIN, call)
                self.tell(Kind.FLUSH_END, call, self.store.flush(timeout_s=0.2))
            else:
                first, count = self.piece(rng)
                keys, durable = self.universe.run(first, count), rng.random() < 0.7
                self.tell(Kind.REMOVE_BEGIN, call, durable, first, count)
                done = self.confirmed(lambda k=keys, d=durable: self.store.remove(k, durable=d))
                self.tell(Kind.REMOVE_END, call, done)

    def confirmed(self, erase: Callable[[], object]) -> int:
        """Whether the disk confirmed it; a disk too slow for its deadline says it did not."""
        try:
            erase()
        except keystow.SsdError:
            return 0
        return 1

    def poll(self) -> int:
        """Pass the store's events on; return how many there were."""
        began_ns = time.monotonic_ns()
        events = self.store.events()
        items = []
        for event in events:
            if event.tier == "ssd":
                number = self.universe.index[event.key]
                items.append(number * 2 + (event.kind == "removed"))
        for at in range(0, len(items), ITEMS_MAX - 1):
            some = items[at : at + ITEMS_MAX - 1]
            self.tell(Kind.EVENTS, 0, self.polled_ns, *some)
        if self.store.stats().events_dropped:
            self.tell(Kind.BLIND, 0)
        self.polled_ns = began_ns
        return len(events)

    def watch(self) -> None:
        while not self.stop.wait(POLL_S):
            self.poll()

    def run(self) -> None:
        rng = random.Random(self.orders.seed)
        seeds = [random.Random(rng.random()) for _ in range(PUTTERS + 2)]
        works = [lambda n=n: self.put(n, seeds[n]) for n in range(PUTTERS)]
        works += [lambda: self.get(seeds[-2]), lambda: self.erase(seeds[-1]), self.watch]
        threads = [threading.Thread(target=self.guarded, args=(w,), daemon=True) for w in works]
        for thread in threads:
            thread.start()
        while not self.asked[signal.SIGUSR1] and not self.asked[signal.SIGTERM]:
            time.sleep(0.01)
        self.stop.set()
        for thread in threads:
            thread.join()
        if self.asked[signal.SIGTERM]:
            self.close()
        idle = 0
        while idle < IDLE_POLLS:
            time.sleep(POLL_S)
            busy = self.poll() or self.store.stats().ssd_requests_in_flight
            idle = 0 if busy else idle + 1
        self.tell(Kind.QUIET, 0)
        while True:
            time.sleep(POLL_S)
            self.poll()

    def close(self) -> None:
        left = self.store.close(timeout_s=30).left
        stats = self.store.stats().as_dict()
        dropped = sum(int(str(stats[f"ssd_dropped_{why}"])) for why in ("refused", "waited", "off"))
        self.tell(Kind.CLOSED, 0, left, dropped)
        sys.exit(0)

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:  # noqa: BLE001 - whatever it is, the parent reports it
            fault(self.orders.pipe)


def fault(pipe: int) -> None:
    send(pipe, Kind.FAULT, 0, text=traceback.format_exc())
    os._exit(1)


def main() -> None:
    orders = Orders(**json.loads(sys.argv[1]))
    logging.getLogger("keystow").setLevel(logging.CRITICAL)  # it warns of all that was damaged
    sys.setswitchinterval(SWITCH_S)
    asked: dict[int, bool] = dict.fromkeys((signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM), False)
    for number in asked:
        signal.signal(number, lambda given, _frame: asked.update({given: True}))
    try:
        child = Child(orders, asked)
        child.tell(Kind.OPENED, 0, child.store.stats().recovered)
        child.run()
    except Exception:  # noqa: BLE001 - whatever it is, the parent reports it
        fault(orders.pipe)


if __name__ == "__main__":
    main()
