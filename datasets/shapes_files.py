"""The files of a LongTail Shapes set: images, and annotations as MS COCO JSON, LVIS v1 JSON and PASCAL VOC XML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np

from datasets.geometry import polygon_area, polygon_box
from datasets.shapes_drawing import DrawnObject

Scene = tuple[int, list[DrawnObject]]
"""Image id and objects."""


@dataclass(frozen=True)
class ShapesFiles:
    """Writes the files of one set.

    Attributes:
        folder: an empty folder.
        names: (C,) class names.
        image_size: side of the square images in pixels.
    """

    folder: Path
    names: Sequence[str]
    image_size: int

    def create_folders(self) -> None:
        for name in ("JPEGImages", "Annotations", "ImageSets/Main", "coco", "lvis"):
            (self.folder / name).mkdir(parents=True)

    def write_image(self, image_id: int, image: np.ndarray) -> None:
        """Write an image (S, S, 3) uint8 RGB as PNG.

        Raises:
            OSError: the image cannot be written.
        """
        path = self.folder / "JPEGImages" / _file_name(image_id)
        # Noisy images contain no repetitions, so searching for them only takes time.
        options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
        if not cv2.imwrite(str(path), image[..., ::-1], options):
            raise OSError(f"{path} could not be written: is the disk full?")

    def write_coco(self, split: str, scenes: Sequence[Scene]) -> None:
        content = {
            "images": [{**image, "file_name": _file_name(image["id"])} for image in self._images(scenes)],
            "annotations": [{**annotation, "iscrowd": 0} for annotation in _annotations(scenes)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.names, start=1)],
        }
        (self.folder / "coco" / f"{split}.json").write_text(json.dumps(content))

    def write_lvis(
        self,
        split: str,
        scenes: Sequence[Scene],
        groups: Sequence[str],
        images_per_class: np.ndarray,
        instances: np.ndarray,
    ) -> None:
        """Write a split with the frequency group and the training statistics (C,) of each class."""
        images = self._images(scenes)
        for image, (image_id, objects) in zip(images, scenes, strict=True):
            present = {item.label for item in objects}
            image["coco_url"] = f"JPEGImages/{_file_name(image_id)}"
            # Scenes are annotated completely: every class is either present or verified to be absent.
            image["neg_category_ids"] = [c + 1 for c in range(len(self.names)) if c not in present]
            image["not_exhaustive_category_ids"] = []
        categories = [
            {
                "id": i + 1,
                "name": name,
                "frequency": groups[i],
                "image_count": int(images_per_class[i]),
                "instance_count": int(instances[i]),
            }
            for i, name in enumerate(self.names)
        ]
        content = {"images": images, "annotations": _annotations(scenes), "categories": categories}
        (self.folder / "lvis" / f"{split}.json").write_text(json.dumps(content))

    def write_voc(self, split: str, scenes: Sequence[Scene]) -> None:
        size = self.image_size
        for image_id, objects in scenes:
            parts = [
                f"<annotation><filename>{_file_name(image_id)}</filename>"
                f"<size><width>{size}</width><height>{size}</height><depth>3</depth></size>"
            ]
            for item in objects:
                # VOC's boxes are whole pixels, counted from 1, both ends included.
                x1, y1, x2, y2 = np.rint(polygon_box(item.polygon)).astype(int).tolist()
                box = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
                name = escape(self.names[item.label])
                parts.append(
                    f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
                )
            text = "\n".join([*parts, "</annotation>\n"])
            (self.folder / "Annotations" / f"{image_id:06d}.xml").write_text(text)
        lines = "".join(f"{image_id:06d}\n" for image_id, _ in scenes)
        (self.folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)

    def _images(self, scenes: Sequence[Scene]) -> list[dict]:
        size = self.image_size
        return [{"id": image_id, "width": size, "height": size} for image_id, _ in scenes]


def _file_name(image_id: int) -> str:
    return f"{image_id:06d}.png"


def _annotations(scenes: Sequence[Scene]) -> list[dict]:
    """Annotation records of MS COCO's format, without ``iscrowd``."""
    result: list[dict] = []
    for image_id, objects in scenes:
        for item in objects:
            polygon = item.polygon.round(2)
            x1, y1, x2, y2 = polygon_box(polygon).tolist()
            result.append(
                {
                    "id": len(result) + 1,
                    "image_id": image_id,
                    "category_id": item.label + 1,
                    "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    # Exact, so that the files do not depend on the processor: coordinates have two decimals, so the area is a
                    # multiple of 0.00005. Two decimals would round halves by the last bit of the sum.
                    "area": round(polygon_area(polygon), 5),
                    "segmentation": [polygon.reshape(-1).tolist()],
                }
            )
    return result
