"""Classification losses for detectors, usable without the rest of the project.

For one's own training loop: ``sigmoid_focal_loss``, ``class_balanced_focal_loss``, ``adaptive_focal_loss``
and the module ``AdaptiveFocalLoss`` take dense targets. The detectors use ``ClassificationLoss``, a chain of
weightings on sparse targets. The equations are in ``gradient``, the fused operation in ``primitive``, what it
should compute, slow and obvious, in ``reference``.
"""

from afl.losses.adaptive_gradient import AdaptiveGradient, ScheduledGradient
from afl.losses.class_weights import ClassWeights, class_balanced_weights
from afl.losses.classification_loss import ClassificationLoss
from afl.losses.functional import (
    AdaptiveFocalLoss,
    adaptive_focal_loss,
    class_balanced_focal_loss,
    sigmoid_focal_loss,
)
from afl.losses.gradient_balance import GradientBalance
from afl.losses.positive_scale import PositiveScale
from afl.losses.target import PADDING, ClassificationTarget
from afl.losses.weighting import ElementWeights, MapInfo, Weighting

__all__ = [
    "PADDING",
    "AdaptiveFocalLoss",
    "AdaptiveGradient",
    "ClassWeights",
    "ClassificationLoss",
    "ClassificationTarget",
    "ElementWeights",
    "GradientBalance",
    "MapInfo",
    "PositiveScale",
    "ScheduledGradient",
    "Weighting",
    "adaptive_focal_loss",
    "class_balanced_focal_loss",
    "class_balanced_weights",
    "sigmoid_focal_loss",
]
