"""How fast the whole store runs in one thread over a simulated disk, every answer checked.

Method: the release build of the core's histories (`cargo test`, `histories_fresh`): random puts,
gets, removes, crashes, each compared with a model. The seeds are the same every time; the rate is
read from what the test prints, and a history that fails is an error.
"""

import re
from collections.abc import Iterator

import rust
from timing import Figure, Sample, scaled

TEST = "histories_fresh"
RATE = re.compile(r"operations, ([\d,]+) a second")
SEEDS_APART = 1_000_000
LEAST_THOUSAND = 200.0


def rate(first_seed: int, *, quick: bool) -> float:
    """Operations a second over one second of histories."""
    profile = [] if quick else ["--release"]
    command = ["test", "--quiet", "--locked", *profile, "-p", "keystow-core", "--lib", TEST]
    seeds = {"KEYSTOW_SIM_SECONDS": "1", "KEYSTOW_SIM_FIRST": str(first_seed)}
    told = rust.run([*command, "--", "--nocapture"], seeds)
    found = RATE.search(told)
    if found is None:
        raise RuntimeError(f"{TEST} printed no rate:\n{told}")
    return float(found[1].replace(",", ""))


def figures(*, quick: bool) -> Iterator[Figure]:
    """Checked operations a second a core."""
    if not rust.found():
        return
    rounds = 1 if quick else 5
    rates = Sample(tuple(rate(1 + turn * SEEDS_APART, quick=quick) for turn in range(rounds)))
    unit = "k operations/s"
    name = "simulated store, checked, one core"
    yield Figure(name, unit, scaled(rates, 1e3), least=LEAST_THOUSAND)
