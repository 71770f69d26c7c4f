"""`reclaim="unlocked"`: room for an open from directories that no store has open.

Method: a child in a mount namespace of its own has a file system of a few MiB for a root, so that
no other program's files matter and nothing is left behind. It says what it saw as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import keystow
from disk import LAYOUT, files_below, open_store

ALONE = ["unshare", "-rm"]
BEGIN = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import json, logging, subprocess
from disk import *
root = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", sys.argv[2], "tmpfs", root], check=True)
lines = []
class Tell(logging.Handler):
    def emit(self, record): lines.append(record.getMessage())
logging.getLogger("keystow").addHandler(Tell())

def layout(name): return keystow.Layout.opaque(name, block_bytes=BLOCK_BYTES, block_tokens=1)
def folder(name): return member_folder(root, layout=layout(name))

def opened(name, **options):
    return open_store(root, layout=layout(name), **{{"capacity": "2MiB", **options}})

def made(name, unix_s):
    with opened(name) as store:
        put(store, range(5))
    os.utime(folder(name) / "LOCK", (unix_s, unix_s))

def told(**facts):
    left = [name for name in "abcd" if folder(name).exists()]
    print(json.dumps({{"left": "".join(left), "lines": lines, **facts}}))

def refused(name, **options):
    try:
        opened(name, **options)
    except keystow.KeystowError as error:
        return [error.code, str(error), error.context]
"""


@pytest.fixture(scope="module")
def alone() -> None:
    """Skip where the system lets nobody mount anything."""
    command = [*ALONE, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare (util-linux) to make a small file system with")
    if done.returncode:
        pytest.skip(f"no small file system without privileges here: {done.stderr.strip()}")


def seen(tmp_path: Path, script: str, size: str = "size=5m") -> dict[str, Any]:
    """What a script saw on a file system of its own."""
    command = [*ALONE, sys.executable, "-c", BEGIN + script, str(tmp_path), size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


THREE = """
made("b", 2000)
made("a", 3000)
"""


@pytest.mark.usefixtures("alone")
def test_the_least_recently_opened_goes_and_no_more(tmp_path: Path) -> None:
    script = """
with opened("c", reclaim="unlocked") as store:
    put(store, range(9))
    store.flush()
    notes = store.stats().fallbacks
    told(found=len(there(store, range(9))), notes=notes)
"""
    found = seen(tmp_path, THREE + script)
    assert (found["left"], found["found"]) == ("ac", 9)
    [line] = [line for line in found["lines"] if "reclaimed" in line]
    assert line in found["notes"]
    assert "last opened 1970-01-01 00:33 UTC" in line
    gone = keystow.Layout.opaque("b", block_bytes=4096, block_tokens=1).fingerprint.hex()
    assert f"{gone}/0 for room" in line


@pytest.mark.usefixtures("alone")
def test_never_is_the_default(tmp_path: Path) -> None:
    script = """
told(errors=[refused("c"), refused("c", reclaim="never")])
"""
    found = seen(tmp_path, THREE + script)
    assert found["left"] == "ab"
    for code, text, _ in found["errors"]:
        assert code == "KS-SSD-002"
        assert "eclaimed" not in text
        assert "keystow gc" in text


@pytest.mark.usefixtures("alone")
def test_what_fits_takes_nothing(tmp_path: Path) -> None:
    script = """
with opened("c", reclaim="unlocked"), opened("a", reclaim="unlocked"):
    told()
"""
    found = seen(tmp_path, THREE + script, "size=8m")
    assert found["left"] == "abc"
    assert not [line for line in found["lines"] if "reclaimed" in line]


@pytest.mark.usefixtures("alone")
def test_what_is_open_stays(tmp_path: Path) -> None:
    script = """
with opened("b") as b, child("store = open_store(Path(sys.argv[1]), capacity='1MiB', member='x')\\n"
        "say('open')\\nsys.stdin.read()\\n", root) as other:
    assert said(other) == "open"
    error = refused("c", reclaim="unlocked", capacity="4MiB")
    with opened("c", capacity="1700KiB", reclaim="unlocked"):
        told(error=error, b=put(b, range(20)), x=member_folder(root, "x").exists())
"""
    found = seen(tmp_path, THREE + script, "size=6m")
    code, text, context = found["error"]
    assert code == "KS-SSD-002"
    assert "Nothing was reclaimed: 1 unlocked" in text
    assert "reclaimed" not in context
    assert (found["left"], found["b"], found["x"]) == ("bc", 20, True)


@pytest.mark.usefixtures("alone")
def test_a_store_that_grows_keeps_what_it_has(tmp_path: Path) -> None:
    script = """
with opened("b", capacity="4MiB", reclaim="unlocked") as store:
    told(found=len(there(store, range(5))))
"""
    found = seen(tmp_path, THREE + script)
    assert (found["left"], found["found"]) == ("b", 5)


@pytest.mark.usefixtures("alone")
def test_foreign_files_stay_and_are_said(tmp_path: Path) -> None:
    script = """
(folder("b") / "notes.txt").write_text("mine")
with opened("c", reclaim="unlocked"):
    told(notes=(folder("b") / "notes.txt").read_text())
"""
    found = seen(tmp_path, THREE + script)
    assert (found["left"], found["notes"]) == ("bc", "mine")
    assert any("not reclaimed" in line and "notes.txt" in line for line in found["lines"])


@pytest.mark.usefixtures("alone")
def test_the_rest_of_a_removal_goes_first(tmp_path: Path) -> None:
    script = """
gone = folder("a")
rest = gone.with_name(f"0~{gone.stat().st_ino:x}")
gone.rename(rest)
with opened("c", reclaim="unlocked"):
    told(rest=rest.exists())
"""
    found = seen(tmp_path, THREE + script)
    assert (found["left"], found["rest"]) == ("bc", False)
    assert any("the rest of a removal" in line for line in found["lines"])


@pytest.mark.usefixtures("alone")
def test_no_room_for_a_directory_even(tmp_path: Path) -> None:
    """Inodes run out before bytes do: the open fails before it knows what it needs."""
    script = """
made("a", 2000)
error = refused("c")
with opened("c", reclaim="unlocked") as store:
    told(error=error, put=put(store, range(5)))
"""
    # The root, and of each store two directories and five files.
    for inodes in (8, 9, 10, 11):
        found = seen(tmp_path, script, f"size=9m,nr_inodes={inodes}")
        assert found["error"][0] == "KS-SSD-001"
        assert (found["left"], found["put"]) == ("c", 5)
        assert len([line for line in found["lines"] if "reclaimed" in line]) == 1


def test_a_device_says_it(tmp_path: Path) -> None:
    assert keystow.Ssd("/nvme/kv", "1GiB").reclaim == "never"
    assert keystow.Ssd("/nvme/kv", "1GiB", reclaim="unlocked").reclaim == "unlocked"
    # More than every directory on the disk could give: nothing goes, and it is said.
    with open_store(tmp_path, layout=LAYOUT):
        pass
    other = keystow.Layout.opaque("other", block_bytes=4096)
    before = files_below(tmp_path)
    with pytest.raises(keystow.SsdError, match="Nothing was reclaimed: 1 unlocked") as caught:
        open_store(tmp_path, layout=other, capacity=1 << 60, reclaim="unlocked")
    assert caught.value.code == "KS-SSD-002"
    assert files_below(tmp_path) == before
