"""The rules of the house: import arrows and style, as functions from a tree of texts to faults.

Owns: what a violation is. Never reads a file and never knows an exception: `test_house.py` does
both. Invariant: a rule looks at nothing but the tree it is given, so that a synthetic tree can
prove that it still bites.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

LINES_MAX = 500
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100
README_LINES_MAX = 150
SAFETY_LINES_ABOVE = 3
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper"}
LEFTOVERS = ("todo!(", "unimplemented!(", "dbg!(")

CORE = "rust/core/src/"
FOUNDATION = {"error", "units", "sync"}
# What each room of the core may name besides the foundation; the policies get units alone.
ROOMS: dict[str, set[str]] = {
    "error": set(),
    "units": set(),
    "sync": set(),
    "key": set(),
    "arena": set(),
    "stats": set(),
    "event": {"key"},
    "directory": {"key"},
    "policy": set(),
    "replay": {"policy", "key"},
    "io": {"arena"},
    "ssd": {"io", "arena", "key"},
    "store": {"key", "directory", "policy", "ssd", "io", "arena", "stats", "event"},
    # The index bare, hidden from the documentation: only this crate's benchmarks use it.
    "bench": {"directory", "key", "io", "ssd"},
}
ROOMS_OF_BINDING = {"store", "key", "replay", "error", "units"}
UNSAFE_ROOMS = {"arena", "directory", "io"}

PACKAGE = "python/keystow/"
# What a person or an engine starts; the library below never knows it, and it never knows _core.
PYTHON_TOP = {
    "__main__",
    "cli",
    "demo",
    "gc_command",
    "doctor_command",
    "inspect_command",
    "replay_command",
    "report",
    "integrations",
}
PYTHON_ROOTS = {"__init__", "__main__", "cli"}
LAZY_IMPORTS = {"torch", "numpy", "ml_dtypes"}
TYPING_IMPORTS = LAZY_IMPORTS | {"typing_extensions"}

Tree = Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """One violation: which rule, where, and what is wrong."""

    rule: str
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: [{self.rule}] {self.message}"


Rule = Callable[[Tree], Iterator[Fault]]


# ---- reading Rust ----

RUST_OPAQUE = re.compile(
    r"""//[^\n]*|/\*.*?\*/
    |(?<![A-Za-z0-9_])(?:b|c)?r(?P<hashes>\#*)".*?"(?P=hashes)
    |(?:(?<![A-Za-z0-9_])[bc])?"(?:\\.|[^"\\])*"
    |'(?:\\(?:x[0-9a-fA-F]{2}|u\{[0-9a-fA-F_]+\}|.)|[^\\'\n])'""",
    re.DOTALL | re.VERBOSE,
)


def rust_code(text: str) -> str:
    """Return `text` with comments and literals blanked; every offset and line stays."""
    return RUST_OPAQUE.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def line_at(text: str, offset: int) -> int:
    """Return the line number, from 1, of an offset."""
    return text.count("\n", 0, offset) + 1


def closing(code: str, start: int) -> int:
    """Return the offset of the brace that closes the one at `start`."""
    depth = 0
    for m in re.compile(r"[{}]").finditer(code, start):
        depth += 1 if m.group() == "{" else -1
        if depth == 0:
            return m.start()
    return len(code) - 1


