"""The map from (epoch, image number, repetition, step) to an augmented sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from datasets.batch import Polygons, Sample
from datasets.errors import DataError
from datasets.extreme_points import extreme_points_of_boxes
from datasets.images import read_image
from datasets.index import AnnotationIndex

ExtremeSource = Literal["masks", "box_sides"]

# The augmentation of an image, the numbers that a batch shares and the order of images (see epoch_plan.py) use different
# streams of one seed.
AUGMENTATION_STREAM, BATCH_STREAM = 1, 3


class SampleKey(NamedTuple):
    """The place of a sample in the training.

    Attributes:
        epoch: from 0.
        image: number of the image in the index.
        repetition: how often the epoch contains the image earlier. Each repetition is augmented differently.
        step: of the batch, with which the sample shares random numbers; None for none.
    """

    epoch: int
    image: int
    repetition: int = 0
    step: int | None = None


class DetectionDataset:
    """Samples of one split.

    A sample depends only on the seed and its ``SampleKey``, not on the order of calls or the process.

    Args:
        index: the annotations.
        transform: called with (sample, generator, generator of the batch or None).
        seed: seed of the augmentation.
        extreme_source: source of the extreme points: ``masks``, ``box_sides`` (the middles of the boxes'
            sides, an approximation for data without masks), or None for no extreme points.
        federated: add the classes that were verified in each image (LVIS), so that losses can ignore the others.
        cache_images: keep decoded images in memory, for small data sets.

    Raises:
        DataError: the data set has no masks for the requested extreme points.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        transform: Callable[[Sample, np.random.Generator, np.random.Generator | None], Sample],
        *,
        seed: int = 0,
        extreme_source: ExtremeSource | None = None,
        federated: bool = False,
        cache_images: bool = False,
    ) -> None:
        if extreme_source not in (None, "masks", "box_sides"):
            raise DataError(f"extreme_source is 'masks', 'box_sides' or null, not {extreme_source!r}")
        if extreme_source == "masks" and not index.has_masks:
            raise DataError(
                f"{index.sources[0]} has no masks, so objects have no extreme points; "
                "set dataset.extreme_source=box_sides to take the middles of the boxes' sides instead"
            )
        self.index = index
        self.transform = transform
        self.seed = seed
        self.extreme_source = extreme_source
        self.federated = federated
        self._images: dict[int, np.ndarray] | None = {} if cache_images else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: SampleKey | tuple[int, int]) -> Sample:
        epoch, image, repetition, step = SampleKey(*key)
        own = [AUGMENTATION_STREAM, self.seed, epoch, image]
        # Without repetition the numbers are those of a training without repeat factors.
        rng = np.random.default_rng([*own, repetition] if repetition else own)
        shared = None if step is None else np.random.default_rng([BATCH_STREAM, self.seed, step])
        sample = self.transform(self.unchanged(image), rng, shared)
        if self.extreme_source == "box_sides":
            sample.extreme_points = extreme_points_of_boxes(sample.boxes)
        return sample

    def unchanged(self, i: int) -> Sample:
        """Image i and its annotations before any transform."""
        index, chosen = self.index, self.index.annotations(i)
        masks = self.extreme_source == "masks"
        return Sample(
            image=self._image(i),
            boxes=index.boxes[chosen].astype(np.float32),
            labels=index.labels[chosen].astype(np.int64),
            ignored=index.crowd[chosen] | index.difficult[chosen],
            image_id=int(index.image_ids[i]),
            original_size=(int(index.heights[i]), int(index.widths[i])),
            matrix=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
            extreme_points=index.extreme_points[chosen] if masks else None,
            polygons=self._polygons(chosen) if masks else None,
            verified=index.verified(i) if self.federated else None,
        )

    def _polygons(self, chosen: slice) -> Polygons:
        index = self.index
        parts = index.annotation_part_offsets[chosen.start : chosen.stop + 1]
        vertices = index.part_offsets[parts[0] : parts[-1] + 1]
        return Polygons(
            index.polygon_points[vertices[0] : vertices[-1]], vertices - vertices[0], parts - parts[0]
        )

    def _image(self, i: int) -> np.ndarray:
        if self._images is not None and i in self._images:
            return self._images[i]
        image = read_image(self.index, i)
        if self._images is not None:
            image.setflags(write=False)
            self._images[i] = image
        return image
