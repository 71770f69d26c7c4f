"""Importing keystow is cheap and has no side effects.

Method: a fresh interpreter imports it and reports its modules, threads and time. The time is
shown, not asserted: this machine is shared.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import keystow

PROBE = """
import sys, time
start = time.perf_counter()
import keystow
took_ms = 1e3 * (time.perf_counter() - start)
import json, os
heavy = [name for name in ("torch", "numpy", "ml_dtypes", "asyncio") if name in sys.modules]
threads = len(os.listdir("/proc/self/task"))
print(json.dumps({"heavy": heavy, "threads": threads, "took_ms": took_ms}))
"""


def probe() -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_import_starts_nothing_and_loads_nothing_heavy() -> None:
    probe()
    told = probe()
    assert told["heavy"] == []
    assert told["threads"] == 1
    print(f"\nimport keystow: {told['took_ms']:.1f} ms")  # noqa: T201 - shown with -s


def test_the_surface_is_small_and_complete() -> None:
    assert len(keystow.__all__) <= 30
    assert all(hasattr(keystow, name) for name in keystow.__all__)
    assert keystow.__version__.count(".") == 2
    public = {name for name in vars(keystow) if not name.startswith("_")}
    modules = {name for name in public if type(getattr(keystow, name)).__name__ == "module"}
    assert public - modules == set(keystow.__all__) - {"__version__"}


def test_everything_public_is_documented() -> None:
    for name in set(keystow.__all__) - {"__version__"}:
        thing = getattr(keystow, name)
        assert thing.__doc__, name
        if not isinstance(thing, type):
            continue
        for verb, value in vars(thing).items():
            # Fields of a dataclass stand in its own docstring.
            field = inspect.ismemberdescriptor(value)
            assert verb.startswith("_") or field or value.__doc__, f"{name}.{verb}"
    for verb, value in vars(keystow.Store.__mro__[1]).items():
        assert verb.startswith("__") or value.__doc__, f"Store.{verb}"
