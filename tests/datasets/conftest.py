"""A generated set for all tests of the data layer, and a tiny COCO file for tests of damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from datasets import generate_shapes
from tests.datasets.damage import coco_content, write_images


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LongTail Shapes with default settings."""
    return generate_shapes(tmp_path_factory.mktemp("shapes"), seed=0)


@pytest.fixture
def small_coco() -> dict:
    """Two images and three objects with sparse, unsorted category ids."""
    content = coco_content()
    del content["annotations"][3:]
    return content


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[[dict], tuple[Path, Path]]:
    """Write a COCO file and its images; returns the file and the image folder."""

    def write(content: dict) -> tuple[Path, Path]:
        root = tmp_path / "images"
        write_images(root)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return path, root

    return write
