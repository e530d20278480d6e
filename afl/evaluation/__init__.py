"""Official detection metrics with one interface: ``reset``, ``process``, ``evaluate``."""

from afl.evaluation.coco_evaluator import CocoEvaluator
from afl.evaluation.confusion import BACKGROUND, confusion_by_group
from afl.evaluation.evaluator import METRICS, Evaluator
from afl.evaluation.groups import GROUP_NAMES, group_means
from afl.evaluation.lvis_evaluator import LvisEvaluator
from afl.evaluation.voc_evaluator import VocEvaluator

__all__ = [
    "BACKGROUND",
    "GROUP_NAMES",
    "METRICS",
    "CocoEvaluator",
    "Evaluator",
    "LvisEvaluator",
    "VocEvaluator",
    "confusion_by_group",
    "group_means",
]
