"""Losses on shifted logits: each class has a margin that depends on its count.

    z_c + delta_c    on all elements of class c, positives and negatives; the detector's scores stay sigmoid(z_c)

A negative delta demands larger logits of a class's positives and less of its negatives, so rare classes get the larger margin. The
shifts of three papers, with n_c instances of class c and n instances in all:

    logit adjustment    tau (ln n_c - ln max n)             Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, eq. 10
    balanced            ln n_c - ln(n - n_c)                Ren et al., Balanced Meta-Softmax, NeurIPS 2020, theorem 1, two classes
    effective margin    (ln n_c - ln((1 + b) n - n_c)) / 4  Cho & Kraehenbuehl, Long-Tail Detection with Effective Class-Margins,
                                                            ECCV 2022, with b = 6.3313 backgrounds for each object

Logit adjustment and Balanced Softmax are defined for a softmax, where a constant added to all shifts changes nothing. In a sigmoid
head it would shift positives against negatives. Logit adjustment therefore gives the most frequent class a shift of 0, which is our
choice. The balanced form is the softmax of two classes: class c, and the objects of all other classes without background.

The effective class-margin loss scores w+ e^f / (w+ e^f + w- e^-f). Its weights follow from the optimal margins of LDAM, and w+ / w- =
(n_c / (all others))^(1/4). With z = 2 f this is the shift above. The value of b is the official code's, which measured it on Mask
R-CNN's proposals; a dense head has no proposals, so it stays a constant.

LDAM (Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019, eq. 13) shifts positives alone,
by -margin (min n / n_c)^(1/4), so the rarest class has the whole margin. Default: a margin of 2, which is our choice; the paper has
0.5 on cosines times a scale of 30, and a head without normalised features has no such scale.

Defaults: tau = 1. The element loss is the head's focal loss. A class without instances counts as if it had one. Anchors and grids: all
locations. Heat maps: all pixels, with their (1 - Y)^4. A map of one class has no shift.

Differs from the papers: sigmoid instead of softmax; effective class-margins count instances instead of images, and leave out the
class weight a ln(1 + 1/a), a = (all others) / n_c, which is above 0.92 for every class; LDAM has no normalised features. With a shift,
16-bit logits on a CPU do not use the lookup table, which has no classes.
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
# Backgrounds for each object in the official code of effective class-margins.
_BACKGROUNDS = 6.3313


def logit_shift(instances_per_class: Tensor, form: Form, tau: float = 1.0) -> Tensor:
    """The shift of each class's logits.

    Args:
        instances_per_class: (C,) training instances; a class without instances counts as if it had one.
        form: ``adjustment``, ``balanced`` or ``effective_margin``.
        tau: factor of the shift.

    Returns:
        (C,) float64; 0 for a single class.
    """
    n = instances_per_class.double().clamp(min=1.0)
    if len(n) == 1:
        return torch.zeros_like(n)
    if form == "adjustment":
        return tau * (n.log() - n.max().log())
    if form == "balanced":
        return tau * (n.log() - (n.sum() - n).log())
    return tau * (n.log() - ((1.0 + _BACKGROUNDS) * n.sum() - n).log()) / 4


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
