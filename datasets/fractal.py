"""The spread of the objects of each class over the image: the fractal dimension of their centres, by counting boxes.

Alexandridis et al., Fractal Calibration for Long-Tailed Object Detection, CVPR 2025, section 3.3. For a grid of g x g equal cells over
the image, N_g is the number of cells with the centre of an object of the class in any training image. The dimension is the slope of
ln N_g over ln g, by least squares, and at least 1: about 1 for objects along a line or in one place, 2 for objects everywhere.
"""

from __future__ import annotations

import numpy as np

from datasets.index import AnnotationIndex

LARGEST_GRID = 64
FEWEST_OBJECTS = 4


def fractal_dimensions(index: AnnotationIndex) -> np.ndarray:
    """(C,) float64 dimension of each class, at least 1; 1 for a class with fewer than 4 objects.

    As in the official code, a class takes part with the grids that have at most as many cells as the class has objects, up to 64 x 64.
    Crowd regions and difficult objects do not count.
    """
    kept = index.counted
    image, labels, boxes = index.image_numbers[kept], index.labels[kept].astype(np.int64), index.boxes[kept]
    x = (boxes[:, 0] + boxes[:, 2]) / 2 / index.widths[image]
    y = (boxes[:, 1] + boxes[:, 3]) / 2 / index.heights[image]
    objects = np.bincount(labels, minlength=index.num_classes)
    largest = np.minimum(np.sqrt(objects).astype(int), LARGEST_GRID)
    grids = np.arange(1, max(largest.max(initial=0), 1) + 1)
    filled = np.zeros((len(grids), index.num_classes))
    for row, size in enumerate(grids):
        own = largest[labels] >= size
        column, line = (np.clip((place[own] * size).astype(np.int64), 0, size - 1) for place in (x, y))
        cells = np.unique((labels[own] * size + line) * size + column) // size**2
        filled[row] = np.bincount(cells, minlength=index.num_classes)
    dimension = np.ones(index.num_classes)
    for label in np.flatnonzero(objects >= FEWEST_OBJECTS):
        used = largest[label]
        slope, _ = np.polyfit(np.log(grids[:used]), np.log(filled[:used, label]), 1)
        dimension[label] = max(slope, 1.0)
    return dimension
