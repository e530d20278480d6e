"""Classification losses for detectors, usable without the rest of the project.

``sigmoid_focal_loss``, ``class_balanced_focal_loss``, ``adaptive_focal_loss`` and the module ``AdaptiveFocalLoss`` take
dense targets and fit any training loop. The detectors use ``ClassificationLoss``, a chain of weightings on sparse targets.
The equations are in ``gradient``, the fused operation is in ``primitive``, and a slow, obvious version of it is in
``reference``.
"""

from afl.losses.acsl import AdaptiveClassSuppression
from afl.losses.adaptive_gradient import AdaptiveGradient, ScheduledGradient
from afl.losses.anchored_gradient import AnchoredGradient
from afl.losses.ap_loss import APLoss
from afl.losses.asymmetric import AsymmetricFocus
from afl.losses.bags import BalancedGroups
from afl.losses.class_weights import ClassWeights, class_balanced_weights
from afl.losses.classification_loss import ClassificationLoss
from afl.losses.classifier_retraining import ClassifierRetraining
from afl.losses.contract import MapInfo, MapLoss
from afl.losses.dr_loss import DRLoss
from afl.losses.efl import EqualizedFocus
from afl.losses.eql import Equalization
from afl.losses.eqlv2 import EqualizationV2
from afl.losses.errors import UndefinedPair
from afl.losses.federated import FederatedSampling
from afl.losses.fracal import FractalCalibration
from afl.losses.frequency_weights import FrequencyWeights
from afl.losses.functional import (
    AdaptiveFocalLoss,
    adaptive_focal_loss,
    class_balanced_focal_loss,
    sigmoid_focal_loss,
)
from afl.losses.ghm import GradientHarmonizing
from afl.losses.gradient_balance import GradientBalance
from afl.losses.image_repeats import ImageRepeats
from afl.losses.libra import IouBalancedSampling
from afl.losses.loce import EquilibriumMargin
from afl.losses.logit_shift import ClassMargin, LogitShift, logit_shift
from afl.losses.loss_warmup import LossWarmUp
from afl.losses.ohem import OnlineHardExampleMining
from afl.losses.pisa import PrimeSampleAttention
from afl.losses.positive_scale import PositiveScale
from afl.losses.posthoc import PostHocAdjustment, TauNormalization
from afl.losses.qfl import QualityFocalLoss
from afl.losses.relative_cap import RelativeCap
from afl.losses.repeat_factors import RepeatFactorSampling
from afl.losses.sampling_free import ElementCounter, SamplingFree, count_elements
from afl.losses.seesaw import Seesaw
from afl.losses.ssd import HardNegativeMining
from afl.losses.target import PADDING, ClassificationTarget
from afl.losses.tempered_weights import TemperedClassWeights
from afl.losses.vfl import VarifocalLoss
from afl.losses.weighting import ElementWeights, Weighting

__all__ = [
    "PADDING",
    "APLoss",
    "AdaptiveClassSuppression",
    "AdaptiveFocalLoss",
    "AdaptiveGradient",
    "AnchoredGradient",
    "AsymmetricFocus",
    "BalancedGroups",
    "ClassMargin",
    "ClassWeights",
    "ClassificationLoss",
    "ClassificationTarget",
    "ClassifierRetraining",
    "DRLoss",
    "ElementCounter",
    "ElementWeights",
    "Equalization",
    "EqualizationV2",
    "EqualizedFocus",
    "EquilibriumMargin",
    "FederatedSampling",
    "FractalCalibration",
    "FrequencyWeights",
    "GradientBalance",
    "GradientHarmonizing",
    "HardNegativeMining",
    "ImageRepeats",
    "IouBalancedSampling",
    "LogitShift",
    "LossWarmUp",
    "MapInfo",
    "MapLoss",
    "OnlineHardExampleMining",
    "PositiveScale",
    "PostHocAdjustment",
    "PrimeSampleAttention",
    "QualityFocalLoss",
    "RelativeCap",
    "RepeatFactorSampling",
    "SamplingFree",
    "ScheduledGradient",
    "Seesaw",
    "TauNormalization",
    "TemperedClassWeights",
    "UndefinedPair",
    "VarifocalLoss",
    "Weighting",
    "adaptive_focal_loss",
    "class_balanced_focal_loss",
    "class_balanced_weights",
    "count_elements",
    "logit_shift",
    "sigmoid_focal_loss",
]
