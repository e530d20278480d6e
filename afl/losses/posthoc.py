"""Post-hoc remedies: they change the class layer of a trained detector for evaluation; training is that of the rest of the chain.

Logit adjustment and NorCal raise the scores of rare classes by their counts:

    score_c = sigmoid(z_c - tau (ln n_c - ln max n))

    tau = 1      n_c instances: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, eq. 9
    tau = 0.6    n_c training images: Pan et al., On Model Calibration for Long-Tailed Object Detection and Instance Segmentation
                 (NorCal), NeurIPS 2021, eq. 4, where tau is called gamma

NorCal divides exp(z_c) by n_c^gamma and normalises over the classes and an unchanged background. A sigmoid has one class and its
background, so the same division shifts its logit. Both are defined for a softmax. Here the most frequent class keeps its scores, which
is our choice. The shift goes into the bias of the class layer, so it acts before thresholds, candidates, suppression and the cap per
image.

tau-normalisation (Kang et al., Decoupling Representation and Classifier, ICLR 2020, section 4.3) makes the weight vectors of all
classes more alike in length:

    w_c <- w_c (m / |w_c|)^tau,    m the geometric mean of the lengths

Default: tau = 0.7, the paper's for ImageNet-LT. The factor m keeps the size of the logits, which a sigmoid needs and a softmax does
not. The bias does not change. An anchor head has one vector for each anchor and class.

AP of one class depends only on the order of its scores, so a shift of its logits acts only through what classes share: thresholds,
the number of candidates, and the cap per image. ``AP_fixed`` shows what is left without the cap. Anchors, grids and heat maps alike:
on corners and extreme points every map changes. A map of one class does not change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.logit_shift import logit_shift
from afl.losses.weighting import Weighting


class PostHocAdjustment(Weighting):
    """Subtracts tau (ln n_c - ln max n) from the logits at evaluation.

    Args:
        info: the map, whose training instances are counted.
        tau: not negative.
        count_images: whether n_c counts training images with the class instead of instances.
    """

    shift: Tensor

    def __init__(self, info: MapInfo, *, tau: float = 1.0, count_images: bool = False) -> None:
        super().__init__()
        if tau < 0:
            raise ValueError(f"tau is {tau}, but it must not be negative.")
        # Not saved: the link can be added to the evaluation of any run.
        counts = info.images_per_class if count_images else info.instances_per_class
        shift = -logit_shift(counts, "adjustment", tau)
        self.register_buffer("shift", shift.float(), persistent=False)

    def calibrated(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight, bias + self.shift.to(bias).repeat(len(bias) // len(self.shift))

    def statistics(self) -> dict[str, float | Tensor]:
        return {"shift_max": self.shift.max()}


class TauNormalization(Weighting):
    """Makes the weight vectors of the class layer more alike in length at evaluation.

    Args:
        info: the map.
        tau: 0 leaves them as they are, 1 makes them equal.
    """

    def __init__(self, info: MapInfo, *, tau: float = 0.7) -> None:
        super().__init__()
        if not 0 <= tau <= 1:
            raise ValueError(f"tau is {tau}, but it must lie in [0, 1].")
        self.tau, self.num_classes = tau, info.num_classes

    def calibrated(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if self.num_classes == 1:
            return weight, bias
        length = weight.flatten(1).norm(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
        factor = (length.log().mean() - length.log()).mul(self.tau).exp()
        return weight * factor.view(-1, *[1] * (weight.ndim - 1)), bias
