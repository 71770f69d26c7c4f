"""The house keeps its own rules: import arrows, lengths, names, SAFETY comments, no big blobs.

Method: every rule of `house_rules.py` walks the files that git tracks or would track. Each rule
also gets a small tree that violates it and one that does not, so that no rule can fall asleep.
"""

import subprocess
from pathlib import Path

import pytest

from house_rules import CORE, PACKAGE, RULES, Fault, faults

ROOT = Path(__file__).resolve().parent.parent
BLOB_BYTES_MAX = 1 << 20
TEXT_SUFFIXES = {".rs", ".py", ".pyi", ".toml", ".md"}

# (rule, path) -> why it may stay. An entry whose violation is gone fails, so the list shrinks.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def files() -> list[str]:
    """Return the files that git tracks or would track; without git, all but build outputs."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
    else:
        built = {".venv", "target", "__pycache__"}
        names = [
            str(path.relative_to(ROOT))
            for path in ROOT.rglob("*")
            if path.is_file() and not built & set(path.relative_to(ROOT).parts)
        ]
    return sorted({name for name in names if (ROOT / name).is_file()})


def unexcused(found: list[Fault], exceptions: dict[tuple[str, str], str]) -> list[str]:
    """Return the faults without an exception, then the exceptions without a fault or a reason."""
    seen = {(fault.rule, fault.path) for fault in found}
    left = [str(fault) for fault in found if (fault.rule, fault.path) not in exceptions]
    left += [f"stale exception: {key} is no violation any more" for key in exceptions.keys() - seen]
    left += [f"exception without a reason: {key}" for key, why in exceptions.items() if not why]
    return left


def too_big(sizes: dict[str, int]) -> list[str]:
    """Return the files that no repository should carry."""
    return [f"{name}: {size:,} bytes" for name, size in sizes.items() if size > BLOB_BYTES_MAX]


def test_the_house_keeps_its_rules() -> None:
    tree = {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in files()
        if Path(name).suffix in TEXT_SUFFIXES
    }
    assert any(name.startswith(CORE) for name in tree), "the walk found no core: it checks nothing"
    left = unexcused(faults(tree), EXCEPTIONS)
    assert not left, "\n" + "\n".join(left)


def test_no_big_blob() -> None:
    big = too_big({name: (ROOT / name).stat().st_size for name in files()})
    assert not big, "\n".join(big)


def test_big_blob_is_seen() -> None:
    assert too_big({"a": BLOB_BYTES_MAX + 1, "b": BLOB_BYTES_MAX}) == ["a: 1,048,577 bytes"]


def test_stale_exception_fails() -> None:
    fault = Fault("columns", "a.rs", 1, "too wide")
    assert unexcused([fault], {}) == ["a.rs:1: [columns] too wide"]
    assert unexcused([fault], {("columns", "a.rs"): "a table"}) == []
    assert "stale" in unexcused([], {("columns", "a.rs"): "a table"})[0]
    assert "without a reason" in unexcused([fault], {("columns", "a.rs"): ""})[0]


LIB = f"{CORE}lib.rs"
BINS = f"{CORE}directory/bins.rs"
LRU = f"{CORE}policy/lru.rs"
KEY = f"{CORE}key.rs"
PUT = f"{CORE}store/put.rs"
BINDING = "rust/py/src/lib.rs"
STORE_PY = f"{PACKAGE}store.py"
LONG_RUST = "fn long(a: [u8; 4]) -> u8 {\n" + "    step();\n" * 69 + "}\n"
LONG_PYTHON = 'def long() -> None:\n    """Do."""\n' + "    step()\n" * 69

# rule, path, a text that violates it, a text that does not.
CASES = [
    ("file_length", KEY, "//! a\n" * 501, "//! a\n" * 500),
    ("file_length", "tests/test_x.py", "a = 1\n" * 501, "a = 1\n" * 500),
    ("file_length", "README.md", "a\n" * 151, "a\n" * 150),
    ("columns", KEY, "//" + "x" * 99, "//" + "x" * 98),
    ("columns", "tests/test_x.py", "#" + "x" * 100, "#" + "x" * 99),
    ("function_length", KEY, LONG_RUST, LONG_RUST.replace("    step();\n", "", 1)),
    ("function_length", KEY, f"#[cfg(test)]\nmod tests {{\n{LONG_RUST}}}\n", "fn f(a: [u8; 9]);\n"),
    ("function_length", "tests/test_x.py", LONG_PYTHON, LONG_PYTHON.replace("    step()\n", "", 1)),
    ("banned_name", f"{CORE}utils.rs", "//! a", None),
    ("banned_name", f"{CORE}common/mod.rs", "//! a", None),
    ("banned_name", f"{PACKAGE}helpers.py", '"""A."""', None),
    ("banned_name", KEY, "mod helpers { }", "// mod helpers { }"),
    ("module_doc", KEY, "use a;\n//! late", "//! early\nuse a;"),
    ("module_doc", STORE_PY, "import os\n", '"""Owns."""\n'),
    ("leftovers", KEY, "fn a() { todo!() }", 'fn a() { say("todo!()") }'),
    ("unsafe_place", KEY, "fn a() { unsafe { b() } }", '// unsafe\nconst A: &str = "unsafe";'),
    ("unsafe_place", "rust/core/tests/a.rs", "unsafe {}", "//! unsafe"),
    ("unsafe_place", LRU, "unsafe impl Send for A {}", "fn not_unsafe_at_all() {}"),
    ("safety_comment", BINS, "// SAFETY: far\n\n\n\nunsafe {}", "// SAFETY: near\n\n\nunsafe {}"),
    (
        "safety_comment",
        BINDING,
        "unsafe fn a() {}",
        "/// # Safety\n/// b\n/// c\n/// d\nunsafe fn a() {}",
    ),
    (
        "safety_comment",
        BINS,
        "/// # Safety\nunsafe impl Send for A {}",
        'r#"unsafe " "#; \'"\'; b()',
    ),
    ("core_arrows", BINS, "use crate::policy::Policy;", "use crate::key::Key; use crate::sync::A;"),
    (
        "core_arrows",
        BINS,
        "use crate::{key::{A, B}, store::C};",
        "use crate::{key::{A, store}, units};",
    ),
    ("core_arrows", BINS, "use super::super::stats::Stats;", "use super::header::Header;"),
    (
        "core_arrows",
        BINS,
        "mod tests { use super::super::super::arena; }",
        "mod t { use super::super::run; }",
    ),
    ("core_arrows", KEY, "use super::store;", "mod tests { use super::Key; }"),
    (
        "core_arrows",
        LRU,
        "use crate::key::Key;",
        "use crate::units::Slot; use crate::policy::order;",
    ),
    ("core_arrows", LRU, "use crate::error::Error;", "// use crate::error::Error;"),
    ("core_arrows", f"{CORE}event.rs", "use crate::stats::A;", "use crate::key::Key;"),
    (
        "core_arrows",
        f"{CORE}arena/rows.rs",
        "fn a(_: crate::key::Key) {}",
        "fn a(_: crate::error::Error) {}",
    ),
    (
        "core_arrows",
        PUT,
        "use crate::Store;",
        "use crate::{arena, directory, event, key, policy, stats};",
    ),
    ("core_arrows", f"{CORE}attic.rs", "//! a", None),
    ("core_is_pure", KEY, "use pyo3::prelude::*;", "// unlike pyo3"),
    ("core_is_pure", "rust/core/Cargo.toml", 'pyo3 = "0.30"', 'blake3 = "1"'),
    (
        "binding_arrows",
        BINDING,
        "use keystow_core::directory::Bins;",
        "use keystow_core::store::{Store, Rows};",
    ),
    (
        "binding_arrows",
        BINDING,
        "use keystow_core::{key::Key, arena};",
        "use keystow_core::{error, units};",
    ),
    ("rust_reached", KEY, "//! a", None),
    ("python_weight", STORE_PY, "import torch\n", "def a():\n    import torch\n"),
    (
        "python_weight",
        STORE_PY,
        "if True:\n    from numpy import array\n",
        "import os, keystow._core\n",
    ),
    (
        "python_weight",
        STORE_PY,
        "class A:\n    import numpy as np\n",
        "async def a():\n    import numpy\n",
    ),
    (
        "python_weight",
        STORE_PY,
        "def a():\n    import pandas\n",
        "if typing.TYPE_CHECKING:\n    import torch\n",
    ),
    ("python_arrows", STORE_PY, "from keystow import cli\n", "from keystow import _core, errors\n"),
    ("python_arrows", STORE_PY, "def a():\n    from .demo import run\n", "from .errors import E\n"),
    ("python_arrows", f"{PACKAGE}demo.py", "from keystow._core import S\n", "import keystow\n"),
    ("python_arrows", f"{PACKAGE}cli.py", "from . import _core\n", "from . import demo\n"),
]
REST = {
    "python": dict.fromkeys((f"{PACKAGE}{m}.py" for m in ("cli", "demo", "errors")), '"""A."""'),
}


@pytest.mark.parametrize(
    ("rule", "path", "bad", "good"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)]
)
def test_rule_bites(rule: str, path: str, bad: str, good: str | None) -> None:
    rest = REST["python"] if path.startswith(PACKAGE) else {}
    assert rule in {fault.rule for fault in faults({**rest, path: bad}) if fault.path == path}
    if good is not None:
        quiet = {fault.rule for fault in faults({**rest, path: good}) if fault.path == path}
        assert rule not in quiet


def test_reached_files_are_not_reported() -> None:
    rust = {
        LIB: "//! a\npub mod key;\nmod directory;\n",
        KEY: "//! a\n#[cfg(test)]\nmod tests;\n",
        f"{CORE}key/tests.rs": "//! a\n",
        f"{CORE}directory/mod.rs": "//! a\nmod bins;\n",
        BINS: "//! a\n",
        "rust/core/tests/model.rs": "//! a\nmod support;\n",
        "rust/core/tests/support/mod.rs": "//! a\n",
    }
    assert faults(rust) == []
    python = {
        f"{PACKAGE}__init__.py": '"""A."""\nfrom keystow.store import Store\n',
        STORE_PY: '"""A."""\nfrom . import errors\n',
        f"{PACKAGE}errors.py": '"""A."""\n',
    }
    assert faults(python) == []
    lonely = faults({**python, f"{PACKAGE}attic.py": '"""A."""\n'})
    assert [(fault.rule, fault.path) for fault in lonely] == [
        ("python_reached", f"{PACKAGE}attic.py")
    ]


def test_every_rule_has_a_case() -> None:
    shown = {case[0] for case in CASES} | {"python_reached"}
    assert {rule.__name__ for rule in RULES} == shown
