"""Precision and recall by class, and the COCO metrics computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afl.evaluation.groups import group_means


@dataclass(frozen=True)
class Curves:
    """Interpolated precision and final recall at T overlaps, for all, small, medium and large objects.

    Classes are in the order of ``GroundTruth.names``; -1 marks a class without objects of that size.

    Attributes:
        precision: (T, 101, C, 4) at recalls 0, 0.01, ... 1.
        recall: (T, C, 4).
        overlaps: (T,) IoU thresholds.
    """

    precision: np.ndarray
    recall: np.ndarray
    overlaps: np.ndarray

    def row_of(self, percent: int) -> int:
        """The index of an overlap that is given in percent."""
        return [round(100 * float(overlap)) for overlap in self.overlaps].index(percent)


def summarize(curves: Curves, names: Sequence[str], groups: Sequence[str] | None) -> dict:
    """AP, AP50, AP75, AP by object size, by frequency group and by class, and AR; None where undefined.

    Args:
        names, groups: (C,) class names and frequency groups.
    """
    precision, recall = curves.precision, curves.recall
    per_class = {name: _mean(precision[:, :, c, 0]) for c, name in enumerate(names)}
    return {
        "AP": _mean(precision[..., 0]),
        "AP50": _mean(precision[curves.row_of(50), ..., 0]),
        "AP75": _mean(precision[curves.row_of(75), ..., 0]),
        "AP_s": _mean(precision[..., 1]),
        "AP_m": _mean(precision[..., 2]),
        "AP_l": _mean(precision[..., 3]),
        **group_means(per_class, groups),
        "AR": _mean(recall[..., 0]),
        "per_class": per_class,
    }


def _mean(values: np.ndarray) -> float | None:
    """Mean of the entries that are defined (not -1)."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None
