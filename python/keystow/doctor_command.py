"""``keystow doctor``: what was found, for people or as JSON.

Owns: how it looks and the exit status. Never looks at the machine: ``keystow.doctor`` does.

JSON: a list, one object for each line, in the order of the text: ``{"name": str, "verdict": "ok" |
"degraded" | "missing", "found": str, "why": str, "fix": str}``. Names and verdicts keep their
meaning; the sentences are for people; later versions may add lines and fields.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from keystow.doctor import examine, exit_status
from keystow.doctor_finding import OK, SEE_DIRECTORY

if TYPE_CHECKING:
    import argparse
    from typing import TextIO

    from keystow.doctor import Finding

VERDICTS = ("ok", "degraded", "missing")
COLUMNS = 100
"""Where the output has no width of its own."""
COLUMNS_NARROW = 72
"""Below this the sentences stand under the name, not beside it."""
COLUMNS_LEAST = 30


def wrapped(text: str, first: str, rest: str, columns: int) -> str:
    """Return a sentence in lines that fit; a path is never cut."""
    return textwrap.fill(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def described(findings: list[Finding], columns: int) -> str:
    """Return the report for people: what is well in one line, the rest with reason and way out."""
    columns = max(columns, COLUMNS_LEAST)
    names = max(len(finding.name) for finding in findings)
    verdicts = max(map(len, VERDICTS))
    narrow = columns < COLUMNS_NARROW
    indent = "  " if narrow else " " * (names + verdicts + 4)
    lines = []
    for finding in findings:
        head = f"{finding.verdict:<{verdicts}}  {finding.name:<{names}}  "
        if narrow:
            lines += [head.rstrip(), wrapped(finding.found, indent, indent, columns)]
        else:
            lines.append(wrapped(finding.found, head, indent, columns))
        if finding.verdict != OK and finding.fix != SEE_DIRECTORY:
            lines.append(wrapped(f"why: {finding.why}", indent, f"{indent}     ", columns))
            lines.append(wrapped(f"fix: {finding.fix}", indent, f"{indent}     ", columns))
    counts = [sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS]
    said = ", ".join(f"{count} {verdict}" for count, verdict in zip(counts, VERDICTS, strict=True))
    return "\n".join([*lines, "", f"{said}."])


def run(options: argparse.Namespace, *, out: TextIO | None = None) -> int:
    """Look at the machine, and at a directory if one is given, and print what was found."""
    findings = examine(options.path)
    if options.json:
        text = json.dumps([asdict(finding) for finding in findings])
    else:
        text = described(findings, shutil.get_terminal_size((COLUMNS, 24)).columns)
    (out or sys.stdout).write(f"{text}\n")
    return exit_status(findings)
