"""Check the built wheel: exactly one, small, and nothing of the builder's machine inside.

Owns: the three conditions a wheel must meet before anyone gets it. Never builds.
"""

import sys
import zipfile
from pathlib import Path

SIZE_LIMIT_BYTES = 5_000_000


def faults(folder: Path) -> list[str]:
    """Return what is wrong with the wheels in `folder`, one sentence each."""
    wheels = sorted(folder.glob("keystow-*.whl"))
    if len(wheels) != 1:
        return [f"expected exactly one wheel in {folder}, found {len(wheels)}"]
    wheel = wheels[0]
    found = []
    if "manylinux_2_28" not in wheel.name or "abi3" not in wheel.name:
        found.append(f"{wheel.name} is no abi3 manylinux_2_28 wheel")
    size_bytes = wheel.stat().st_size
    if size_bytes >= SIZE_LIMIT_BYTES:
        found.append(f"{wheel.name} has {size_bytes:,} bytes, the limit is {SIZE_LIMIT_BYTES:,}")
    paths = [f"{path}/".encode() for path in (Path.home(), Path.cwd()) if len(path.parts) > 1]
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            found += [f"{name} contains the path {p.decode()}" for p in paths if p in content]
    if not found:
        print(f"== wheel: {wheel} ({size_bytes / 1e6:.2f} MB), no builder's path inside")
    return found


def main() -> int:
    """Print each fault; the exit status is 1 if there is one."""
    found = faults(Path(sys.argv[1]))
    for fault in found:
        print(f"check_wheel: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
