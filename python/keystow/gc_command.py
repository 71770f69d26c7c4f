"""``keystow gc``: the directories under a root, and the removal of those nobody needs.

Owns: the choice, and how it looks. Never removes a file: ``keystow.directories`` does. Invariants:
nothing goes without ``--remove`` and a choice; what is in use or holds other files stays; the exit
status is 1 exactly if something that was to go stays for another reason than being in use.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from keystow.directories import directories, remove
from keystow.errors import ConfigError, KeystowError, StoreLockedError
from keystow.inspect_command import bytes_text, time_text

if TYPE_CHECKING:
    import argparse
    from typing import TextIO

    from keystow.directories import Directory

GONE = "KS-CFG-301"
"""Somebody else has removed it meanwhile."""


@dataclass(slots=True)
class Fate:
    """A directory and what becomes of it.

    ``fate``: "kept" (not chosen), "in use", "to go" (without --remove), "removed", or "stays":
    chosen, free, and for the reason in ``error`` not removed.
    """

    directory: Directory
    fate: str
    error: dict[str, str] | None = None


def is_chosen(directory: Directory, options: argparse.Namespace, now_s: float) -> bool:
    """Whether the options choose it; what a removal has left is always chosen."""
    if directory.half_removed:
        return True
    for digits, member in options.keep:
        if directory.fingerprint.startswith(digits) and member in ("", directory.member):
            return False
    if options.older_than is None:
        return True
    opened_s = directory.last_opened_unix_s
    # What nobody knows the age of is not old.
    return opened_s is not None and now_s - opened_s > options.older_than


def decided(directory: Directory, options: argparse.Namespace, now_s: float) -> Fate:
    """What would become of a directory."""
    if not is_chosen(directory, options, now_s):
        return Fate(directory, "kept")
    if directory.locked:
        return Fate(directory, "in use")
    if directory.error is not None:
        return Fate(directory, "stays", directory.error)
    return Fate(directory, "to go")


def carried_out(root: str, fate: Fate) -> Fate:
    """Remove what is to go, and say what became of it."""
    if fate.fate != "to go":
        return fate
    try:
        remove(root, fate.directory)
    except StoreLockedError:
        return Fate(fate.directory, "in use")
    except KeystowError as error:
        if error.code != GONE:
            told = {"code": error.code, "message": error.message, "hint": error.hint}
            return Fate(fate.directory, "stays", told)
    return Fate(fate.directory, "removed")


def described(fate: Fate) -> list[str]:
    """Return what there is to say of a directory, a line each."""
    it = fate.directory
    state = "half removed" if it.half_removed else f"opened {time_text(it.last_opened_unix_s)}"
    # Whoever wants to keep it copies the first word.
    head = f"{it.fingerprint}/{it.member}"
    lines = [f"{head}  {bytes_text(it.bytes):>10}  {state}  {fate.fate}"]
    if fate.error is not None:
        error = fate.error
        lines += [f"  [{error['code']}]: {error['message']} Hint: {error['hint']}"]
    return lines


def as_dict(fate: Fate) -> dict[str, object]:
    """Return a directory as JSON has it."""
    return asdict(fate.directory) | {"fate": fate.fate, "error": fate.error}


def total(fates: list[Fate], fate: str) -> int:
    """Return the bytes of all directories of one fate."""
    return sum(it.directory.bytes for it in fates if it.fate == fate)


def run(options: argparse.Namespace, *, out: TextIO | None = None) -> int:
    """List the directories, remove what is to go, and return the exit status."""
    out = out or sys.stdout
    has_choice = bool(options.keep or options.older_than or options.all)
    if options.remove and not has_choice:
        raise ConfigError(
            "--remove without a choice would remove every directory that no store has open.",
            code="KS-CFG-220",
            hint="say which: --keep FINGERPRINT, --older-than 7d, or --all.",
        )
    now_s = time.time()
    fates = []
    for directory in directories(options.root):
        fate = decided(directory, options, now_s)
        if options.remove:
            fate = carried_out(options.root, fate)
        fates.append(fate)
        if not options.json:
            out.write("".join(f"{line}\n" for line in described(fate)))
            out.flush()
    going, gone = total(fates, "to go"), total(fates, "removed")
    if options.json:
        told = [as_dict(fate) for fate in fates]
        found = {"root": options.root, "directories": told, "bytes_removed": gone}
        out.write(f"{json.dumps(found | {'bytes_to_go': going})}\n")
    elif not fates:
        out.write(f"{options.root} holds no store.\n")
    elif options.remove:
        out.write(f"removed {bytes_text(gone)}\n")
    else:
        command = "--remove" if has_choice else "--remove --all"
        out.write(f"{command} would remove {bytes_text(going)}\n")
    unmatched(options, fates)
    return int(options.remove and any(fate.fate == "stays" for fate in fates))


def unmatched(options: argparse.Namespace, fates: list[Fate]) -> None:
    """Say on the standard error which --keep has kept nothing: it may be misspelt."""
    for digits, member in options.keep:
        if not any(
            it.directory.fingerprint.startswith(digits) and member in ("", it.directory.member)
            for it in fates
        ):
            name = f"{digits}/{member}" if member else digits
            sys.stderr.write(f"keystow gc: --keep {name}: no such directory\n")
