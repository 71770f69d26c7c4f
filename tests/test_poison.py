"""After a panic under its lock a store misses and stores nothing, and says so.

Method: a fault injected by `_panic()`, at rest and while threads work; then every verb.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import keystow

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BYTES = 4096
LAYOUT = keystow.Layout.opaque("poison", block_bytes=BLOCK_BYTES, block_tokens=1)


@pytest.fixture
def store() -> Iterator[keystow.Store]:
    store = keystow.Store(LAYOUT, ram=16 * BLOCK_BYTES)
    yield store
    store.close()


def test_every_verb_misses(store: keystow.Store, capfd: pytest.CaptureFixture[str]) -> None:
    keys = store.keys(range(4))
    data = bytes(range(256)) * 64
    assert store.put(keys, data) == 4
    lease = store.lease(keys[:2])
    assert store.stats().state == "open"
    store._panic()
    assert "panicked" in capfd.readouterr().err

    out = bytearray(len(data))
    stats = store.stats()
    assert stats.state == "poisoned"
    assert store.put(store.keys(range(10, 12)), bytes(2 * BLOCK_BYTES)) == 0
    assert store.put(keys, data) == 0
    assert store.get(keys, out) == 0
    assert store.get_each(keys, out) == [False] * 4
    assert int(store.match(keys)) == store.match_prefix(keys) == 0
    assert store.contains(keys) == [False] * 4
    assert store.touch(keys) == 0
    assert len(store.lease(keys)) == 0
    with pytest.raises(keystow.CapacityError):
        store.lease(keys, min_blocks=1)
    store.remove(keys)
    store.clear()
    assert store.events() == []
    with pytest.raises(AssertionError, match="poisoned"):
        store._validate()

    after = store.stats()
    assert after.put_short - stats.put_short == 6
    assert after.misses - stats.misses == 16
    assert (after.hits, after.puts) == (stats.hits, stats.puts)
    assert repr(store).endswith("poisoned)")
    assert b"".join(lease) == data[: 2 * BLOCK_BYTES], "a lease goes on reading its own blocks"
    lease.release()
    store.close()
    assert store.stats().state == "closed"


def test_threads_at_work_meet_misses_not_errors(
    store: keystow.Store, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = store.keys(range(40))
    started = threading.Barrier(4)
    poisoned = threading.Event()
    last: list[tuple[int, int]] = []

    def work(seed: int) -> None:
        part = keys[seed * 8 :][:8]
        out = bytearray(8 * BLOCK_BYTES)
        data = bytes([seed + 1]) * len(out)
        started.wait(30)
        for step in range(100_000):
            over = poisoned.is_set()
            put, got = store.put(part, data), store.get(part, out)
            assert out[: got * BLOCK_BYTES] == data[: got * BLOCK_BYTES]
            if over and step > 10:
                last.append((put, got))
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    started.wait(30)
    store._panic()
    poisoned.set()
    for thread in threads:
        thread.join(60)
    assert last == [(0, 0)] * 3
    assert "panicked" in capfd.readouterr().err


def test_a_new_store_is_not_affected(
    store: keystow.Store, capfd: pytest.CaptureFixture[str]
) -> None:
    store._panic()
    with keystow.Store(LAYOUT, ram=16 * BLOCK_BYTES) as other:
        keys = other.keys(range(4))
        assert other.put(keys, bytes(4 * BLOCK_BYTES)) == other.match_prefix(keys) == 4
        assert other.stats().state == "open"
    assert "panicked" in capfd.readouterr().err
