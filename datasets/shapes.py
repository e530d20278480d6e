"""LongTail Shapes: a generated, seeded detection data set with a steep long tail.

Thirty classes (six outlines times five fills) over a Zipf law from more than a thousand training instances to
two, six objects an image, and a balanced validation split.  Which class is rare is a permutation drawn from
the seed, so that difficulty and frequency are not confounded over seeds.  Every scene is annotated
exhaustively, with exact polygons.  One set of images is described three times, as MS COCO JSON, LVIS v1 JSON
and PASCAL VOC XML:

    shapes-seed0-<hash>/
        JPEGImages/000001.png ...            all images (PNG: lossless, so the same on every machine)
        Annotations/000001.xml ...           VOC
        ImageSets/Main/{train,val}.txt       VOC
        coco/{train,val}.json
        lvis/{train,val}.json
        settings.json

The folder's name carries a hash of the settings; it is made in a second folder and renamed, so it is whole or
absent and two processes may ask for it at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

import cv2
import numpy as np

from datasets.coco import read_coco
from datasets.defects import Policy
from datasets.files import atomic_folder
from datasets.geometry import polygon_area, polygon_box
from datasets.index import AnnotationIndex
from datasets.lvis import read_lvis
from datasets.shapes_drawing import FILLS, OUTLINES, DrawnObject, SceneStyle, draw_scene
from datasets.statistics import frequency_groups
from datasets.voc import read_voc

BENCHMARK_OUTLINES = ("circle", "square", "triangle", "star", "cross", "crescent")
BENCHMARK_FILLS = ("red", "blue", "green", "stripes", "dots")

# Nothing below occurs in the benchmark: pre-trained features have never seen one of its outlines or fills.
PRETRAINING_OUTLINES = ("ellipse", "bar", "pentagon", "arrow", "tee", "cog")
PRETRAINING_FILLS = ("yellow", "cyan", "purple", "checker", "rings")
MORE_PRETRAINING_OUTLINES = ("semicircle", "hourglass", "aitch", "chevron", "bolt", "drop")
MORE_PRETRAINING_FILLS = ("white", "halves", "zigzag")

FEWEST_INSTANCES = 2
GENERATOR_VERSION = 1


@dataclass(frozen=True)
class ShapesSettings:
    """Everything a generated set depends on; see ``generate_shapes``."""

    seed: int
    num_train: int
    num_val: int
    objects_per_image: int
    image_size: int
    min_radius: float
    max_radius: float
    max_hidden: float
    tail_exponent: float
    outlines: tuple[str, ...]
    fills: tuple[str, ...]

    def __post_init__(self) -> None:
        for kind, chosen, known in (("outline", self.outlines, OUTLINES), ("fill", self.fills, FILLS)):
            unknown = sorted(set(chosen) - set(known))
            if unknown or not chosen or len(set(chosen)) != len(chosen):
                raise ValueError(
                    f"shapes need distinct {kind}s out of {', '.join(known)}; got {', '.join(chosen)}"
                )
        for name, images in (("num_train", self.num_train), ("num_val", self.num_val)):
            if images * self.objects_per_image < FEWEST_INSTANCES * self.num_classes:
                raise ValueError(
                    f"{name} = {images} images of {self.objects_per_image} objects cannot show each of "
                    f"{self.num_classes} classes {FEWEST_INSTANCES} times: raise {name} or objects_per_image"
                )

    @property
    def num_classes(self) -> int:
        return len(self.outlines) * len(self.fills)

    @property
    def looks(self) -> list[tuple[str, str]]:
        """(outline, fill) of each class, in class order."""
        return [(outline, fill) for outline in self.outlines for fill in self.fills]

    @property
    def names(self) -> list[str]:
        return [f"{fill} {outline}" for outline, fill in self.looks]

    @property
    def folder_name(self) -> str:
        text = json.dumps({"version": GENERATOR_VERSION, **asdict(self)}, sort_keys=True)
        return f"shapes-seed{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def generate_shapes(
    root: Path | str,
    *,
    seed: int = 0,
    num_train: int = 560,
    num_val: int = 360,
    objects_per_image: int = 6,
    image_size: int = 96,
    min_radius: float = 7.0,
    max_radius: float = 15.0,
    max_hidden: float = 0.3,
    tail_exponent: float = 4.5,
    outlines: Sequence[str] = BENCHMARK_OUTLINES,
    fills: Sequence[str] = BENCHMARK_FILLS,
) -> Path:
    """Folder of a LongTail Shapes set under ``root``, made when it is not there.

    Args:
        root: where generated sets are kept.
        seed: data seed: scenes, and which class has which frequency rank.
        num_train, num_val: images of the two splits.
        objects_per_image: mean number of objects; single images have up to two more or fewer.
        image_size: side of the square images in pixels.
        min_radius, max_radius: objects' circumscribed radius in pixels.
        max_hidden: largest hidden part of any object.
        tail_exponent: e in the law n_r ~ (9 / (r + 8))^e of instances over ranks r = 1, 2, ...; 0 is
            balanced. The law is scaled so that all objects of the training split are used; no class has fewer
            than two.
        outlines, fills: the classes are their product.

    Raises:
        ValueError: unknown outline or fill, too few objects for the classes, or objects that do not fit.
    """
    settings = ShapesSettings(
        seed, num_train, num_val, objects_per_image, image_size, float(min_radius), float(max_radius),
        float(max_hidden), float(tail_exponent), tuple(outlines), tuple(fills),
    )  # fmt: skip
    folder = Path(root) / settings.folder_name
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            _write(settings, temporary)
    return folder


def generate_pretraining_shapes(
    root: Path | str,
    *,
    seed: int = 1000,
    num_train: int = 1500,
    num_val: int = 120,
    objects_per_image: int = 6,
    image_size: int = 96,
    min_radius: float = 7.0,
    max_radius: float = 15.0,
    tail_exponent: float = 0.0,
    more_classes: bool = False,
) -> Path:
    """Folder of a balanced set whose outlines and fills the benchmark never shows.

    With ``more_classes`` there are 12 outlines x 8 fills = 96 classes instead of 6 x 5 = 30.
    """
    return generate_shapes(
        root,
        seed=seed,
        num_train=num_train,
        num_val=num_val,
        objects_per_image=objects_per_image,
        image_size=image_size,
        min_radius=min_radius,
        max_radius=max_radius,
        tail_exponent=tail_exponent,
        outlines=PRETRAINING_OUTLINES + (MORE_PRETRAINING_OUTLINES if more_classes else ()),
        fills=PRETRAINING_FILLS + (MORE_PRETRAINING_FILLS if more_classes else ()),
    )


def read_shapes(
    folder: Path | str,
    *,
    split: str,
    annotation_format: Literal["coco", "lvis", "voc"],
    policy: Policy = "error",
    cache: Path | str | None = None,
) -> AnnotationIndex:
    """The ``train`` or ``val`` split of a generated set, through one of the three readers."""
    folder = Path(folder)
    if annotation_format == "coco":
        return read_coco(folder / "coco" / f"{split}.json", folder / "JPEGImages", policy=policy, cache=cache)
    if annotation_format == "lvis":
        return read_lvis(folder / "lvis" / f"{split}.json", folder, policy=policy, cache=cache)
    if annotation_format == "voc":
        return read_voc(folder, [split], policy=policy, cache=cache)
    raise ValueError(f"annotation_format is 'coco', 'lvis' or 'voc', not {annotation_format!r}")


def instances_by_rank(num_classes: int, total: int, exponent: float) -> np.ndarray:
    """(C,) int64 instances of the ranks 1..C, non-increasing, at least two each, summing to ``total``."""
    law = (9.0 / (np.arange(1, num_classes + 1) + 8.0)) ** exponent
    low, high = 0.0, float(total)
    for _ in range(60):
        scale = 0.5 * (low + high)
        low, high = (scale, high) if np.maximum(FEWEST_INSTANCES, scale * law).sum() < total else (low, scale)
    counts = np.maximum(FEWEST_INSTANCES, np.floor(low * law)).astype(np.int64)
    rest = total - int(counts.sum())
    # What rounding left over goes to the head, one each, so that the order of ranks stays.
    counts += rest // num_classes
    counts[: rest % num_classes] += 1
    return counts


def _write(settings: ShapesSettings, folder: Path) -> None:
    rng = np.random.default_rng([settings.seed, 0])
    classes, total = settings.num_classes, settings.objects_per_image
    ranked = instances_by_rank(classes, settings.num_train * total, settings.tail_exponent)
    train_counts = np.empty_like(ranked)
    train_counts[rng.permutation(classes)] = ranked
    val_counts = instances_by_rank(classes, settings.num_val * total, 0.0)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", "coco", "lvis"):
        (folder / name).mkdir(parents=True)
    style = SceneStyle(settings.image_size, settings.min_radius, settings.max_radius, settings.max_hidden)
    plans = {
        "train": _deal(train_counts, settings.num_train, rng),
        "val": _deal(val_counts, settings.num_val, rng),
    }
    images_per_class = np.zeros(classes, dtype=np.int64)
    for labels in plans["train"]:
        images_per_class[np.unique(labels)] += 1
    groups = frequency_groups(images_per_class)

    first_id = 1
    for split, plan in plans.items():
        scenes: list[tuple[int, list[DrawnObject]]] = []
        for image_id, labels in enumerate(plan, start=first_id):
            scene_rng = np.random.default_rng([settings.seed, 1, image_id])
            image, objects = draw_scene(labels.tolist(), settings.looks, style, scene_rng)
            _write_png(folder / "JPEGImages" / _file_name(image_id), image)
            scenes.append((image_id, objects))
        _write_coco(folder / "coco" / f"{split}.json", scenes, settings)
        _write_lvis(
            folder / "lvis" / f"{split}.json", scenes, settings, groups, images_per_class, train_counts
        )
        _write_voc(folder, split, scenes, settings)
        first_id += len(plan)
    (folder / "settings.json").write_text(
        json.dumps({"version": GENERATOR_VERSION, **asdict(settings)}, indent=1)
    )


def _deal(counts: np.ndarray, num_images: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle all labels and deal them out to images of about equal numbers of objects."""
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    mean = len(labels) // num_images
    spread = min(2, mean - 1)
    sizes = mean + rng.integers(-spread, spread + 1, size=num_images)
    difference = len(labels) - int(sizes.sum())
    while difference:
        step = int(np.sign(difference))
        open_images = np.flatnonzero(np.abs(sizes + step - mean) <= max(spread, 1))
        chosen = rng.permutation(open_images)[: abs(difference)]
        sizes[chosen] += step
        difference -= step * len(chosen)
    return np.split(labels, np.cumsum(sizes)[:-1])


