"""Classifier retraining (cRT), the second of two stages.

Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020, section 4.1: after training, the
class layer is initialised again and trained alone, with class-balanced sampling, on the fixed representation.

The link changes no weight. It requests that training starts from a finished run and trains nothing but the last layers of the
classification maps. These layers start like those of a fresh head: weights of standard deviation 0.01, and the bias of the head's
prior. The balanced sampling is another link, ``RepeatFactorSampling``. Anchors, grids and heat maps alike.

The first stage is the run that ``initial_weights`` names. Without it, the first stage is the run of ``loss=fl`` with the same settings,
which is trained first if it is not finished. Default: the second stage is as long as the first.

Differs from the paper: one image has objects of several classes, so images cannot be drawn by class, and repeat factors replace
class-balanced sampling; the second stage is as long as the first instead of a ninth of it. Normalisation layers keep their running
statistics, and in training they normalise by the batch as before.
"""

from __future__ import annotations

from afl.losses.contract import MapInfo
from afl.losses.weighting import Weighting


class ClassifierRetraining(Weighting):
    """Requests that the class layers alone are trained, starting from a finished run.

    Args:
        info: the map.
    """

    class_layers_only = True

    def __init__(self, info: MapInfo) -> None:
        super().__init__()
