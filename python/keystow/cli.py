"""The `keystow` command: one subcommand for each thing a user knows by name.

Owns: arguments, exit statuses (0 fine, 1 the thing found a fault, 2 it could not run) and how an
error is printed. Never does the work: each subcommand's module is loaded when it is called.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from keystow import __version__
from keystow.config import parse_duration, parse_size
from keystow.errors import KeystowError
from keystow.trace import TRACES

DEMO_BLOCK_BYTES_MIN = 32
"""A block of the demo carries its 16-byte key twice."""
FINGERPRINT_DIGITS = 32
FINGERPRINT_DIGITS_MIN = 8
"""Fewer could be those of a directory that was not meant."""
EXIT_UNUSABLE = 2
EXIT_INTERRUPTED = 130


def size(text: str) -> int:
    """Return a size argument in bytes: 64KiB, 1GiB or a plain number."""
    try:
        return parse_size(text)
    except KeystowError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def demo_block(text: str) -> int:
    """Return a block size that the demo's pattern fits in."""
    block_bytes = size(text)
    if block_bytes < DEMO_BLOCK_BYTES_MIN:
        raise argparse.ArgumentTypeError(f"{text!r} is less than {DEMO_BLOCK_BYTES_MIN} bytes")
    return block_bytes


def count(text: str) -> int:
    """Return a count argument: a whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def folder(text: str) -> str:
    """Return a directory that new files can be made in."""
    if not Path(text).is_dir() or not os.access(text, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is no directory that can be written")
    return text


def duration(text: str) -> float:
    """Return the seconds of a time argument: 7d, 12h."""
    seconds = parse_duration(text, ("s", "min", "h", "d"))
    if seconds is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 7d, 12h, 30min or 90s")
    return seconds


def kept(text: str) -> tuple[str, str]:
    """Return the beginning of a fingerprint and a member, empty for all members."""
    digits, _, member = text.strip().lower().partition("/")
    member = text.strip()[len(digits) + 1 :]
    is_hex = not digits.strip("0123456789abcdef")
    if not is_hex or not FINGERPRINT_DIGITS_MIN <= len(digits) <= FINGERPRINT_DIGITS:
        least = FINGERPRINT_DIGITS_MIN
        message = f"{text!r} does not begin with {least} hex digits or more of a fingerprint"
        raise argparse.ArgumentTypeError(message)
    return digits, member


def path(text: str) -> str:
    """Return a path: any text but none."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path names nothing")
    return text


def words(text: str) -> list[str]:
    """Return a list of words: "lru,arc"."""
    return [word.strip() for word in text.split(",")]


def counts(text: str) -> list[int]:
    """Return a list of counts: "1000,2000"."""
    return [count(word) for word in words(text)]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="keystow", description="An embedded KV-cache block store for LLM inference."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    add_demo(commands)
    add_replay(commands)
    add_inspect(commands)
    add_verify(commands)
    add_gc(commands)
    add_doctor(commands)
    return top