def _file_name(image_id: int) -> str:
    return f"{image_id:06d}.png"


def _write_png(path: Path, image: np.ndarray) -> None:
    # Grainy pictures hold no repetitions to look for.
    options = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    if not cv2.imwrite(str(path), image[..., ::-1], options):
        raise OSError(f"{path} could not be written: is the disk full?")


def _annotations(scenes: list[tuple[int, list[DrawnObject]]]) -> list[dict]:
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
                    "area": round(polygon_area(polygon), 2),
                    "segmentation": [polygon.reshape(-1).tolist()],
                }
            )
    return result


def _images(scenes: list[tuple[int, list[DrawnObject]]], settings: ShapesSettings) -> list[dict]:
    size = settings.image_size
    return [{"id": image_id, "width": size, "height": size} for image_id, _ in scenes]


def _write_coco(path: Path, scenes: list[tuple[int, list[DrawnObject]]], settings: ShapesSettings) -> None:
    content = {
        "images": [{**image, "file_name": _file_name(image["id"])} for image in _images(scenes, settings)],
        "annotations": [{**annotation, "iscrowd": 0} for annotation in _annotations(scenes)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(settings.names, start=1)],
    }
    path.write_text(json.dumps(content))


def _write_lvis(
    path: Path,
    scenes: list[tuple[int, list[DrawnObject]]],
    settings: ShapesSettings,
    groups: Sequence[str],
    images_per_class: np.ndarray,
    instances: np.ndarray,
) -> None:
    images = _images(scenes, settings)
    for image, (image_id, objects) in zip(images, scenes, strict=True):
        present = {item.label for item in objects}
        image["coco_url"] = f"JPEGImages/{_file_name(image_id)}"
        # Scenes are annotated exhaustively: every class is either there or known to be absent.
        image["neg_category_ids"] = [c + 1 for c in range(settings.num_classes) if c not in present]
        image["not_exhaustive_category_ids"] = []
    categories = [
        {
            "id": i + 1,
            "name": name,
            "frequency": groups[i],
            "image_count": int(images_per_class[i]),
            "instance_count": int(instances[i]),
        }
        for i, name in enumerate(settings.names)
    ]
    content = {"images": images, "annotations": _annotations(scenes), "categories": categories}
    path.write_text(json.dumps(content))


def _write_voc(
    folder: Path, split: str, scenes: list[tuple[int, list[DrawnObject]]], settings: ShapesSettings
) -> None:
    size = settings.image_size
    for image_id, objects in scenes:
        parts = [
            f"<annotation><filename>{_file_name(image_id)}</filename>"
            f"<size><width>{size}</width><height>{size}</height><depth>3</depth></size>"
        ]
        for item in objects:
            # VOC's boxes are whole pixels, counted from 1, both ends included.
            x1, y1, x2, y2 = np.rint(polygon_box(item.polygon)).astype(int).tolist()
            box = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            name = escape(settings.names[item.label])
            parts.append(
                f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
            )
        text = "\n".join([*parts, "</annotation>\n"])
        (folder / "Annotations" / f"{image_id:06d}.xml").write_text(text)
    names = "".join(f"{image_id:06d}\n" for image_id, _ in scenes)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
