"""What befalls a directory between two owners: rot, torn, swapped and lost files.

Owns: the kinds of damage. Never does: know the format beyond the names of the files; damage that
only a reader of the format would find (records with a right checksum) is the core's own tests'.
Invariant: everything is drawn from the given generator.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

SECTOR = 512
PAGE = 4096
SECTORS_MAX = 200
FLIPS_MAX = 400
WEIGHTS = {"slots": 6, "table": 5, "SUPER": 1, "layout": 1, "LOCK": 1}


class Damage:
    """Damages one directory, given what else lies about."""

    def __init__(self, files: Path, donor: Path, old: Path, rng: random.Random) -> None:
        self.files, self.donor, self.old, self.rng = files, donor, old, rng
        # Of which files another store's were put in place, by their part; whether old ones were.
        self.foreign: set[str] = set()
        self.turned_back = False

    def strike(self) -> str:
        """Do one kind of damage; return what was done."""
        kinds: list[tuple[int, Callable[[], str]]] = [
            (4, self.flip),
            (3, self.zero),
            (2, self.noise),
            (4, self.swap_sectors),
            (3, self.copy_sectors),
            (2, self.truncate),
            (1, self.extend),
            (2, self.delete),
            (1, self.swap_files),
            (2, self.take_foreign),
            (3, self.restore_old),
        ]
        weights = [weight for weight, _ in kinds]
        return self.rng.choices([kind for _, kind in kinds], weights)[0]()

    def snapshot(self) -> None:
        """Keep copies of the files, to be restored some cycles later."""
        self.old.mkdir(exist_ok=True)
        for path in self.files.iterdir():
            shutil.copyfile(path, self.old / path.name)

    def file(self, *, empty: bool = False) -> Path:
        """Draw a file; mostly those whose damage leaves something to be found."""
        there = sorted(p for p in self.files.iterdir() if empty or p.stat().st_size)
        weights = [WEIGHTS.get(path.name.split(".")[0], 1) for path in there]
        return self.rng.choices(there, weights)[0]

    def places(self, size: int, grain: int, most: int) -> list[int]:
        """Offsets of some aligned pieces: neighbours or scattered."""
        pieces = max(1, size // grain)
        count = min(pieces, round(most ** self.rng.random()))
        if self.rng.random() < 0.5:
            first = self.rng.randrange(pieces - count + 1)
            return [grain * n for n in range(first, first + count)]
        return [grain * n for n in self.rng.sample(range(pieces), count)]

    def grain(self) -> int:
        return self.rng.choice([SECTOR, PAGE])

    def flip(self) -> str:
        path = self.file()
        count = round(FLIPS_MAX ** self.rng.random())
        with path.open("r+b") as file:
            for _ in range(count):
                at = self.rng.randrange(path.stat().st_size)
                file.seek(at)
                byte = file.read(1)[0] ^ 1 << self.rng.randrange(8)
                file.seek(at)
                file.write(bytes([byte]))
        return f"{count} bits flipped in {path.name}"

    def _overwrite(self, what: str, fill: Callable[[int], bytes]) -> str:
        path, grain = self.file(), self.grain()
        places = self.places(path.stat().st_size, grain, SECTORS_MAX)
        with path.open("r+b") as file:
            for at in places:
                file.seek(at)
                file.write(fill(min(grain, path.stat().st_size - at)))
        return f"{len(places)} x {grain} bytes {what} in {path.name}"

    def zero(self) -> str:
        return self._overwrite("zeroed", bytes)

    def noise(self) -> str:
        return self._overwrite("of noise", self.rng.randbytes)

    def _exchange(self, *, both: bool) -> str:
        grain = self.grain()
        source = self.file()
        target = source if self.rng.random() < 0.7 else self.file()
        done = 0
        with source.open("r+b") as left, target.open("r+b") as right:
            lefts = self.places(source.stat().st_size, grain, SECTORS_MAX)
            rights = self.places(target.stat().st_size, grain, SECTORS_MAX)
            for at, to in zip(lefts, rights, strict=False):
                left.seek(at)
                right.seek(to)
                one, other = left.read(grain), right.read(grain)
                right.seek(to)
                right.write(one[: len(other)])
                right.flush()
                if both:
                    left.seek(at)
                    left.write(other[: len(one)])
                    left.flush()
                done += 1
        what = "swapped" if both else "copied"
        return f"{done} x {grain} bytes {what} from {source.name} to {target.name}"

    def swap_sectors(self) -> str:
        return self._exchange(both=True)

    def copy_sectors(self) -> str:
        return self._exchange(both=False)

    def truncate(self) -> str:
        path = self.file()
        size = self.rng.choice([0, 1, path.stat().st_size // 2, path.stat().st_size - 1])
        if self.rng.random() < 0.5:
            size = self.rng.randrange(path.stat().st_size)
        with path.open("r+b") as file:
            file.truncate(size)
        return f"{path.name} cut to {size} bytes"

    def extend(self) -> str:
        path = self.file(empty=True)
        with path.open("ab") as file:
            count = file.write(self.rng.randbytes(self.rng.randrange(1, 3 * PAGE)))
        return f"{count} bytes appended to {path.name}"

    def delete(self) -> str:
        path = self.file(empty=True)
        path.unlink()
        return f"{path.name} deleted"

    def swap_files(self) -> str:
        one, other = self.file(empty=True), self.file(empty=True)
        spare = self.files.parent / "spare"
        one.rename(spare)
        if other != one:
            other.rename(one)
        spare.rename(other)
        return f"{one.name} and {other.name} exchanged"

    def take_foreign(self) -> str:
        path = self.rng.choice(sorted(self.donor.iterdir()))
        shutil.copyfile(path, self.files / path.name)
        self.foreign.add(path.name)
        return f"{path.name} of another store put in its place"

    def restore_old(self) -> str:
        if not self.old.is_dir():
            return self.flip()
        paths = sorted(self.old.iterdir())
        some = self.rng.sample(paths, self.rng.randint(1, len(paths)))
        for path in some:
            shutil.copyfile(path, self.files / path.name)
        self.turned_back = True
        return f"old {', '.join(path.name for path in some)} restored"
