"""What the package costs before it does anything: import time and wheel size.

Method: the import is timed inside fresh interpreters, each started for this alone; the wheel is the
one in target/wheels, built by `make wheel` if there is none.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from timing import Figure, Sample

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / "target" / "wheels"
MOST_IMPORT_MS = 50.0
MOST_WHEEL_MB = 5.0
TIMED_IMPORT = """
import time
start = time.perf_counter()
import keystow
print(time.perf_counter() - start)
"""


def import_ms() -> float:
    """Milliseconds that `import keystow` takes in a fresh interpreter."""
    command = [sys.executable, "-I", "-c", TIMED_IMPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) * 1e3


def wheel_mb(*, build: bool) -> float | None:
    """The size of the newest wheel; None if there is none and none is to be built."""
    if build and not list(WHEELS.glob("keystow-*.whl")):
        subprocess.run(["make", "wheel"], cwd=ROOT, check=True, stdout=sys.stderr)  # noqa: S607
    wheels = sorted(WHEELS.glob("keystow-*.whl"), key=lambda path: path.stat().st_mtime)
    return wheels[-1].stat().st_size / 1e6 if wheels else None


def figures(*, quick: bool) -> Iterator[Figure]:
    """Import time, then wheel size."""
    times = tuple(import_ms() for _ in range(3 if quick else 21))
    yield Figure("import keystow", "ms", Sample(times), most=MOST_IMPORT_MS)
    size = wheel_mb(build=not quick)
    if size is None:
        yield Figure("wheel", "MB", Sample((float("nan"),)), note="none built (make wheel)")
    else:
        yield Figure("wheel", "MB", Sample((size,)), most=MOST_WHEEL_MB)
