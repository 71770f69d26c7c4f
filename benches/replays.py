"""`keystow.replay` over the packaged traces: loaded once, and from lists of ids each time.

Method: both traces, six capacities each (0.1 % to 50 % of the different blocks), chains=True; one
replay a turn, one thread. A figure is the median over capacities and rounds of the blocks asked for
a second. The hits of every replay are compared with the numbers that the tests know. From Python
the trace is a list of lists of ints, and its conversion is timed with the replay.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keystow
from keystow.trace import TRACES, packaged
from timing import Figure, Sample, Work, interleave, scaled

EXPECTED = Path(__file__).resolve().parent.parent / "tests" / "data" / "hits_chains.json"
POLICIES = ("lru", "arc")
FROM_PYTHON = "from lists"
LEAST_MILLION_ACCESSES = 20.0
QUICK_REQUESTS = 200


def serve(
    trace: keystow.Trace | list[list[int]], policy: str, ram_blocks: int, hits: int | None
) -> float:
    """Replay once; return the blocks asked for."""
    result = keystow.replay(trace, policy, ram_blocks=ram_blocks)
    if hits is not None and result.prefix_hits != hits:
        raise AssertionError(f"{policy}, {ram_blocks}: {result.prefix_hits} hits, not {hits}")
    return float(result.refs)


def contestants(
    known: dict[str, Any], requests: list[list[int]], *, quick: bool
) -> dict[str, Work]:
    """Every policy at every capacity over the loaded trace; lists at the middle capacity."""
    loaded = keystow.Trace(requests)
    works: dict[str, Work] = {}
    for policy in POLICIES:
        hits = [None] * len(known["ram_blocks"]) if quick else known[policy]["prefix"]
        for ram_blocks, want in zip(known["ram_blocks"], hits, strict=True):
            works[f"{policy} {ram_blocks}"] = partial(serve, loaded, policy, ram_blocks, want)
    works[FROM_PYTHON] = partial(serve, requests, "lru", known["ram_blocks"][3], None)
    return works


def figures(*, quick: bool) -> Iterator[Figure]:
    """Both policies on each trace, then the same trace from lists."""
    expected = json.loads(EXPECTED.read_text())
    for name in TRACES:
        known = expected[name]
        requests = [request.blocks for request in packaged(name)]
        works = contestants(known, requests[:QUICK_REQUESTS] if quick else requests, quick=quick)
        samples = interleave(works, 2 if quick else 9)
        for policy in POLICIES:
            sizes = {size: samples[f"{policy} {size}"] for size in known["ram_blocks"]}
            slowest = min(sizes, key=lambda size: sizes[size].median)
            values = tuple(value for sample in sizes.values() for value in sample.values)
            yield Figure(
                f"replay {name}, {policy}",
                "M accesses/s",
                scaled(Sample(values), 1e6),
                least=LEAST_MILLION_ACCESSES,
                note=f"{sizes[slowest].median / 1e6:.1f} at {slowest:,} blocks, the slowest",
            )
        yield Figure(
            f"replay {name}, {FROM_PYTHON}", "M accesses/s", scaled(samples[FROM_PYTHON], 1e6)
        )
