"""Post-hoc remedies: the class layer of a trained detector is changed for evaluation, and training is that of the rest of the chain.

Logit adjustment and NorCal raise the scores of rare classes by their counts, n_c instances of class c:

    score_c = sigmoid(z_c - tau (ln n_c - ln max n))

    tau = 1      Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021, eq. 9
    tau = 0.6    Pan et al., On Model Calibration for Long-Tailed Object Detection and Instance Segmentation (NorCal), NeurIPS 2021,
                 eq. 4; gamma there

NorCal divides exp(z_c) by n_c^gamma and normalises over the classes and an unchanged background. A sigmoid has one class and
background, so there it is the same shift. Both are stated for a softmax; here the most frequent class keeps its scores, a choice of
ours. The shift goes into the bias of the class layer, so it acts before thresholds, candidates, suppression and the cap per image.

tau-normalisation (Kang et al., Decoupling Representation and Classifier, ICLR 2020, section 4.3) makes the weight vectors of all
classes more alike in length:

    w_c <- w_c (m / |w_c|)^tau,    m the geometric mean of the lengths

Default: tau = 0.7, of the paper's ImageNet-LT. The factor m keeps the logits' size, which a sigmoid needs and a softmax does not;
the bias stays. An anchor head has one vector for each anchor and class.

AP of one class depends only on the order of its scores, so a shift of its logits acts only through what classes share: thresholds,
the number of candidates, and the cap per image. ``AP_fixed`` shows what is left without the cap. Anchors, grids and heat maps alike;
on corners and extreme points every map is changed. A map of one class does not change.

Not here: FRACAL (Alexandridis et al., 2024) also needs where each class occurs in the training images, which no loss knows.
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
        info: the map; its ``instances_per_class`` are counted.
        tau: not negative.
    """

    shift: Tensor

    def __init__(self, info: MapInfo, *, tau: float = 1.0) -> None:
        super().__init__()
        if tau < 0:
            raise ValueError(f"tau is {tau}, but it must not be negative.")
        # Not saved: the link can be added to the evaluation of any run.
        shift = -logit_shift(info.instances_per_class, "adjustment", tau)
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
