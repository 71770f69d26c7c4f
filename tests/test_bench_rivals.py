"""The disks beside ours in the benchmarks: what counts as their work, and who is left out and why.

Method: rivals are small scripts that answer orders as the real ones do; nothing is built or
installed. The store is a real one. No time is asserted.
"""

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
# argv: directory, block_bytes, ram, disk, batch, round_bytes.
ANSWERS = """
import sys
block, round_bytes = int(sys.argv[2]), int(sys.argv[6])
open(sys.argv[1] + "/file", "w").close()
for line in sys.stdin:
    lost = {LOST}.get(line.strip(), 0)
    print('{"bytes": %d, "lost": %d}' % (round_bytes - lost * block, lost), flush=True)
"""
FAILS = """
import sys
for line in sys.stdin:
    if line.strip() == {WHEN!r}:
        sys.exit("no room at all")
    print('{{"bytes": 1048576, "lost": 0}}', flush=True)
"""
BLOCK = 64 << 10


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benches")
    import ssd_rivals  # noqa: PLC0415 - a script's folder is on the path only here

    return ssd_rivals


def script(folder: Path, name: str, text: str) -> list[str]:
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return [sys.executable, str(path)]


def answers(folder: Path, name: str, lost: dict[str, int]) -> list[str]:
    return script(folder, name, ANSWERS.replace("{LOST}", repr(lost)))


def test_each_rival_has_a_row_a_direction_and_its_losses_are_told(
    rivals: ModuleType, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # Three rounds, one of them warm, of 256 blocks each.
    found = {
        "whole": answers(tmp_path, "whole", {}),
        "lossy": answers(tmp_path, "lossy", {"put": 5, "get": 256}),
    }
    rows = list(rivals.one_size(rivals.QUICK, BLOCK, home, found))
    assert [row.name for row in rows] == [
        f"ssd {verb} 64 KiB, by {name}"
        for verbs in (("write-behind",), ("get", "lease"))
        for name in found
        for verb in verbs
    ]
    assert [row.rival_name for row in rows] == [
        "whole",
        "lossy, 15 of 768 blocks not by its disk",
        *["whole"] * 2,
        *["lossy, 768 of 768 blocks not by its disk"] * 2,
    ]
    assert rows[1].rival.median > 0
    assert rows[0].ratio > 0
    assert rows[4].rival is None, "what did not come from the disk is no work"
    assert list(home.iterdir()) == []


def test_a_rival_that_cannot_begin_is_left_out_with_its_reason(
    rivals: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = {
        "ill": script(tmp_path, "ill", FAILS.format(WHEN="fill")),
        "whole": answers(tmp_path, "whole", {}),
    }
    rows = list(rivals.one_size(rivals.QUICK, BLOCK, home, found))
    assert {row.rival_name for row in rows} == {"whole"}
    assert "no ill: fill: status 1, no room at all" in capsys.readouterr().err
    assert list(home.iterdir()) == []


def test_one_that_ends_in_the_contest_ends_it(rivals: ModuleType, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = {"ill": script(tmp_path, "ill", FAILS.format(WHEN="put"))}
    with pytest.raises(rivals.LeftOutError, match="put: status 1, no room at all"):
        list(rivals.one_size(rivals.QUICK, BLOCK, home, found))
    assert list(home.iterdir()) == []


def test_a_rival_that_never_answers_is_ended(
    rivals: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "ORDER_TIMEOUT_S", 0.5)
    waits = script(tmp_path, "waits", "import time\ntime.sleep(60)\n")
    rival = rivals.Rival("waits", waits, tmp_path, rivals.QUICK, BLOCK)
    with pytest.raises(rivals.LeftOutError, match="fill: status -9"):
        rival.order("fill")


def test_what_is_not_there_is_said(
    rivals: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rivals, "FOYER", tmp_path / "none")
    monkeypatch.setattr(rivals, "LMCACHE", tmp_path / "none")
    assert list(rivals.figures(quick=True, directory=tmp_path)) == []
    told = capsys.readouterr().err
    assert "foyer is left out: a quick run builds no rivals" in told
    assert "lmcache is left out: a quick run installs no rivals" in told
    with pytest.raises(rivals.LeftOutError, match=r"python.* -c: ValueError: why"):
        rivals.run([sys.executable, "-c", "raise ValueError('why')"], 60)
    with pytest.raises(rivals.LeftOutError, match="No such file"):
        rivals.run([tmp_path / "none"], 60)
