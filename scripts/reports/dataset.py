"""The command that shows a data set in one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from afl.reporting.names import GROUPS
from afl.reporting.pages.dataset import Split, dataset_page
from afl.tracking import Picture, write_text
from afl.training.data import RunData, read_data
from afl.training.pictures import picture_of
from datasets import AnnotationIndex, exposure, repeat_factors
from scripts.entry import compose_config
from scripts.reports.material import require_images

REPEATED_BELOW = 100  # training images of a class, the setting of loss=irfs


def dataset(*overrides: str, output: str = "", images: int = 12) -> Path:
    """A data set in one page: objects of each class, their sizes and shapes, some images, and the defects that were left out.
    It also says how many times as often ``loss=irfs`` would show each class.

        python -m scripts.report dataset dataset=shapes [images=12] [output=FILE]
        python -m scripts.report dataset dataset=coco dataset.root=/data/coco

    Takes every override that scripts.train takes. Writes outputs/dataset-NAME.html.

    Raises:
        DataError: the data set is not on this machine, or damaged.
        ValueError: neither this command nor Hydra knows an argument.
    """
    config = compose_config(list(overrides))
    data = read_data(config)
    name = config.dataset.name
    shown = exposure(
        data.train, repeat_factors(data.train, REPEATED_BELOW / len(data.train), count_instances=True)
    )
    page = dataset_page(
        name,
        data.statistics.names,
        data.statistics.groups,
        data.statistics.instances,
        data.statistics.images,
        shown,
        [split_of("train", data.train), split_of("val", data.val)],
        samples(data, images),
    )
    path = Path(output or Path(config.paths.output) / f"dataset-{name}.html")
    write_text(path, page)
    groups = list(data.statistics.groups)
    counts = ", ".join(f"{groups.count(g)} {word}" for g, word in GROUPS.items())
    print(
        f"{name}: {len(data.train)} training and {len(data.val)} validation images, {int(data.statistics.instances.sum())} "
        f"training objects, {len(groups)} classes ({counts})"
    )
    present = ~np.isnan(shown)
    means = [
        f"{word} classes {shown[own].mean():.1f}"
        for g, word in GROUPS.items()
        if (own := present & (np.array(groups) == g)).any()
    ]
    print(f"loss=irfs would show objects of {', '.join(means)} times as often (mean over classes)")
    print(f"written: {path} (open it in any browser)")
    return path


def split_of(name: str, index: AnnotationIndex) -> Split:
    """The facts of a split that the page shows."""
    return Split(
        name=name,
        source=", ".join(index.sources),
        images=len(index),
        sides=np.stack([index.heights, index.widths], 1),
        boxes=index.boxes[index.counted],
        labels=index.labels[index.counted],
        left_out=int((~index.counted).sum()),
        per_image=np.bincount(index.image_numbers[index.counted], minlength=len(index)),
        defects={kind: defect.count for kind, defect in index.defects.items()},
    )


def samples(data: RunData, count: int) -> list[Picture]:
    """``count`` training images with objects: up to half of them with rare classes, the rest spread
    evenly.

    Raises:
        ValueError: the count is below 1.
    """
    index, groups = data.train, np.array(data.statistics.groups)
    filled = np.flatnonzero(np.diff(index.offsets))
    rare = [i for i in filled if (groups[index.labels[index.annotations(i)]] == "r").any()]
    require_images(count)
    chosen = dict.fromkeys(_spread(rare, count // 2))
    for i in [*_spread(filled, count), *filled]:
        if len(chosen) < count:
            chosen.setdefault(i)
    return [picture_of(index, i) for i in map(int, sorted(chosen))]


def _spread(pool: Sequence[int], count: int) -> list[int]:
    """At most ``count`` members, evenly spread from the first to the last."""
    return [pool[k] for k in np.linspace(0, len(pool) - 1, min(count, len(pool))).round().astype(int)]
