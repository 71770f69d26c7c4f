"""Replay reads what people have, and says what is wrong with the rest.

Method: the same few requests as a path in every packing and as every kind of iterable give the same
result; each fault a file or an argument can have gives its error, with the place.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import signal
import sys
import threading
import time
from array import array
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keystow
from keystow import _core

REQUESTS = [[1, 2, 3], [1, 2, 4], [], [1, 2, 3], [9]]
WANT = {"requests": 5, "refs": 10, "unique": 5, "plain_hits": 5, "prefix_hits": 5, "malformed": 0}
LINES = "".join(json.dumps({"timestamp": 7, "hash_ids": ids}) + "\n" for ids in REQUESTS)


def figures(result: keystow.Replay) -> dict[str, int]:
    return {name: getattr(result, name) for name in WANT}


def written(folder: Path, content: bytes, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress], ids=["", "xz", "gz"])
@pytest.mark.parametrize("ending", [LINES, LINES.strip(), LINES.replace("\n", "\r\n") + "\n  \n"])
def test_a_path_is_read_by_content_not_by_name(pack: Any, ending: str, tmp_path: Path) -> None:
    path = written(tmp_path, pack(ending.encode()), "trace.txt")
    assert figures(keystow.replay(path, ram_blocks=5)) == WANT
    assert figures(keystow.replay(str(path), ram_blocks=5, strict=True)) == WANT


def test_a_packed_file_of_several_streams_is_read_to_its_end(tmp_path: Path) -> None:
    lines = LINES.encode()
    for pack in (lzma.compress, gzip.compress):
        path = written(tmp_path, pack(lines[:20]) + pack(lines[20:]))
        assert figures(keystow.replay(path, ram_blocks=5)) == WANT


@pytest.mark.parametrize(
    "requests",
    [
        REQUESTS,
        tuple(map(tuple, REQUESTS)),
        (iter(ids) for ids in REQUESTS),
        [np.array(ids, np.int64) for ids in REQUESTS],
        [array("Q", ids) for ids in REQUESTS],
        [[str(number) for number in ids] for ids in REQUESTS],
        [[bytes([number]) * 40 for number in ids] for ids in REQUESTS],
        [[2**127 - number for number in ids] for ids in REQUESTS],
        [[np.uint64(2**64 - number) for number in ids] for ids in REQUESTS],
        [[1, "1", b"1"], [1, "1", -1], [], [1, "1", b"1"], [True + 1]],
    ],
    ids=["list", "tuple", "generator", "numpy", "array", "text", "bytes", "big", "uint64", "mixed"],
)
def test_any_iterable_of_requests(requests: Any) -> None:
    assert figures(keystow.replay(requests, ram_blocks=5)) == WANT


def test_a_loaded_trace_is_replayed_many_times() -> None:
    trace = keystow.Trace(iter(REQUESTS))
    assert repr(trace) == "Trace(5 requests, 10 blocks, 5 different)"
    assert len(trace) == trace.requests == 5
    for policy in ("lru", "arc", "fifo"):
        for ram_blocks in (1, 2, 5):
            once = keystow.replay(REQUESTS, policy, ram_blocks=ram_blocks)
            assert keystow.replay(trace, policy, ram_blocks=ram_blocks) == once
            assert (once.policy, once.ram_blocks) == (policy, ram_blocks)


def test_parts_of_a_trace_follow_each_other(tmp_path: Path) -> None:
    lines = LINES.encode().splitlines(keepends=True)
    head = written(tmp_path, b"".join(lines[:2]) + b"[]\n", "head.jsonl")
    trace = keystow.Trace(head, REQUESTS[2:4], written(tmp_path, b"{\n" + lines[4], "tail.jsonl"))
    assert figures(keystow.replay(trace, ram_blocks=5)) == {**WANT, "malformed": 2}
    places = [(Path(source).name, line) for source, line, _ in trace.malformed_lines]
    assert places == [("head.jsonl", 3), ("tail.jsonl", 1)]


def test_an_empty_trace_is_a_result(tmp_path: Path) -> None:
    for empty in ([], written(tmp_path, b""), written(tmp_path, gzip.compress(b""))):
        result = keystow.replay(empty, ram_blocks=1)
        assert figures(result) == dict.fromkeys(WANT, 0)
        assert result.prefix_hit_ratio == 0.0


def test_the_ratio_is_of_blocks_asked_for() -> None:
    assert keystow.replay(REQUESTS, ram_blocks=5).prefix_hit_ratio == 0.5


BAD_LINES = {
    3: b"not json",
    5: b'{"hash_ids": "text"}',
    6: b'{"blocks": [1]}',
    8: b'{"hash_ids": [1.5]}',
    9: b'{"hash_ids": [1, 2}',
    10: b"\xff\xfe",
    11: b"[[1, 2]]",
    12: b'{"hash_ids": [170141183460469231731687303715884105728]}',
    13: b'{"hash_ids": null}',
    14: b'{"hash_ids": [1]} {"hash_ids": [2]}',
}


def with_bad_lines(folder: Path) -> Path:
    good = iter(LINES.encode().splitlines())
    lines = [BAD_LINES.get(number) or next(good, b"") for number in range(1, 16)]
    return written(folder, b"\n".join(lines))


def test_malformed_lines_are_skipped_counted_and_located(tmp_path: Path) -> None:
    path = with_bad_lines(tmp_path)
    result = keystow.replay(path, ram_blocks=5)
    assert figures(result) == {**WANT, "malformed": len(BAD_LINES)}
    assert [line for _, line, _ in result.malformed_lines] == list(BAD_LINES)[:8]
    assert {source for source, _, _ in result.malformed_lines} == {str(path)}
    assert all(why for _, _, why in result.malformed_lines)


def test_strict_stops_at_the_first_malformed_line(tmp_path: Path) -> None:
    path = with_bad_lines(tmp_path)
    loaded = keystow.Trace(path)
    for trace in (path, loaded):
        with pytest.raises(keystow.FormatError, match="line 3 is no request") as caught:
            keystow.replay(trace, ram_blocks=5, strict=True)
        assert (caught.value.code, caught.value.context["line"]) == ("KS-FMT-102", 3)
        assert caught.value.context["path"] == str(path)


def test_a_long_line_over_many_pieces(tmp_path: Path) -> None:
    ids = list(range(400_000))
    line = json.dumps({"hash_ids": ids}).encode()
    result = keystow.replay(written(tmp_path, line + b"\n" + line), ram_blocks=400_000)
    assert (result.requests, result.refs, result.plain_hits) == (2, 800_000, 400_000)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress], ids=["xz", "gz"])
@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_damaged_file_is_no_shorter_trace(pack: Any, fault: str, tmp_path: Path) -> None:
    content = bytearray(pack(LINES.encode() * 1000))
    if fault == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0x55
    with pytest.raises(keystow.FormatError, match="broken off or damaged") as caught:
        keystow.Trace(written(tmp_path, bytes(content)))
    assert caught.value.code == "KS-FMT-101"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ({"policy": "lur"}, "KS-CFG-204", "Did you mean 'lru'"),
        ({"policy": "LRU"}, "KS-CFG-204", "lru, arc, fifo"),
        ({"policy": None}, "KS-CFG-204", "policy=None"),
        ({"ram_blocks": 0}, "KS-CFG-210", "ram_blocks=0"),
        ({"ram_blocks": -3}, "KS-CFG-210", "ram_blocks=-3"),
        ({"ram_blocks": 1.5}, "KS-CFG-210", "ram_blocks=1.5"),
        ({"ram_blocks": "10"}, "KS-CFG-210", "ram_blocks='10'"),
        ({"ram_blocks": True}, "KS-CFG-210", "ram_blocks=True"),
        ({"ssd_blocks": 5}, "KS-CFG-213", "ssd_blocks=5"),
        ({"hints": []}, "KS-CFG-213", "hints="),
        ({"trace": 7}, "KS-CFG-211", "trace is int"),
        ({"trace": "/no/such/file"}, "KS-CFG-212", "/no/such/file"),
        ({"trace": Path("/")}, "KS-CFG-212", "can't be read"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(keystow.ConfigError) as caught:
        keystow.replay(**{"trace": REQUESTS, "ram_blocks": 5, **arguments})
    assert caught.value.code == code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("requests", "code", "says"),
    [
        ([[1], 2], "KS-KEY-109", "request 1 is int"),
        (["abc"], "KS-KEY-109", "request 0 is str"),
        ([[1], b"abc"], "KS-KEY-109", "request 1 is bytes"),
        ([bytearray(b"abc")], "KS-KEY-109", "request 0 is bytearray"),
        (b"abc", "KS-KEY-109", "request 0 is int"),
        ([[1], [2, 3.5]], "KS-KEY-110", "id 1 of request 1 is 3.5"),
        ([[None]], "KS-KEY-110", "id 0 of request 0 is None"),
        ([[2**127]], "KS-KEY-110", "128 bits"),
        ([["\ud800"]], "KS-KEY-110", "id 0 of request 0"),
    ],
)
def test_bad_requests(requests: Any, code: str, says: str) -> None:
    with pytest.raises(keystow.KeyFormatError) as caught:
        keystow.replay(requests, ram_blocks=5)
    assert caught.value.code == code
    assert says in str(caught.value)


def test_an_open_file_is_refused_before_its_lines_are_taken_for_requests(tmp_path: Path) -> None:
    with written(tmp_path, LINES.encode()).open("rb") as file:
        with pytest.raises(keystow.ConfigError, match="path") as caught:
            keystow.replay(file, ram_blocks=5)
        assert caught.value.code == "KS-CFG-211"


def test_an_error_in_the_middle_of_an_iterable_comes_through() -> None:
    def requests() -> Any:
        yield [1]
        raise LookupError("the source broke")

    with pytest.raises(LookupError, match="the source broke"):
        keystow.replay(requests(), ram_blocks=5)


def test_progress_is_told_and_may_end_the_replay() -> None:
    trace = keystow.Trace([[block % 7] for block in range(25_000)])
    told: list[int] = []
    keystow.replay(trace, ram_blocks=3, progress=told.append)
    assert told == [5_000, 10_000, 15_000, 20_000]
    for chains in (True, False):
        with pytest.raises(LookupError, match="enough"):
            keystow.replay(trace, ram_blocks=3, chains=chains, progress=end_at_10_000)


def end_at_10_000(served: int) -> None:
    assert served <= 10_000, "the replay went on after it was ended"
    if served == 10_000:
        raise LookupError("enough")


def test_an_interrupt_ends_a_replay_long_before_its_end() -> None:
    trace = keystow.Trace([[block] for block in range(1_000)] * 5_000)
    replay = partial(keystow.replay, trace, "arc", ram_blocks=999)
    for _ in range(3):
        began_s = time.monotonic()
        replay()
        whole_s = time.monotonic() - began_s
        timer = threading.Timer(whole_s / 10, signal.raise_signal, [signal.SIGINT])
        began_s = time.monotonic()
        timer.start()
        with contextlib.suppress(KeyboardInterrupt):
            replay()
            timer.join()
        if time.monotonic() - began_s < whole_s / 2:
            return
    pytest.fail(f"no replay of {whole_s:.2f} s ended before its half")


def test_other_threads_run_during_a_replay() -> None:
    trace = keystow.Trace([[block % 5_000] for block in range(100_000)])
    counts, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counts[0] += 1
            time.sleep(0)

    def counted_during_a_replay() -> bool:
        before = counts[0]
        keystow.replay(trace, "arc", ram_blocks=4_999)
        return counts[0] > before

    thread = threading.Thread(target=count)
    interval_s = sys.getswitchinterval()
    thread.start()
    # From here on a thread gets the interpreter only where another lets go of it.
    sys.setswitchinterval(1000.0)
    try:
        assert any(counted_during_a_replay() for _ in range(200))
    finally:
        sys.setswitchinterval(interval_s)
        stop.set()
        thread.join()


def test_a_trace_may_grow_while_it_is_replayed() -> None:
    trace = _core.Trace()
    for block in range(100_000):
        trace.push([block % 5_000])
    replay = partial(_core.replay, trace, "arc", 4_999, chains=True)
    want = replay()
    found = replay(progress=lambda served: trace.push([-served]))
    assert trace.requests == 100_000 + 19
    assert found == want, "it runs over the trace as it was when it began"
    assert replay() != want
