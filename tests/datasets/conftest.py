"""One generated set for all tests of the data layer, and a tiny COCO file to damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import generate_shapes


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LongTail Shapes as every user gets them."""
    return generate_shapes(tmp_path_factory.mktemp("shapes"), seed=0)


@pytest.fixture
def small_coco() -> dict:
    """Two images, three objects, sparse category ids out of order."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 20},
        ],
        "annotations": [
            {"id": 11, "image_id": 3, "category_id": 90, "bbox": [1, 2, 10, 8], "area": 60.5, "iscrowd": 0},
            {"id": 12, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 30], "area": 900, "iscrowd": 1},
            {
                "id": 13,
                "image_id": 7,
                "category_id": 90,
                "bbox": [5, 5, 10, 10],
                "area": 50,
                "iscrowd": 0,
                "segmentation": [[5, 5, 15, 5, 10, 15]],
            },
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 2, "name": "ant"}],
    }


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[[dict], tuple[Path, Path]]:
    """Writes a COCO file and its images; returns the file and the image folder."""

    def write(content: dict) -> tuple[Path, Path]:
        root = tmp_path / "images"
        root.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        cv2.imwrite(str(root / "a.jpg"), rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
        cv2.imwrite(str(root / "b.png"), rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return path, root

    return write
