"""Images per second on one core, from JPEG files to augmented samples, compared with torchvision's reference transforms.

Their side is the training preset of torchvision's detection references in transforms v2: decoding by PIL, a random short side up to
800 pixels, mirroring, conversion to float, and cleaned boxes; once with PIL images, the default of the references, and once with
tensors. Our side is this project's transform for dense heads with the same sides, and also the padded batch, which torchvision creates
later, in its model. The images are generated, with file sizes like those of photographs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from afl.benchmarks.harness import Row, take_turns
from datasets import DetectionDataset, ResizeTransform, read_coco
from datasets.batch import collate
from datasets.index import AnnotationIndex

SIDES = (640, 672, 704, 736, 768, 800)
LONGEST = 1333
BATCH = 4


def measure(quick: bool) -> list[Row]:
    """Use one core: OpenCV and torch have one thread each."""
    threads = torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            index = invented_photographs(Path(folder), 4 if quick else 24)
            work = {
                "ours": _ours(index),
                "PIL": _theirs(index, tensors=False),
                "tensors": _theirs(index, tensors=True),
            }
            seconds = take_turns(work, 1 if quick else 7)
    finally:
        torch.set_num_threads(threads)
    each = {name: value / len(index) for name, value in seconds.items()}
    return [
        Row.speed_up(
            f"input, JPEG of 640 x 480 to sides of {SIDES[0]} to {SIDES[-1]}, seconds for an image",
            each["ours"],
            each[backend],
            budget=3.0 if backend == "PIL" else None,
            note=f"torchvision reference transforms, {backend}; ours with the padded batch",
        )
        for backend in ("PIL", "tensors")
    ]


def _ours(index: AnnotationIndex) -> Callable[[], None]:
    dataset = DetectionDataset(index, ResizeTransform(SIDES, LONGEST, flip=0.5))

    def work() -> None:
        for first in range(0, len(index), BATCH):
            collate([dataset[(0, i)] for i in range(first, min(first + BATCH, len(index)))])

    return work


def _theirs(index: AnnotationIndex, tensors: bool) -> Callable[[], None]:
    steps = [v2.RandomShortestSize(min_size=SIDES, max_size=LONGEST), v2.RandomHorizontalFlip(p=0.5)]
    steps = [v2.PILToTensor(), *steps] if tensors else [*steps, v2.PILToTensor()]
    transform = v2.Compose(
        [*steps, v2.ToDtype(torch.float, scale=True), v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    )

    def work() -> None:
        for i in range(len(index)):
            image = Image.open(index.image_path(i)).convert("RGB")
            own = index.annotations(i)
            boxes = tv_tensors.BoundingBoxes(
                torch.from_numpy(index.boxes[own]), format="XYXY", canvas_size=image.size[::-1]
            )
            transform(image, {"boxes": boxes, "labels": torch.from_numpy(index.labels[own].astype(np.int64))})

    return work


def invented_photographs(folder: Path, count: int) -> AnnotationIndex:
    """JPEG files of 640 x 480 with structure at all scales (about 100 KB each), seven boxes in each."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir()
    for number in range(1, count + 1):
        picture = np.zeros((480, 640, 3), np.float32)
        for cells, height in ((4, 60), (16, 40), (64, 25), (240, 14)):
            noise = rng.normal(0, height, (cells * 3 // 4, cells, 3)).astype(np.float32)
            picture += cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
        name = f"{number:012d}.jpg"
        pixels = np.clip(picture + 120, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": number, "file_name": name, "width": 640, "height": 480})
        for _ in range(7):
            w, h = rng.uniform(20, 200, 2)
            box = [float(rng.uniform(0, 640 - w)), float(rng.uniform(0, 480 - h)), float(w), float(h)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.integers(1, 81)),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": c, "name": f"class {c}"} for c in range(1, 81)]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_coco(annotations=str(file), image_root=str(folder / "images"), cache=str(folder / "cache"))
