"""The wheel in a separate environment: its content, and the README's example with it. The environment uses torch
from the one that runs the tests, so that nothing is downloaded."""

from __future__ import annotations

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def checked(command: list[str | Path], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel that is built from a copy of the sources, because a build creates folders."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("afl", "datasets", "detectors"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    checked([sys.executable, "-c", script, built], source)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment with the wheel and, by path, the packages of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:  # a wheel of Python files is installed by unpacking it
        archive.extractall(packages)
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def test_the_wheel_only_contains_the_losses_and_only_requires_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        fields = email.message_from_bytes(archive.read(metadata))
    code = {name for name in names if ".dist-info/" not in name}
    own = {f"afl/losses/{path.name}" for path in (ROOT / "afl" / "losses").glob("*.py")}
    assert code == own | {"afl/losses/py.typed"}
    assert [
        re.match(r"[\w-]+", line)[0] for line in fields.get_all("Requires-Dist") if "extra ==" not in line
    ] == ["torch"]


def test_the_losses_only_import_torch():
    for path in (ROOT / "afl" / "losses").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in modules:
                first = module.partition(".")[0]
                assert first in ("torch", "triton", *sys.stdlib_module_names) or module.startswith("afl.losses"), (
                    path, module,
                )  # fmt: skip


def test_the_example_of_the_readme_runs_with_the_wheel(python, tmp_path):
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [b for text in texts for b in re.findall(r"```python\n(.*?)```", text.read_text(), re.DOTALL)]
    example = next(block for block in blocks if "from afl.losses import" in block)
    example = example.replace('weights_backbone="DEFAULT"', "weights_backbone=None")  # the default downloads
    where = checked([python, "-c", "import afl.losses; print(afl.losses.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(python.parents[1])
    counts = (
        "import torch\n\ninstances_per_class = torch.arange(1, 21)\n"  # the example asks its reader for this
    )
    (tmp_path / "example.py").write_text(counts + example)
    checked([python, "example.py"], tmp_path)
