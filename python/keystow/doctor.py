"""What this machine offers a store and what would fall back, checked by doing it.

Owns: which things are looked at, and in which order. Never changes anything: what a probe maps or
makes is gone when it returns. Invariant: one thing that can't be looked at does not keep the others
from being told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keystow import doctor_disk, doctor_machine, doctor_python
from keystow.doctor_finding import DEGRADED, MISSING, Finding
from keystow.errors import KeystowError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

__all__ = ["Finding", "examine", "exit_status"]


def examine(directory: str | os.PathLike[str] | None = None) -> list[Finding]:
    """Look at this machine and, where given, at a directory that would hold an SSD tier.

    The names, in order: ``directory``, ``disk``, ``direct-io``, ``fallocate`` (these four only with
    a directory), ``io-uring``, ``ram``, ``cgroup``, ``huge-pages``, ``shared-huge-pages``,
    ``memlock``, ``numa``, ``cpu``, ``buffers``, ``torch``, ``cuda``.
    """
    looks: list[tuple[str, Callable[[], Finding]]] = []
    usable = None
    if directory is not None:
        place = doctor_disk.survey(directory)
        usable = place.usable
        looks = [
            ("directory", lambda: doctor_disk.directory(place)),
            ("disk", lambda: doctor_disk.disk(place)),
            ("direct-io", lambda: doctor_disk.direct_io(place)),
            ("fallocate", lambda: doctor_disk.fallocate(place)),
        ]
    looks += [
        ("io-uring", lambda: doctor_disk.io_uring(usable)),
        ("ram", doctor_machine.ram),
        ("cgroup", doctor_machine.cgroup),
        ("huge-pages", doctor_machine.huge_pages),
        ("shared-huge-pages", doctor_machine.shared_huge_pages),
        ("memlock", doctor_machine.memlock),
        ("numa", doctor_machine.numa),
        ("cpu", doctor_machine.cpu),
        ("buffers", doctor_python.buffers),
        ("torch", doctor_python.torch),
        ("cuda", doctor_python.cuda),
    ]
    return [_look(name, look) for name, look in looks]


def exit_status(findings: list[Finding]) -> int:
    """Return 0 if all is well, 1 if something would fall back, 2 if something needed is missing."""
    verdicts = {finding.verdict for finding in findings}
    return 2 if MISSING in verdicts else int(DEGRADED in verdicts)


def _look(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except (OSError, KeystowError) as error:
        return Finding(
            name,
            DEGRADED,
            f"could not be looked at: {error}",
            "what can't be looked at may be missing.",
            "see the error; /proc and /sys have to be mounted and readable.",
        )
