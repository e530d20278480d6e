"""Fractal calibration (FRACAL): at evaluation, scores follow how often a class occurs and how widely it spreads over the image.

Alexandridis et al., Fractal Calibration for Long-Tailed Object Detection, CVPR 2025; the form of the official code for sigmoid heads.

    score_c = sigmoid(z_c) sigmoid(z_c + a_c + b_c)
    a_c = -log10(C n_c / n)                         n_c instances of class c, n of all C classes
    b_c = -log10(C phi_c^lambda / sum phi^lambda)   phi_c fractal dimension of the class, between 1 and 2

Training is that of the rest of the chain. A rare class, and one whose objects are always in the same part of the image, score higher
than a frequent one that is everywhere. The first factor keeps the background low. The product is written back as a logit, so that
thresholds and decoding see it as usual. Default: lambda = 2 of the official code. A class without instances counts as if it had one.

Anchors, grids and heat maps alike: every class's logits change, on corners and extreme points in every map. A map of one class does
not change.

Differs from the official code: a_c uses shares of instances. That code has this as an option; its default is shares of images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.gradient import computing_type
from afl.losses.weighting import Weighting


class FractalCalibration(Weighting):
    """Multiplies scores by a second sigmoid, shifted by frequency and fractal dimension, at evaluation.

    Args:
        info: the map; evaluation needs its ``fractal_dimension``.
        power: lambda, the exponent of the fractal dimension, not negative.
    """

    def __init__(self, info: MapInfo, *, power: float = 2.0) -> None:
        super().__init__()
        if power < 0:
            raise ValueError(f"power is {power}, but it must not be negative.")
        self.info, self.power = info, float(power)

    @property
    def rescoring(self) -> Callable[[Tensor], Tensor] | None:
        """Logits (B, A C, ...) of the last layer to those of the calibrated scores, of the same type."""
        return None if self.info.num_classes == 1 else partial(self._rescored, self._shift())

    @staticmethod
    def _rescored(shift: Tensor, layer_logits: Tensor) -> Tensor:
        z = layer_logits.to(computing_type(layer_logits.dtype))
        shift = shift.to(z).repeat(z.shape[1] // len(shift))
        log_score = F.logsigmoid(z) + F.logsigmoid(z + shift.view(-1, *[1] * (z.ndim - 2)))
        rest = -torch.expm1(log_score)
        return (log_score - rest.clamp(min=torch.finfo(z.dtype).tiny).log()).to(layer_logits.dtype)

    def _shift(self) -> Tensor:
        """(C,) float64 a_c + b_c."""
        if self.info.fractal_dimension is None:
            raise ValueError(
                "fracal needs to know where the training objects of each class are, which this checkpoint does not say: evaluate the "
                "run with its data set (python -m scripts.evaluate run=FOLDER)."
            )
        n = self.info.instances_per_class.double().clamp(min=1.0)
        spread = self.info.fractal_dimension().to(n) ** self.power
        a, b = ((len(n) * part / part.sum()).log10() for part in (n, spread))
        return -(a + b)
