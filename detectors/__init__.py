"""Detectors from scratch, on one backbone and one contract (``detectors.contract``)."""

from detectors.backbone import ResNetBackbone, TinyBackbone
from detectors.centernet import CenterNet
from detectors.retinanet import RetinaNet

__all__ = ["CenterNet", "ResNetBackbone", "RetinaNet", "TinyBackbone"]
