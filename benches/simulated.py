"""How fast the whole store runs in one thread over a simulated disk, every answer checked.

Method: the release build of the core's histories (`cargo test`, `histories_fresh`): random puts,
gets, removes, crashes, each compared with a model. The seeds are the same every time; the rate is
read from what the test prints, and a history that fails is an error. Once held to one core, where
the test runs one thread; once with a thread a core, which share one address space and wait for each
other where stores are mapped and unmapped.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import rust
from timing import Figure, Sample, scaled

TEST = "histories_fresh"
RATE = re.compile(r"operations, ([\d,]+) a second")
SEEDS_APART = 1_000_000
LEAST_THOUSAND = 200.0


@contextmanager
def one_core() -> Iterator[None]:
    """Programs that are started meanwhile have one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def command(*, quick: bool) -> list[str]:
    """The histories by cargo."""
    profile = [] if quick else ["--release"]
    return ["test", "--quiet", "--locked", *profile, "-p", "keystow-core", "--lib", TEST]


def rate(first_seed: int, *, quick: bool) -> float:
    """Operations a second of a core's time over one second of histories."""
    seeds = {"KEYSTOW_SIM_SECONDS": "1", "KEYSTOW_SIM_FIRST": str(first_seed)}
    told = rust.run([*command(quick=quick), "--", "--nocapture"], seeds)
    found = RATE.search(told)
    if found is None:
        raise RuntimeError(f"{TEST} printed no rate:\n{told}")
    return float(found[1].replace(",", ""))


def figures(*, quick: bool) -> Iterator[Figure]:
    """Checked operations a second a core."""
    if not rust.found():
        return
    rust.run([*command(quick=quick), "--no-run"])
    alone, together = [], []
    for turn in range(1 if quick else 5):
        seed = 1 + turn * SEEDS_APART
        with one_core():
            alone.append(rate(seed, quick=quick))
        together.append(rate(seed, quick=quick))
    name, unit = "simulated store, checked, one core", "k operations/s"
    yield Figure(name, unit, scaled(Sample(tuple(alone)), 1e3), least=LEAST_THOUSAND)
    note = f"{os.cpu_count()} threads in one process"
    rates = scaled(Sample(tuple(together)), 1e3)
    yield Figure("simulated store, checked, each of all cores", unit, rates, note=note)
