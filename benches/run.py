"""Measure keystow against the machine's own limits: `make bench`, or this file with options.

Owns: the list of benchmarks and the printed table. The method stands in README.md beside this file;
each benchmark is a file of its own.
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import copies
import evict
import footprint
import hashing
import lookup
import reopen
import replays
import simulated
import ssd
import ssd_calls
import ssd_rivals
from timing import Figure

BENCHMARKS: dict[str, Callable[..., Iterator[Figure]]] = {
    "copies": copies.figures,
    "lookup": lookup.figures,
    "evict": evict.figures,
    "replays": replays.figures,
    "hashing": hashing.figures,
    "footprint": footprint.figures,
    "ssd": ssd.figures,
    "ssd_calls": ssd_calls.figures,
    "ssd_rivals": ssd_rivals.figures,
    "reopen": reopen.figures,
    "simulated": simulated.figures,
}
ON_DISK = {"ssd", "ssd_calls", "ssd_rivals", "reopen"}
# Needs what a quick run does not build: there only where it is asked for.
NOT_QUICK = {"ssd_rivals"}
COLUMNS = "{:<46} {:>8} {:>19} {:>8} {:>6}  {:<20} {:<6} {}"


def number(value: float | None) -> str:
    """Three digits or so; a dash for nothing."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def line(figure: Figure) -> str:
    """The figure as a row of the table."""
    low, high = (number(value) for value in figure.ours.spread)
    return COLUMNS.format(
        f"{figure.name} ({figure.unit})",
        number(figure.ours.median),
        f"{low} - {high}",
        number(figure.rival.median if figure.rival else None),
        number(figure.ratio),
        figure.level,
        figure.verdict,
        figure.rival_name or figure.note,
    ).rstrip()


def as_dict(figure: Figure) -> dict[str, object]:
    """The figure for --json."""
    low, high = figure.ours.spread
    median = figure.ours.median
    return {
        "name": figure.name,
        "unit": figure.unit,
        "median": None if math.isnan(median) else median,
        "low": None if math.isnan(low) else low,
        "high": None if math.isnan(high) else high,
        "rival": figure.rival.median if figure.rival else None,
        "rival_name": figure.rival_name,
        "ratio": figure.ratio,
        "level": figure.level,
        "verdict": figure.verdict,
        "note": figure.note,
    }


def main() -> int:
    """Run the chosen benchmarks; the status is 0 whatever they show."""
    parser = argparse.ArgumentParser(description="Measure keystow; the method is in README.md.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a test of the benchmarks")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may be repeated")
    parser.add_argument("--json", action="store_true", help="one object with all figures")
    help_dir = "for files of up to 7 GB, on a real disk; by default target/"
    parser.add_argument("--dir", type=Path, help=help_dir)
    options = parser.parse_args()
    # What a benchmark has left on disk goes with it, also when its time is up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if not options.json:
        print(COLUMNS.format("figure", "median", "spread", "rival", "ratio", "level", "", "rival"))
    shown = []
    left_out = NOT_QUICK if options.quick else set()
    for name in options.only or [name for name in BENCHMARKS if name not in left_out]:
        where = {"directory": options.dir} if name in ON_DISK else {}
        for figure in BENCHMARKS[name](quick=options.quick, **where):
            shown.append(as_dict(figure))
            if not options.json:
                print(line(figure), flush=True)
    if options.json:
        print(json.dumps({"quick": options.quick, "figures": shown}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
