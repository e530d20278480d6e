"""Imports between the project's modules, read from their source, are those that the table in docs/architecture.md allows."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("afl", "datasets", "detectors", "examples", "scripts")


def module_level(tree: ast.AST):
    """Import statements that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from module_level(node)


def all_levels(tree: ast.AST):
    """All import statements, including those in functions."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def graph(statements) -> dict[str, set[str]]:
    """Modules of the project that each module imports; ``statements`` finds the import statements in its syntax tree."""
    paths = [ROOT / "hubconf.py", *(path for place in PLACES for path in (ROOT / place).rglob("*.py"))]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        used = set()
        for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            else:
                base = node.module or ""
                if node.level:
                    parts = path.relative_to(ROOT).parent.parts
                    base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
                members = {f"{base}.{alias.name}" for alias in node.names}
                used |= {m if m in names else base for m in members}
        found[name] = (used & set(names)) - {name}
    return found


def test_no_module_imports_itself_through_others():
    assert len(list(TopologicalSorter(graph(module_level)).static_order())) > 100


def package_of(module: str) -> str:
    """``afl.losses`` of ``afl.losses.dense``, ``datasets`` of ``datasets.coco``."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "afl" else 1])


def packages_in(text: str) -> list[str]:
    """The packages whose paths a cell of the table names."""
    return [
        path.removesuffix("/").removesuffix(".py").replace("/", ".")
        for path in re.findall(r"`([^`]+)`", text)
    ]


def table(text: str) -> list[tuple[list[str], str]]:
    """Packages and imports of each row, from the top."""
    block = text.partition("| folder | content | imports |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
    return [(packages_in(folders), imports) for folders, _, imports in rows]


ROWS = table((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))


def allowed(rows: list[tuple[list[str], str]]) -> dict[str, set[str]]:
    """Packages that each package may import."""
    found: dict[str, set[str]] = {}
    below: set[str] = set()
    for packages, imports in reversed(rows):
        named = set(below if imports == "every row below" else packages_in(imports))
        assert named <= below, f"{packages} may only import lower rows, not {sorted(named - below)}"
        assert named or imports == "nothing", imports
        for package in packages:
            found[package] = named | (set(packages) if "one another" in imports else {package})
        below |= set(packages)
    return found


def violations(modules: dict[str, set[str]], may: dict[str, set[str]]) -> list[tuple[str, str]]:
    """(module, imported module) that the table does not allow; the package ``afl`` itself imports nothing."""
    return sorted(
        (name, other)
        for name, used in modules.items()
        for other in used - {"afl"}
        if package_of(other) not in may.get(package_of(name), set())
    )


def test_every_package_is_in_the_table_once_and_every_entry_exists():
    named = [package for packages, _ in ROWS for package in packages]
    assert sorted(named) == sorted({package_of(name) for name in graph(all_levels)} - {"afl"})


def test_modules_import_what_the_table_allows():
    assert violations(graph(all_levels), allowed(ROWS)) == []


def test_losses_and_data_sets_import_nothing_else_of_the_project():
    may = allowed(ROWS)
    assert may["afl.losses"] == {"afl.losses"} and may["datasets"] == {"datasets"}


def test_an_import_upwards_or_beside_is_found():
    rows = [
        (["scripts"], "every row below"),
        (["afl.zoo", "afl.predict"], "one another, `datasets/`"),
        (["datasets"], "nothing"),
    ]
    modules = {
        "scripts.train": {"afl.zoo.make", "datasets"},
        "afl.predict": {"afl.zoo.make", "scripts.train"},
        "datasets.coco": {"datasets.files", "afl.predict"},
    }
    assert violations(modules, allowed(rows)) == [
        ("afl.predict", "scripts.train"),
        ("datasets.coco", "afl.predict"),
    ]


def test_a_table_whose_rows_import_upwards_is_refused():
    with pytest.raises(AssertionError, match="may only import lower rows"):
        allowed([(["detectors"], "nothing"), (["datasets"], "`detectors/`")])
