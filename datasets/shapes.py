"""LongTail Shapes: a generated, seeded detection data set with a steep long tail.

Thirty classes (six outlines times five fills) follow a Zipf-Mandelbrot law n_r ~ 1 / (r + 8)^4.5 over ranks r. With the
3,360 training objects of the benchmark it gives 1,085 instances to the first rank, at most 48 from the tenth on, and two to
the last five.  An image has six objects on average, and the validation split is balanced.  The seed permutes the frequency ranks of the
classes, so that difficulty and frequency are not confounded over seeds.  Every scene is annotated completely, with exact
polygons.  One set of images is described three times, as MS COCO JSON, LVIS v1 JSON and PASCAL VOC XML:

    shapes-seed0-<hash>/
        JPEGImages/000001.png ...            all images (PNG: lossless, so the same on every machine)
        Annotations/000001.xml ...           VOC
        ImageSets/Main/{train,val}.txt       VOC
        coco/{train,val}.json
        lvis/{train,val}.json
        settings.json

The folder's name contains a hash of the settings.  The set is written to a temporary folder, which is then renamed: it is
complete or absent, and several processes can generate it at the same time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from datasets.coco import read_coco
from datasets.defects import Policy
from datasets.files import atomic_folder
from datasets.index import AnnotationIndex
from datasets.lvis import read_lvis
from datasets.shapes_drawing import FILLS, OUTLINES, SceneStyle, draw_scene
from datasets.shapes_files import Scene, ShapesFiles
from datasets.statistics import frequency_groups
from datasets.voc import read_voc

BENCHMARK_OUTLINES = ("circle", "square", "triangle", "star", "cross", "crescent")
BENCHMARK_FILLS = ("red", "blue", "green", "stripes", "dots")

# The benchmark has none of these: pre-training shows none of the benchmark's outlines and fills.
PRETRAINING_OUTLINES = ("ellipse", "bar", "pentagon", "arrow", "tee", "cog")
PRETRAINING_FILLS = ("yellow", "cyan", "purple", "checker", "rings")
MORE_PRETRAINING_OUTLINES = ("semicircle", "hourglass", "aitch", "chevron", "bolt", "drop")
MORE_PRETRAINING_FILLS = ("white", "halves", "zigzag")

FEWEST_INSTANCES = 2
GENERATOR_VERSION = 2


@dataclass(frozen=True)
class ShapesSettings:
    """All settings of a generated set; see ``generate_shapes``."""

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
                    f"shapes need different {kind}s from {', '.join(known)}; got {', '.join(chosen)}"
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
    """Generate a LongTail Shapes set under ``root``, unless it exists, and return its folder.

    Args:
        root: folder of the generated sets.
        seed: seed of the scenes and of the frequency ranks of the classes.
        num_train, num_val: images of the two splits.
        objects_per_image: mean number of objects; an image has up to two more or fewer.
        image_size: side of the square images in pixels.
        min_radius, max_radius: objects' circumscribed radius in pixels.
        max_hidden: largest share of an object that may be hidden.
        tail_exponent: e in the Zipf-Mandelbrot law n_r ~ (9 / (r + 8))^e of instances over ranks r = 1, 2, ...; 0 gives a balanced
            set. The law is scaled to the number of training objects; every class has at least two.
        outlines, fills: every pair of an outline and a fill is a class.

    Raises:
        ValueError: an outline or fill is unknown, there are too few objects for the classes, or the objects do not fit.
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
    tail_exponent: float = 0.0,
    more_classes: bool = False,
) -> Path:
    """A balanced set with outlines and fills that the benchmark does not have; see ``generate_shapes``.

    With ``more_classes`` there are 12 outlines x 8 fills = 96 classes instead of 6 x 5 = 30.
    """
    outlines, fills = pretraining_parts(more_classes)
    return generate_shapes(
        root,
        seed=seed,
        num_train=num_train,
        num_val=num_val,
        objects_per_image=objects_per_image,
        image_size=image_size,
        tail_exponent=tail_exponent,
        outlines=outlines,
        fills=fills,
    )


def pretraining_parts(more_classes: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Outlines and fills of ``generate_pretraining_shapes``; every pair is a class."""
    if not more_classes:
        return PRETRAINING_OUTLINES, PRETRAINING_FILLS
    return PRETRAINING_OUTLINES + MORE_PRETRAINING_OUTLINES, PRETRAINING_FILLS + MORE_PRETRAINING_FILLS


def read_shapes(
    folder: Path | str,
    *,
    split: str,
    annotation_format: Literal["coco", "lvis", "voc"],
    policy: Policy = "error",
    cache: Path | str | None = None,
) -> AnnotationIndex:
    """Read the ``train`` or ``val`` split of a generated set with one of the three readers."""
    folder = Path(folder)
    if annotation_format == "coco":
        return read_coco(folder / "coco" / f"{split}.json", folder / "JPEGImages", policy=policy, cache=cache)
    if annotation_format == "lvis":
        return read_lvis(folder / "lvis" / f"{split}.json", folder, policy=policy, cache=cache)
    if annotation_format == "voc":
        return read_voc(folder, [split], policy=policy, cache=cache)
    raise ValueError(f"annotation_format is 'coco', 'lvis' or 'voc', not {annotation_format!r}")


def instances_by_rank(num_classes: int, total: int, exponent: float) -> np.ndarray:
    """Number of instances (C,) int64 of the ranks 1..C: non-increasing, at least two each, with the sum ``total``."""
    law = (9.0 / (np.arange(1, num_classes + 1) + 8.0)) ** exponent
    low, high = 0.0, float(total)
    for _ in range(60):
        scale = 0.5 * (low + high)
        low, high = (scale, high) if np.maximum(FEWEST_INSTANCES, scale * law).sum() < total else (low, scale)
    counts = np.maximum(FEWEST_INSTANCES, np.floor(low * law)).astype(np.int64)
    rest = total - int(counts.sum())
    # The remainder of rounding goes to the first ranks, one each, so that the counts stay non-increasing.
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
    files = ShapesFiles(folder, settings.names, settings.image_size)
    files.create_folders()
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
        scenes: list[Scene] = []
        for image_id, labels in enumerate(plan, start=first_id):
            scene_rng = np.random.default_rng([settings.seed, 1, image_id])
            image, objects = draw_scene(labels.tolist(), settings.looks, style, scene_rng)
            files.write_image(image_id, image)
            scenes.append((image_id, objects))
        files.write_coco(split, scenes)
        files.write_lvis(split, scenes, groups, images_per_class, train_counts)
        files.write_voc(split, scenes)
        first_id += len(plan)
    (folder / "settings.json").write_text(
        json.dumps({"version": GENERATOR_VERSION, **asdict(settings)}, indent=1)
    )


def _deal(counts: np.ndarray, num_images: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffle all labels and distribute them over images with about equal numbers of objects."""
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
