"""Calls that copy, or look up more than a handful of keys, let other Python threads run.

Method: the switch interval is set so high that a thread gets the interpreter only when another
lets go of it. A thread counts and lets go at every step; a call is repeated until the count has
moved during one. A loop in C that never lets go is the proof that the count stands still else.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import keystow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 4096
COUNT = 8192
PATIENCE_S = 20.0
LAYOUT = keystow.Layout.opaque("gil", block_bytes=BLOCK, block_tokens=16)


class Counter:
    """A thread that counts whenever it gets the interpreter."""

    def __init__(self) -> None:
        self.count = 0
        self.stop = False
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.stop:
            self.count += 1
            time.sleep(0)

    def moves_during(self, call: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            before = self.count
            call()
            if self.count != before:
                return True
        return False


@pytest.fixture(scope="module")
def counter() -> Iterator[Counter]:
    interval = sys.getswitchinterval()
    counter = Counter()
    counter.thread.start()
    sys.setswitchinterval(1000.0)
    yield counter
    sys.setswitchinterval(interval)
    counter.stop = True
    counter.thread.join()


@pytest.fixture(scope="module")
def calls() -> Iterator[dict[str, Callable[[], object]]]:
    tokens = np.arange(16 * COUNT)
    data = np.zeros((COUNT, BLOCK), np.uint8)
    hashes = bytes(32 * COUNT)
    with keystow.Store(LAYOUT, ram=COUNT * BLOCK) as store:
        keys = store.keys(tokens)
        store.put(keys, data)
        yield {
            "get": lambda: store.get(keys, data),
            "get_each": lambda: store.get_each(keys, data),
            "match": lambda: store.match(keys),
            "match pinned": lambda: store.match(keys, pin=True),
            "match_prefix": lambda: store.match_prefix(keys),
            "contains": lambda: store.contains(keys),
            "lease": lambda: store.lease(keys),
            "touch": lambda: store.touch(keys),
            "keys": lambda: store.keys(tokens),
            "keys_of": lambda: store.keys_of(hashes, width=32),
            "put": lambda: store.put(keys, data),
            "remove and put": lambda: (store.remove(keys), store.put(keys, data)),
            "clear and put": lambda: (store.clear(), store.put(keys, data)),
        }


def test_a_call_that_holds_the_interpreter_is_seen(counter: Counter) -> None:
    assert not counter.moves_during(lambda: sum(range(200_000)), patience_s=0.5)


@pytest.mark.parametrize(
    "verb",
    ["get", "get_each", "match", "match pinned", "match_prefix", "contains", "lease", "touch",
     "keys", "keys_of", "put", "remove and put", "clear and put"],
)  # fmt: skip
def test_other_threads_run(
    counter: Counter, calls: dict[str, Callable[[], object]], verb: str
) -> None:
    assert counter.moves_during(calls[verb])


def test_closing_under_calls_in_progress_ends_them_cleanly() -> None:
    store = keystow.Store(LAYOUT, ram=256 * BLOCK)
    keys = store.keys(np.arange(16 * 256))
    data = np.random.default_rng(3).integers(0, 256, (256, BLOCK), np.uint8)
    store.put(keys, data)
    outcomes = []

    def read() -> None:
        out = np.zeros_like(data)
        try:
            while True:
                got = store.get(keys, out)
                assert (out[:got] == data[:got]).all()
        except keystow.StoreClosedError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    store.close()
    for thread in threads:
        thread.join(30)
    assert outcomes == ["KS-CLO-001"] * 4
