"""Losses on shifted logits: a margin for every class, set by its count.

    z_c + delta_c    on all elements of class c, positives and negatives; the detector's scores stay sigmoid(z_c)

A negative delta demands larger logits of a class's positives and asks less of its negatives, so rare classes get the larger
margin. The shifts of three papers, n_c instances of class c and n of all:

    logit adjustment    tau (ln n_c - ln max n)     Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, eq. 10
    balanced            ln n_c - ln(n - n_c)        Ren et al., Balanced Meta-Softmax, NeurIPS 2020, theorem 1 with two classes
    effective margin    (ln n_c - ln(n - n_c)) / 4  Cho & Kraehenbuehl, Long-Tail Detection with Effective Class-Margins, ECCV 2022

Logit adjustment and Balanced Softmax are stated for a softmax, where a constant added to all shifts changes nothing. In a sigmoid
head it would shift positives against negatives. Logit adjustment therefore gives the most frequent class a shift of 0, a choice of
ours. The balanced form is the softmax of two classes, class c against the objects of all others; background is not counted. The
effective class-margin loss scores w+ e^f / (w+ e^f + w- e^-f) with w+ / w- = (n_c / (n - n_c))^(1/4), from the optimal margins of
LDAM; with z = 2 f that is the shift above.

LDAM (Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019, eq. 13) shifts positives
alone, by -margin (min n / n_c)^(1/4), so that the rarest class has the whole margin. Default: a margin of 2, ours; the paper has 0.5
on cosines times a scale of 30, which a head without normalised features does not have.

Defaults: tau = 1. The element loss is the head's focal loss. A class without instances counts as one with one. Anchors and grids:
all locations. Heat maps: all pixels, with their (1 - Y)^4. A map of one class has no shift.

Differs from the papers: sigmoid instead of softmax; effective class-margins without the paper's factor of each class in the
bound; LDAM without normalised features. 16-bit logits leave the fast table of the CPU, which knows no classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import Weighting

Form = Literal["adjustment", "balanced", "effective_margin"]


def logit_shift(instances_per_class: Tensor, form: Form, tau: float = 1.0) -> Tensor:
    """The shift of each class's logits.

    Args:
        instances_per_class: (C,) training instances; a class without instances counts as one with one.
        form: ``adjustment``, ``balanced`` or ``effective_margin``.
        tau: factor of the shift.

    Returns:
        (C,) float64; 0 for a single class.
    """
    n = instances_per_class.double().clamp(min=1.0)
    if len(n) == 1:
        return torch.zeros_like(n)
    share = n.log() - n.max().log() if form == "adjustment" else n.log() - (n.sum() - n).log()
    return tau * (share / 4 if form == "effective_margin" else share)


class LogitShift(Weighting):
    """Shifts the logits of every class by its count.

    Args:
        info: the map; its ``instances_per_class`` are counted.
        form: ``adjustment``, ``balanced`` or ``effective_margin``.
        tau: factor of the shift, not negative.
    """

    shift: Tensor

    def __init__(self, info: MapInfo, *, form: Form = "adjustment", tau: float = 1.0) -> None:
        super().__init__()
        if form not in ("adjustment", "balanced", "effective_margin") or tau < 0:
            raise ValueError(
                f"form is {form!r} and tau {tau}: adjustment, balanced or effective_margin, and not negative."
            )
        self.register_buffer("shift", logit_shift(info.instances_per_class, form, tau))

    def prepared(self, target: ClassificationTarget) -> ClassificationTarget:
        return replace(target, shift=self.shift if target.shift is None else target.shift + self.shift)

    def statistics(self) -> dict[str, float | Tensor]:
        return {"shift_min": self.shift.min(), "shift_max": self.shift.max()}


class ClassMargin(Weighting):
    """LDAM's margin: lowers the logits of positives by ``margin`` (min n / n_c)^(1/4).

    Args:
        info: the map; its ``instances_per_class`` are counted.
        margin: of the rarest class, in logits, not negative.
    """

    margin: Tensor

    def __init__(self, info: MapInfo, *, margin: float = 2.0) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin is {margin}, but it must not be negative.")
        n = info.instances_per_class.double().clamp(min=1.0)
        of_class = margin * (n.min() / n) ** 0.25
        self.register_buffer("margin", torch.zeros_like(n) if len(n) == 1 else of_class)

    def prepared(self, target: ClassificationTarget) -> ClassificationTarget:
        own = -self.margin[target.positive_class]
        earlier = target.positive_shift
        return replace(target, positive_shift=own if earlier is None else earlier + own)

    def statistics(self) -> dict[str, float | Tensor]:
        return {"margin_min": self.margin.min(), "margin_max": self.margin.max()}
