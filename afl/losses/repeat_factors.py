"""Repeat-factor sampling as a link, so that it combines with any loss.

    r_i = max over the classes c of image i of max(1, sqrt(t / f_c))        Gupta et al., LVIS, CVPR 2019, section 5.2

An epoch contains image i r_i times on average. f_c is the share of training images that show class c. With ``count_instances``
it is the geometric mean of that share and the share of instances (Yaman et al., Instance-Aware Repeat Factor Sampling, 2023).
The link changes no weight and only requests this order of images, so it means the same on anchors, grids and heat maps. The number
of steps of a run does not change.

Default: t is 100 images over the number of training images. On LVIS, with 100,170 images, this is the published t of 0.001, and
LVIS's frequent classes are in more than 100 images.

Differs from the official code: the fraction of r_i is drawn again in every epoch, as in detectron2. The setting
``dataset.repeat_threshold`` requests the same; a run with both is refused.
"""

from __future__ import annotations

from afl.losses.contract import MapInfo
from afl.losses.image_repeats import ImageRepeats
from afl.losses.weighting import Weighting


class RepeatFactorSampling(Weighting):
    """Requests repeated images of rare classes.

    Args:
        info: the map.
        images: t times the number of training images, positive; classes in fewer images are repeated.
        count_instances: whether the frequency also counts instances.
    """

    def __init__(self, info: MapInfo, *, images: float = 100.0, count_instances: bool = False) -> None:
        super().__init__()
        if images <= 0:
            raise ValueError(
                f"images is {images}, but the threshold of repeat-factor sampling must be positive."
            )
        self.image_repeats = ImageRepeats(float(images), count_instances)