def rust_functions(code: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, first and last line of every function that has a body."""
    for m in re.finditer(r"\bfn\s+(\w+)", code):
        depth = 0
        for part in re.compile(r"[()\[\]{;]").finditer(code, m.end()):
            if part.group() in "([":
                depth += 1
            elif part.group() in ")]":
                depth -= 1
            elif depth == 0:
                if part.group() == "{":
                    end = closing(code, part.start())
                    yield m.group(1), line_at(code, m.start()), line_at(code, end)
                break


def first_names(code: str, start: int) -> Iterator[str]:
    """Yield the first name of each path at `start`: one path, or a braced group of them."""
    if code[start : start + 1] != "{":
        m = re.compile(r"[A-Za-z0-9_]+|.").match(code, start)
        yield m.group() if m else ""
        return
    depth = 0
    for m in re.compile(r"[{},]|[A-Za-z0-9_]+|\*").finditer(code, start, closing(code, start)):
        part = m.group()
        if part in "{}":
            depth += 1 if part == "{" else -1
        elif part != "," and depth == 1 and re.search(r"[{,]\s*$", code[start : m.start()]):
            yield part


def module_depth(path: str) -> int:
    """Return how far below its crate's root the module of a file under src/ is."""
    parts = PurePosixPath(path.partition("/src/")[2]).with_suffix("").parts
    return len(parts) - (parts[-1] in ("lib", "mod"))


def names_at_root(path: str, code: str) -> Iterator[tuple[str, int]]:
    """Yield each name that code takes from its crate's root, by crate:: or by super::."""
    for m in re.finditer(r"\bcrate\s*::\s*", code):
        yield from ((name, m.start()) for name in first_names(code, m.end()))
    inner = [
        (m.start(), closing(code, m.end() - 1)) for m in re.finditer(r"\bmod\s+\w+\s*\{", code)
    ]
    for m in re.finditer(r"\b(?:super\s*::\s*)+", code):
        depth = module_depth(path) + sum(a < m.start() < b for a, b in inner)
        if m.group().count("super") >= depth:
            yield from ((name, m.start()) for name in first_names(code, m.end()))


def room_of(path: str) -> str:
    """Return the room of a file of the core: its first folder, or its own name."""
    return PurePosixPath(path.removeprefix(CORE)).parts[0].removesuffix(".rs")


# ---- reading Python ----


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, and whether it happens when the importer is loaded."""

    module: str
    line: int
    at_load: bool
    typing_only: bool


def python_imports(path: str, tree: ast.Module) -> Iterator[Import]:
    """Yield every import of a file, wherever it stands; names of `from` come as modules too."""
    parts = list(PurePosixPath(path.removeprefix("python/")).with_suffix("").parts)

    def visit(node: ast.AST, *, at_load: bool, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_load, typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(p for p in (base, node.module) if p)
            for alias in node.names:
                yield Import(f"{module}.{alias.name}", node.lineno, at_load, typing_only)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, at_load=at_load, typing_only=True)
            for child in node.orelse:
                yield from visit(child, at_load=at_load, typing_only=typing_only)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, at_load=at_load and not inside, typing_only=typing_only)

    yield from visit(tree, at_load=True, typing_only=False)


def package_files(tree: Tree) -> dict[str, str]:
    """Return the package's Python files by module name below keystow, e.g. `integrations.x`."""
    return {
        path.removeprefix(PACKAGE).removesuffix(".py").replace("/", "."): path
        for path in tree
        if path.startswith(PACKAGE) and path.endswith(".py")
    }


def module_inside(found: Import, modules: Mapping[str, str]) -> str | None:
    """Return which module of the package an import means; None if it is another package's."""
    parts = found.module.split(".")
    if parts[0] != "keystow":
        return None
    if parts[1:2] == ["_core"]:
        return "_core"
    for end in range(len(parts), 1, -1):
        name = ".".join(parts[1:end])
        if name in modules or f"{name}.__init__" in modules:
            return name if name in modules else f"{name}.__init__"
    return "__init__"


# ---- rules on every text ----


def file_length(tree: Tree) -> Iterator[Fault]:
    """No file of Rust or Python is longer than a person can keep in mind."""
    for path, text in tree.items():
        lines = len(text.splitlines())
        limit = README_LINES_MAX if path == "README.md" else LINES_MAX
        if lines > limit and path.endswith((".rs", ".py", ".pyi", "README.md")):
            yield Fault("file_length", path, lines, f"{lines} lines, at most {limit}")


def columns(tree: Tree) -> Iterator[Fault]:
    """No line of Rust or Python is wider than the page."""
    for path, text in tree.items():
        if not path.endswith((".rs", ".py", ".pyi")):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > COLUMNS_MAX:
                yield Fault("columns", path, number, f"{len(line)} columns, at most {COLUMNS_MAX}")


def function_length(tree: Tree) -> Iterator[Fault]:
    """No function, tests included, is longer than a screen."""
    for path, text in tree.items():
        if path.endswith(".rs"):
            found = list(rust_functions(rust_code(text)))
        elif path.endswith(".py"):
            kinds = ast.FunctionDef | ast.AsyncFunctionDef
            nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
            found = [(n.name, n.lineno, n.end_lineno or n.lineno) for n in nodes]
        else:
            continue
        for name, first, last in found:
            if last - first + 1 > FUNCTION_LINES_MAX:
                message = f"{name}: {last - first + 1} lines, at most {FUNCTION_LINES_MAX}"
                yield Fault("function_length", path, first, message)


def banned_name(tree: Tree) -> Iterator[Fault]:
    """No module has a name that says nothing about what is inside."""
    for path, text in tree.items():
        if not path.endswith((".rs", ".py", ".pyi")):
            continue
        for part in PurePosixPath(path).with_suffix("").parts:
            if part in BANNED_NAMES:
                yield Fault("banned_name", path, 1, f"{part} says nothing about its contents")
        for m in re.finditer(r"\bmod\s+(\w+)", rust_code(text) if path.endswith(".rs") else ""):
            if m.group(1) in BANNED_NAMES:
                line = line_at(text, m.start())
                yield Fault("banned_name", path, line, f"mod {m.group(1)} says nothing")


def module_doc(tree: Tree) -> Iterator[Fault]:
    """Every module begins by saying what it owns."""
    for path, text in tree.items():
        if path.endswith(".rs"):
            missing = not text.lstrip().startswith("//!")
        elif path.endswith(".py"):
            missing = ast.get_docstring(ast.parse(text)) is None
        else:
            continue
        if missing:
            yield Fault("module_doc", path, 1, "no module documentation at the top")


# ---- rules on Rust ----


def leftovers(tree: Tree) -> Iterator[Fault]:
    """Nothing half-made stays in the code."""
    for path, text in tree.items():
        code = rust_code(text) if path.endswith(".rs") else ""
        for mark in LEFTOVERS:
            if mark in code:
                line = line_at(code, code.index(mark))
                yield Fault("leftovers", path, line, f"{mark}...) is unfinished work")


def unsafe_place(tree: Tree) -> Iterator[Fault]:
    """Unsafe code stays in the rooms built for it."""
    for path, text in tree.items():
        if not path.endswith(".rs") or path.startswith("rust/py/"):
            continue
        if path.startswith(CORE) and room_of(path) in UNSAFE_ROOMS:
            continue
        for m in re.finditer(r"\bunsafe\b", rust_code(text)):
            rooms = ", ".join(sorted(UNSAFE_ROOMS))
            message = f"unsafe belongs in {rooms} of the core or in rust/py"
            yield Fault("unsafe_place", path, line_at(text, m.start()), message)


def safety_comment(tree: Tree) -> Iterator[Fault]:
    """Every unsafe names the guarantee it rests on, right above."""
    for path, text in tree.items():
        if not path.endswith(".rs"):
            continue
        code, lines = rust_code(text), text.splitlines()
        for m in re.finditer(r"\bunsafe\b(\s+(?:(?:extern\s+)?fn|trait)\s+\w)?", code):
            line = line_at(text, m.start())
            near = lines[max(0, line - 1 - SAFETY_LINES_ABOVE) : line]
            if any("// SAFETY:" in above for above in near):
                continue
            if m.group(1) and declared_safety(lines, line):
                continue
            message = f"unsafe without // SAFETY: in the {SAFETY_LINES_ABOVE} lines above"
            yield Fault("safety_comment", path, line, message)


def declared_safety(lines: list[str], line: int) -> bool:
    """Whether the documentation right above an unsafe fn or trait has a Safety chapter."""
    for above in reversed(lines[: line - 1]):
        if not above.lstrip().startswith(("///", "#[", "//")):
            return False
        if above.strip() == "/// # Safety":
            return True
    return False


def core_arrows(tree: Tree) -> Iterator[Fault]:
    """A room of the core names only the rooms below it."""
    for path, text in tree.items():
        if not path.startswith(CORE) or not path.endswith(".rs") or path == f"{CORE}lib.rs":
            continue
        room = room_of(path)
        if room not in ROOMS:
            yield Fault("core_arrows", path, 1, f"{room} is no room of the design; add its arrows")
            continue
        allowed = ROOMS[room] | {room} | ({"units"} if room == "policy" else FOUNDATION)
        for name, offset in names_at_root(path, rust_code(text)):
            if name not in allowed:
                message = f"{room} may not name {name}, only {', '.join(sorted(allowed))}"
                yield Fault("core_arrows", path, line_at(text, offset), message)


def core_is_pure(tree: Tree) -> Iterator[Fault]:
    """The core never knows Python."""
    for path, text in tree.items():
        if path.startswith("rust/core/") and path.endswith((".rs", ".toml")):
            code = rust_code(text) if path.endswith(".rs") else text
            for m in re.finditer(r"\bpyo3\b", code):
                line = line_at(text, m.start())
                yield Fault("core_is_pure", path, line, "the core never mentions pyo3")


def binding_arrows(tree: Tree) -> Iterator[Fault]:
    """The binding converts; it names the core's verbs, keys and errors only."""
    for path, text in tree.items():
        if not path.startswith("rust/py/") or not path.endswith(".rs"):
            continue
        code = rust_code(text)
        for m in re.finditer(r"\bkeystow_core\s*::\s*", code):
            for name in first_names(code, m.end()):
                if name not in ROOMS_OF_BINDING:
                    allowed = ", ".join(sorted(ROOMS_OF_BINDING))
                    message = f"the binding may not name {name}, only {allowed}"
                    yield Fault("binding_arrows", path, line_at(text, m.start()), message)


def rust_reached(tree: Tree) -> Iterator[Fault]:
    """Every Rust file is named by a mod line, from a crate's root on."""
    reached: set[str] = set()
    target = re.compile(r"(^|/)(tests|benches|examples)/\w+\.rs$")
    todo = [
        path
        for path in tree
        if path.endswith(("/src/lib.rs", "/src/main.rs"))
        or ("/src/" not in path and target.search(path))
    ]
    while todo:
        path = todo.pop()
        reached.add(path)
        here = PurePosixPath(path)
        is_root = here.name in ("lib.rs", "main.rs", "mod.rs") or "/src/" not in path
        folder = here.parent if is_root else here.with_suffix("")
        for m in re.finditer(r"\bmod\s+(\w+)\s*;", rust_code(tree[path])):
            children = (f"{folder}/{m.group(1)}.rs", f"{folder}/{m.group(1)}/mod.rs")
            todo += [child for child in children if child in tree and child not in reached]
    for path in tree:
        if path.endswith(".rs") and path not in reached:
            yield Fault("rust_reached", path, 1, "no mod line leads to this file")


# ---- rules on Python ----


def python_weight(tree: Tree) -> Iterator[Fault]:
    """The package loads with the standard library alone; torch and numpy only when used."""
    for path in package_files(tree).values():
        for found in python_imports(path, ast.parse(tree[path])):
            package = found.module.partition(".")[0]
            if package in sys.stdlib_module_names or package in ("keystow", "__future__"):
                continue
            if found.typing_only and package in TYPING_IMPORTS:
                continue
            if not found.at_load and package in LAZY_IMPORTS:
                continue
            when = "when keystow is loaded" if found.at_load else "at all"
            message = f"{package} may not be imported {when}"
            yield Fault("python_weight", path, found.line, message)


def python_arrows(tree: Tree) -> Iterator[Fault]:
    """What people start stands on the library; never the other way, never on _core itself."""
    modules = package_files(tree)
    for name, path in modules.items():
        is_top = name.partition(".")[0] in PYTHON_TOP
        for found in python_imports(path, ast.parse(tree[path])):
            target = module_inside(found, modules)
            if target is None:
                continue
            if is_top and target == "_core":
                message = f"{name} stands on the library, not on _core"
                yield Fault("python_arrows", path, found.line, message)
            if not is_top and target.partition(".")[0] in PYTHON_TOP:
                message = f"{name} may not know {target}, which stands on it"
                yield Fault("python_arrows", path, found.line, message)


def python_reached(tree: Tree) -> Iterator[Fault]:
    """Every module of the package is imported by one that a user can reach."""
    modules = package_files(tree)
    reached: set[str] = set()
    todo = [name for name in modules if name in PYTHON_ROOTS or name.startswith("integrations")]
    while todo:
        name = todo.pop()
        reached.add(name)
        for found in python_imports(modules[name], ast.parse(tree[modules[name]])):
            target = module_inside(found, modules)
            if target in modules and target not in reached:
                todo.append(target)
    for name, path in modules.items():
        if name not in reached and modules.keys() & PYTHON_ROOTS:
            yield Fault("python_reached", path, 1, "no module of the package imports this file")


RULES: tuple[Rule, ...] = (
    file_length,
    columns,
    function_length,
    banned_name,
    module_doc,
    leftovers,
    unsafe_place,
    safety_comment,
    core_arrows,
    core_is_pure,
    binding_arrows,
    rust_reached,
    python_weight,
    python_arrows,
    python_reached,
)


def faults(tree: Tree) -> list[Fault]:
    """Return every violation of every rule in a tree of path -> text."""
    return [fault for rule in RULES for fault in rule(tree)]