def add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `demo`."""
    demo = commands.add_parser(
        "demo",
        help="replay a production chat trace through a real store, every loaded byte checked",
        description="Replay a production chat trace through a real store of RAM and SSD. For "
        "every request the chain is matched, the hit prefix is loaded and every byte of it "
        "checked, the missing blocks are put. Half way the process that owns the store is killed "
        "by SIGKILL; the next one finds what was on SSD and goes on. Lost are the blocks that the "
        "first had after the last request it told of and the next did not find. The exit status "
        "is 1 if a single byte is wrong.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--trace", choices=TRACES, default=TRACES[0], help="which packaged trace")
    demo.add_argument("--requests", type=count, metavar="N", help="only the first N requests")
    demo.add_argument("--ram", type=size, default="1GiB", help="memory of the store")
    demo.add_argument("--ssd", type=size, default="4GiB", help="its room on disk; 0: RAM alone")
    demo.add_argument(
        "--dir", type=folder, help="where the demo makes its directory, and removes it at the end"
    )
    demo.add_argument("--no-kill", action="store_true", help="one process from start to end")
    demo.add_argument("--block-bytes", type=demo_block, default="64KiB", help="bytes of a block")
    demo.add_argument("--policy", default="lru", help="who leaves when the memory is full")
    demo.add_argument("--json", action="store_true", help="print one JSON object, no table")


def add_replay(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `replay`."""
    replay = commands.add_parser(
        "replay",
        help="what a cache of each policy and size would have hit on your trace",
        description="Replay a trace through the store's own eviction policies, without bytes, and "
        "count what each size would have hit. A trace is a JSONL file with an object that has "
        '"hash_ids" on each line, plain or packed by xz or gzip; several files are parts of one '
        f"trace, in order; the words {' and '.join(TRACES)} are packaged traces.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    replay.add_argument("traces", nargs="+", metavar="TRACE", help="a path, or a packaged trace")
    replay.add_argument(
        "--policy", type=words, default="lru", metavar="NAME,...", help="lru, arc, fifo"
    )
    replay.add_argument(
        "--ram-blocks", type=counts, required=True, metavar="N,...", help="sizes of the cache"
    )
    replay.add_argument(
        "--textbook", action="store_true", help="any block may leave, not only ends of chains"
    )
    replay.add_argument("--strict", action="store_true", help="a malformed line is an error")
    replay.add_argument("--json", action="store_true", help="print one JSON object, no table")


def add_inspect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `inspect`."""
    command = commands.add_parser(
        "inspect",
        help="what a store's directory holds, read-only, also while it is in use",
        description="Say what each store in a directory holds. Nothing is changed and no lock is "
        "taken. The exit status is 1 if something there can't be read.",
    )
    add_directory(command)


def add_verify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `verify`."""
    command = commands.add_parser(
        "verify",
        help="read every block in a store's directory and compare its tag",
        description="Read every block of the stores in a directory and compare its tag. Nothing is "
        "changed and no lock is taken; what a running owner changes meanwhile is not called bad. "
        "The exit status is 1 if a block or a page of a table is bad or unreadable.",
    )
    add_directory(command)
    command.add_argument(
        "--bytes-per-s", type=size, metavar="SIZE", help="read at most so fast, such as 200MB"
    )


def add_gc(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `gc`."""
    command = commands.add_parser(
        "gc",
        help="list the directories of stores under a root, and remove those nobody needs",
        description="List the directories of stores under a root: fingerprint, member, size, last "
        "open, whether a store has it open. With --remove, remove those that are chosen and that "
        "no store has open, each under its own lock; a directory that holds anything else stays. "
        "What an interrupted removal has left goes too. The exit status is 1 if a directory that "
        "was to go is still there and not in use, 2 if nothing could be done.",
    )
    command.add_argument("root", metavar="ROOT", help="the directory that was given as ssd=")
    command.add_argument(
        "--keep",
        type=kept,
        action="append",
        default=[],
        metavar="FINGERPRINT[/MEMBER]",
        help="choose all but these (8 digits are enough; may be given again)",
    )
    command.add_argument(
        "--older-than",
        type=duration,
        metavar="TIME",
        help="choose only those whose last open is so long ago, such as 7d or 12h",
    )
    command.add_argument(
        "--all", action="store_true", help="where neither of the two is given: choose every one"
    )
    command.add_argument("--remove", action="store_true", help="remove what is chosen")
    command.add_argument("--json", action="store_true", help="print one JSON object, no text")


def add_directory(command: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommands that look into a directory."""
    command.add_argument(
        "path", metavar="DIR", help="what was given as ssd=, or <root>/<fingerprint>/<member>"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object, no text")


def add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `doctor`."""
    command = commands.add_parser(
        "doctor",
        help="what this machine offers and what would fall back, checked by doing it",
        description="Say what this machine offers and what would fall back, checked by doing it: "
        "memory is mapped, a file is made, written, read back and compared, a ring is asked for. "
        "Nothing is left behind. With DIR the disk is looked at too, by one unnamed file in it. "
        "Verdicts: ok; degraded (keystow works, in a lesser way); missing (keystow can't do what "
        "was asked). The exit status is 0 if all is ok, 1 if something is degraded, 2 if something "
        "is missing.",
    )
    command.add_argument(
        "path",
        nargs="?",
        type=path,
        metavar="DIR",
        help="what would be given as ssd=; it need not exist",
    )
    command.add_argument(
        "--json", action="store_true", help="print a JSON list: name, verdict, found, why, fix"
    )


def run(options: argparse.Namespace) -> int:
    """Run the chosen subcommand and return its exit status."""
    # Each command loads only what it needs.
    if options.command in ("inspect", "verify"):
        from keystow import inspect_command  # noqa: PLC0415

        chosen = {"inspect": inspect_command.run_inspect, "verify": inspect_command.run_verify}
        return chosen[options.command](options)
    if options.command == "gc":
        from keystow import gc_command  # noqa: PLC0415

        return gc_command.run(options)
    if options.command == "replay":
        from keystow import replay_command  # noqa: PLC0415

        return replay_command.run(options)
    if options.command == "doctor":
        from keystow import doctor_command  # noqa: PLC0415

        return doctor_command.run(options)
    from keystow import demo  # noqa: PLC0415

    return demo.run(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments`, the process's own if None; return the exit status."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except KeystowError as error:
        print(f"keystow {options.command}: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        print(f"keystow {options.command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away; what is still buffered must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNUSABLE
