"""The campaign: real files, real processes, real SIGKILL, and damage in between.

Method: ``cd tests && python -m crash.campaign --cycles 50``. A directory lives for some cycles. In
each an owner works at full speed and is killed at a random instant, sometimes while it opens. In
half of the cycles the directory is then damaged. It is reopened, every key ever used is looked for
and what is there is read: right bytes or a miss always, and after a kill alone no promised block
may be missing. The I/O engines take turns. ``--seed`` repeats the draws, not the instants, of a
campaign; a failing cycle names its own seed and keeps its directory.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from crash.lives import FAULTS_SHOWN, Counts, Life
from crash.truth import SETTLED_S
from crash.universe import Universe
from crash.wire import Kind
from engines import VARIABLE, refused

CYCLES = 50
MIB = 1 << 20
# (block bytes, capacity): what a cycle can write and read in its time.
SIZES = [
    (4 << 10, 24 * MIB),
    (16 << 10, 64 * MIB),
    (64 << 10, 96 * MIB),
    (256 << 10, 128 * MIB),
]
_TARGET = Path(__file__).resolve().parent.parent.parent / "target" / "crash"


def say(text: str) -> None:
    """Print one line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def new_life(folder: Path, seed: int, counts: Counts) -> Life:
    """Draw a directory and its keys."""
    rng = random.Random(seed)
    block_bytes, capacity = rng.choice(SIZES)
    roomy = rng.random() < 0.6
    chain_blocks = rng.choice([1, 4, 16, 48])
    share = rng.uniform(0.3, 0.6) if roomy else rng.uniform(1.2, 2.5)
    chains = max(2, int(capacity * share) // (chain_blocks * block_bytes))
    universe = Universe(seed, chains, chain_blocks, block_bytes)
    ram = max(16 * block_bytes, capacity // rng.choice([4, 8, 16]))
    folder.mkdir()
    return Life(folder, universe, capacity, ram, roomy, rng, counts)


def draw_after(rng: random.Random) -> Kind | None:
    """Draw when to kill: at no particular instant, or right after an erasure has returned."""
    return rng.choice([None, None, Kind.REMOVE_END, Kind.CLEAR_END])


def calm_cycle(life: Life) -> None:
    """Kill, or close, and nothing else: what was promised is there."""
    rng = life.rng
    if rng.random() < 0.2:
        life.close_at_work(rng.uniform(0.2, 1.5))
    elif life.roomy and rng.random() < 0.8:
        life.kill_at_work(SETTLED_S + rng.uniform(0.1, 1.2), after=draw_after(rng))
    else:
        life.kill_at_work(rng.uniform(0.1, 1.2), settle_s=SETTLED_S + rng.uniform(0.05, 0.2))
    if rng.random() < 0.3:
        life.kill_at_open(rng.uniform(0.1, 0.6))


def damaged_cycle(life: Life) -> None:
    """Kill and damage: right bytes or a miss, and the directory opens."""
    rng = life.rng
    life.kill_at_work(rng.uniform(0.05, 1.0), after=draw_after(rng))
    life.strike(rng.choice([1, 1, 2, 4]))
    if rng.random() < 0.15:
        life.resize(int(life.capacity * rng.uniform(0.5, 1.4)))
    if rng.random() < 0.3:
        life.kill_at_open(rng.uniform(0.1, 0.6))


def run_cycle(life: Life, number: int, counts: Counts) -> list[str]:
    """Run one cycle; return what is wrong."""
    damaged = number % 2 == 1
    engine = list(counts.by_engine)[number // 2 % len(counts.by_engine)]
    os.environ[VARIABLE] = engine
    counts.by_engine[engine] += 1
    life.log.clear()
    life.log.append(engine)
    try:
        (damaged_cycle if damaged else calm_cycle)(life)
        life.verify(damaged=damaged)
        if life.rng.random() < 0.3:
            life.reopen_again()
        if life.rng.random() < 0.3:
            life.snapshot()
    except Exception:  # noqa: BLE001 - whatever it is, it is a failure of this cycle
        life.truth.faults.append(traceback.format_exc())
    counts.cycles += 1
    counts.damaged += damaged
    return life.truth.faults


def engines(asked: str | None) -> dict[str, int]:
    """Return the engines to run over, none of them run yet; say which do not work here."""
    found = {}
    for name in [asked] if asked else ["uring", "pool"]:
        why = refused(name)
        if why is None:
            found[name] = 0
        else:
            say(f"crash campaign: not over {name}: {why}")
    return found


def run(cycles: int, seed: int, base: Path, counts: Counts, *, verbose: bool, stop: bool) -> bool:
    """Run so many cycles; return whether all was well."""
    draws, began_s = random.Random(seed), time.monotonic()
    life, life_ends, failed = None, 0, 0
    for number in range(cycles):
        if life is None:
            life_seed = draws.randrange(1 << 32)
            life_ends = number + draws.randint(3, 8)
            life = new_life(base / f"life-{life_seed}", life_seed, counts)
        faults = run_cycle(life, number, counts)
        if verbose or faults:
            where = f"cycle {number}, life {life_seed}, {life.universe}, ram {life.ram}"
            say(f"-- {where}: {'; '.join(life.log)}")
        for fault in faults[:FAULTS_SHOWN]:
            say(f"   FAILED: {fault}")
        if faults:
            say(f"   {len(faults)} faults; kept {life.folder}; repeat with --seed {seed}")
            failed += 1
        if faults or number + 1 >= life_ends or number + 1 == cycles:
            counts.read_live += life.truth.checked
            counts.wrong += life.truth.wrong
            if not faults:
                life.remove()
            life = None
        if failed and stop:
            break
    say(summary(counts, failed, time.monotonic() - began_s))
    return failed == 0


def summary(counts: Counts, failed: int, spent_s: float) -> str:
    """Say in one line what was done and found."""
    return (
        f"crash campaign: {counts.cycles} cycles in {spent_s:.0f} s ("
        f"{', '.join(f'{n} on {name}' for name, n in counts.by_engine.items())}; "
        f"{counts.damaged} with damage, "
        f"{counts.kills} kills, {counts.kills_at_open} of them during open, {counts.resets} "
        f"resets): {counts.verified_bytes:,} bytes verified, {counts.read_live:,} blocks checked "
        f"in live reads, {counts.wrong} wrong blocks, {counts.missing} of {counts.promised:,} "
        f"promised-warm blocks missing, {failed} cycles failed"
    )


def main() -> int:
    """Parse the options, run, clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=CYCLES)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--dir", type=Path, default=_TARGET, help="on the disk to be tested")
    parser.add_argument("--verbose", action="store_true", help="say what each cycle did")
    parser.add_argument("--stop", action="store_true", help="end with the first failed cycle")
    parser.add_argument("--engine", choices=["uring", "pool"], help="default: by turns")
    options = parser.parse_args()
    logging.getLogger("keystow").setLevel(logging.CRITICAL)  # it warns of all that we damage
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    options.dir.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="campaign-", dir=options.dir))
    say(f"crash campaign: {options.cycles} cycles, --seed {seed}, in {base}")
    counts = Counts(by_engine=engines(options.engine))
    if not counts.by_engine:
        return 1
    good = run(options.cycles, seed, base, counts, verbose=options.verbose, stop=options.stop)
    if good:
        shutil.rmtree(base)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
