"""How the benchmarks measure: interleaved rounds, medians, spreads, ratios within one round.

Owns: rounds and figures. Never knows what it measures. Invariant: contestants take turns in every
round, each round starting with another one, so that a slow spell of the machine hits all of them.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Work = Callable[[], float]
"""Does one round of work and returns how much it was: bytes, keys, tokens."""


@dataclass(frozen=True)
class Sample:
    """One contestant's rates (work per second), or another list of values."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value in the middle."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return min(self.values), max(self.values)


@dataclass(frozen=True)
class Figure:
    """One line of the result: what was measured, against whom, and what it has to reach."""

    name: str
    unit: str
    ours: Sample
    rival: Sample | None = None
    rival_name: str = ""
    least_ratio: float | None = None
    least: float | None = None
    most: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The median over rounds of ours over the rival's."""
        if self.rival is None:
            return None
        pairs = zip(self.ours.values, self.rival.values, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    @property
    def level(self) -> str:
        """What is asked, as text; empty if the figure is only shown."""
        if self.least_ratio is not None:
            return f"ratio >= {self.least_ratio:.2f}"
        if self.least is not None:
            return f">= {self.least:g} {self.unit}"
        return "" if self.most is None else f"< {self.most:g} {self.unit}"

    @property
    def verdict(self) -> str:
        """Return "ok", "below" or "shown"."""
        checks = []
        if self.least_ratio is not None and self.ratio is not None:
            checks.append(self.ratio >= self.least_ratio)
        if self.least is not None:
            checks.append(self.ours.median >= self.least)
        if self.most is not None:
            checks.append(self.ours.median < self.most)
        return "shown" if not checks else "ok" if all(checks) else "below"


def interleave(contestants: Mapping[str, Work], rounds: int, warm: int = 1) -> dict[str, Sample]:
    """Run `rounds` rounds after `warm` uncounted ones; return each contestant's rates."""
    names = list(contestants)
    rates: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for number in range(warm + rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                start = time.perf_counter()
                work = contestants[name]()
                seconds = time.perf_counter() - start
                if number >= warm:
                    rates[name].append(work / seconds)
    finally:
        gc.enable()
    return {name: Sample(tuple(values)) for name, values in rates.items()}


def scaled(sample: Sample, divisor: float) -> Sample:
    """The same sample in a larger unit."""
    return Sample(tuple(value / divisor for value in sample.values))


def fastest(samples: Mapping[str, Sample], among: Iterable[str]) -> str:
    """The name of the contestant with the greatest median."""
    return max(among, key=lambda name: samples[name].median)
