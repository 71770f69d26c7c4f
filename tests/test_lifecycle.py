"""A store's memory belongs to one process and lives as long as anybody can reach it.

Method: forks at rest, under load and while memory is faulted in, whose children try every verb and
then die in different ways; the resident memory of this process around close and release.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import keystow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_BYTES = 4096
LAYOUT = keystow.Layout.opaque("life", block_bytes=BLOCK_BYTES, block_tokens=1)
CHILD_S = 30


@pytest.fixture
def store() -> Iterator[keystow.Store]:
    with keystow.Store(LAYOUT, ram=16 * BLOCK_BYTES) as store:
        yield store


def rows(keys: keystow.Keys) -> bytes:
    return b"".join(bytes(key) * (BLOCK_BYTES // 16) for key in keys)


def in_child(work: Callable[[], object]) -> object:
    """Run `work` in a forked child; return what it returned, or raise what went wrong there."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads, on purpose
        pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_S)
        try:
            answer = pickle.dumps((work(), None))
        except BaseException:  # noqa: BLE001 - whatever it is, the parent reports it
            answer = pickle.dumps((None, traceback.format_exc()))
        os.write(write_end, answer)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status}"
    result, error = pickle.loads(answer)  # noqa: S301 - our own child
    if error is not None:
        pytest.fail(error)
    return result


def codes_of_all_verbs(store: keystow.Store, keys: keystow.Keys) -> dict[str, str]:
    """Call every verb; return the code of what it raised by its name."""
    out = bytearray(len(keys) * BLOCK_BYTES)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: store.put(keys, out),
        "get": lambda: store.get(keys, out),
        "get_each": lambda: store.get_each(keys, out),
        "match": lambda: store.match(keys),
        "pin": lambda: store.match(keys, pin=True),
        "match_prefix": lambda: store.match_prefix(keys),
        "contains": lambda: store.contains(keys),
        "lease": lambda: store.lease(keys),
        "touch": lambda: store.touch(keys),
        "remove": lambda: store.remove(keys),
        "clear": store.clear,
        "events": store.events,
        "enter": store.__enter__,
        "validate": store._validate,
    }
    codes = {}
    for name, call in calls.items():
        try:
            call()
        except keystow.StoreClosedError as error:
            codes[name] = error.code if error.hint else "no hint"
        else:
            codes[name] = "none"
    return codes


def test_a_forked_child_is_refused_and_disturbs_nothing(store: keystow.Store) -> None:
    keys = store.keys(range(8))
    store.put(keys, rows(keys))
    lease = store.lease(keys[:4])
    before = store.stats().as_dict() | {"lock_holds": 0}

    def child() -> object:
        codes = codes_of_all_verbs(store, keys)
        for use in (lambda: lease[0], lambda: list(lease)):
            with pytest.raises(keystow.StoreClosedError, match="KS-CLO-002"):
                use()
        lease.release()
        state = store.stats().state
        text = repr(store)
        closed = store.close()
        with keystow.Store(LAYOUT, ram=16 * BLOCK_BYTES) as own:
            assert own.put(keys, rows(keys)) == own.match_prefix(keys) == 8
            own._validate()
        return set(codes.values()), state, text, (closed.written, closed.left)

    codes, state, text, closed = in_child(child)
    assert codes == {"KS-CLO-002"}
    assert state == "closed"
    assert text.endswith("closed)")
    assert closed == (0, 0)
    assert store._validate()["frames_pinned"] == 4, "the child's release was not ours"
    assert store.stats().as_dict() | {"lock_holds": 0} == before
    assert b"".join(lease) == rows(keys[:4])
    out = bytearray(8 * BLOCK_BYTES)
    assert store.get(keys, out) == 8
    assert out == rows(keys)
    lease.release()


def test_a_child_of_multiprocessing_ends_cleanly(store: keystow.Store) -> None:
    keys = store.keys(range(8))
    store.put(keys, rows(keys))
    context = multiprocessing.get_context("fork")

    def work(answers: multiprocessing.SimpleQueue[object]) -> None:
        answers.put(codes_of_all_verbs(store, keys))

    answers = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = context.Process(target=work, args=(answers,))
        child.start()
    assert set(answers.get().values()) == {"KS-CLO-002"}
    child.join(CHILD_S)
    assert child.exitcode == 0
    assert store.match_prefix(keys) == 8


