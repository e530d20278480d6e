"""Six detectors from scratch, on one backbone and one contract (``detectors.contract``)."""

from detectors.backbone import ResNetBackbone, TinyBackbone
from detectors.centernet import CenterNet
from detectors.cornernet import CornerNet
from detectors.efficientnet_lite import EfficientNetLiteBackbone
from detectors.extremenet import ExtremeNet
from detectors.fcos import FCOS
from detectors.objectbox import ObjectBox
from detectors.retinanet import RetinaNet

__all__ = [
    "CenterNet",
    "CornerNet",
    "EfficientNetLiteBackbone",
    "ExtremeNet",
    "FCOS",
    "ObjectBox",
    "ResNetBackbone",
    "RetinaNet",
    "TinyBackbone",
]
