"""Imports between the project's modules, read from their source: losses and data sets import nothing above them."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("afl", "datasets", "detectors", "scripts")


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


def graph() -> dict[str, set[str]]:
    """Modules of the project that each module imports when it is loaded."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        used = set()
        for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
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
    assert len(list(TopologicalSorter(graph()).static_order())) > 100


@pytest.mark.parametrize("package", ["afl.losses", "datasets"])
def test_the_lowest_packages_import_only_themselves(package):
    wrong = [
        (name, other)
        for name, used in graph().items()
        if f"{name}.".startswith(f"{package}.")
        for other in used
        if not f"{other}.".startswith(f"{package}.")
    ]
    assert wrong == []


def test_only_commands_import_commands():
    wrong = [
        (name, other)
        for name, used in graph().items()
        if not name.startswith("scripts")
        for other in used
        if other.startswith("scripts")
    ]
    assert wrong == []