def test_a_child_that_finalises_its_interpreter_leaves_the_parent_whole() -> None:
    """Its copies of store, lease and views are dropped one by one, and must touch nothing."""
    script = """
import os, sys, warnings
import keystow
warnings.simplefilter("ignore", DeprecationWarning)
store = keystow.Store(block_bytes=4096, ram=64 << 20)
keys = store.keys_of([bytes([i]) for i in range(1, 9)])
store.put(keys, b"x" * 8 * 4096)
lease = store.lease(keys)
view = lease[3]
pinned = store.match(keys, pin=True)
children = []
for order in (["store", "lease", "view", "pinned"], ["view", "pinned", "lease", "store"], []):
    children.append(os.fork())
    if children[-1] == 0:
        for name in order:
            del globals()[name]
        sys.exit(0)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
assert bytes(view) == b"x" * 4096
assert store._validate()["frames_pinned"] == 8
assert store.get(keys, bytearray(8 * 4096)) == 8
print("whole")
"""
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, timeout=CHILD_S, check=False)
    assert (done.stdout, done.returncode) == ("whole\n", 0), done.stderr


def test_a_fork_under_load_hangs_nobody(store: keystow.Store) -> None:
    """Locks may be held by threads that the child does not have."""
    keys = store.keys(range(32))
    stop = threading.Event()

    def churn(seed: int) -> None:
        out = bytearray(8 * BLOCK_BYTES)
        step = 0
        while not stop.is_set():
            step += 1
            part = keys[(seed + step) % 24 :][:8]
            store.put(part, rows(part))
            n = store.get(part, out)
            assert out[: n * BLOCK_BYTES] == rows(part[:n])
            store.lease(part).release()
            store.stats()

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in (0, 7)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(12):
            codes = in_child(lambda: (codes_of_all_verbs(store, keys), store.stats().state))
            assert set(codes[0].values()) == {"KS-CLO-002"}
            assert codes[1] == "closed"
    finally:
        stop.set()
        for thread in threads:
            thread.join(CHILD_S)
    assert store._validate()["pins"] == 0


def test_a_fork_while_memory_is_faulted_in() -> None:
    store = keystow.Store(LAYOUT, ram="512MiB")
    keys = store.keys(range(4))
    store.put(keys, rows(keys))
    assert set(in_child(lambda: codes_of_all_verbs(store, keys)).values()) == {"KS-CLO-002"}
    deadline = time.monotonic() + 60
    while store.stats().prefault_bytes < 512 << 20:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert store.match_prefix(keys) == 4
    store.close()


# ---- memory ----


def resident_bytes() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


def test_the_memory_goes_with_the_store_or_the_last_view_of_a_lease() -> None:
    size, slack = 256 << 20, 64 << 20
    before = resident_bytes()
    store = keystow.Store(LAYOUT, ram=size, prefault="now")
    assert store.stats().prefault_bytes == size
    assert resident_bytes() - before > size - slack
    store.close()
    assert resident_bytes() - before < slack, "without a lease, close gives it back"

    store = keystow.Store(LAYOUT, ram=size, prefault="now")
    keys = store.keys(range(3))
    store.put(keys, rows(keys))
    lease = store.lease(keys)
    view = lease[1]
    store.close()
    del store
    assert resident_bytes() - before > size - slack, "a lease outlives close"
    assert bytes(lease[2]) == rows(keys[2:])
    lease.release()
    assert bytes(view) == rows(keys[1:2])
    del view, lease
    assert resident_bytes() - before < slack


def test_a_with_block_closes_also_when_it_is_left_by_an_error() -> None:
    message = "of the caller"
    with (
        pytest.raises(ZeroDivisionError, match=message),
        keystow.Store(LAYOUT, ram="1MiB") as store,
    ):
        raise ZeroDivisionError(message)
    assert store.closed
    with pytest.raises(keystow.StoreClosedError, match="KS-CLO-001"), store:
        pass


def test_a_store_that_is_forgotten_is_closed() -> None:
    before = resident_bytes()
    for _ in range(8):
        store = keystow.Store(LAYOUT, ram="128MiB", prefault="now")
        store.put(store.keys(range(2)), bytes(2 * BLOCK_BYTES))
        del store
    assert resident_bytes() - before < 128 << 20


def test_the_text_of_a_store_tells_its_state() -> None:
    store = keystow.Store(LAYOUT, ram="8MiB", deterministic=True)
    assert repr(store) == "Store(0.0 of 8.0 MiB in RAM, 0 blocks, no gets yet, lru, open)"
    keys = store.keys(range(1536))
    store.put(keys, bytes(1536 * BLOCK_BYTES))
    store.get(keys[-1:], bytearray(BLOCK_BYTES))
    store.get(store.keys([5]), bytearray(BLOCK_BYTES))
    text = "Store(6.0 of 8.0 MiB in RAM, 1,536 blocks, hits 50.0 %, lru, "
    assert repr(store) == text + "open)"
    store.close()
    assert repr(store).endswith(", lru, closed)")
