"""Random colour changes of uint8 RGB images, in one pass over the pixels."""

from __future__ import annotations

import cv2
import numpy as np

# ITU-R BT.601 luma, as in torchvision's and Pillow's grey images.
LUMA = np.array([0.299, 0.587, 0.114])

# Principal components of ImageNet's RGB values on [0, 1] (Krizhevsky et al. 2012), the columns of _AXES.
_VARIANCES = np.array([0.2175, 0.0188, 0.0045])
_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class ColorJitter:
    """Brightness, contrast and saturation in random order, then ImageNet's PCA lighting.

    Each change is affine in the colour of a pixel, so all four are one 3 x 4 matrix. Values are rounded and clipped once,
    after all changes.

    Args:
        brightness, contrast, saturation: each factor is drawn from [1 - a, 1 + a].
        lighting: standard deviation of the amounts added along the principal components; 0.1 in CornerNet,
            CenterNet and ExtremeNet.
    """

    def __init__(
        self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, lighting: float = 0.0
    ) -> None:
        self.amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        self.lighting = lighting

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A recoloured copy of an image (H, W, 3) uint8 RGB."""
        mean = np.asarray(cv2.mean(image)[:3])
        factors = {name: rng.uniform(1 - amount, 1 + amount) for name, amount in self.amounts.items()}
        names = list(factors)
        matrix = color_matrix([(names[k], factors[names[k]]) for k in rng.permutation(3)], mean)
        if self.lighting:
            matrix[:, 3] += 255 * _AXES @ (rng.normal(0.0, self.lighting, size=3) * _VARIANCES)
        return cv2.transform(image, matrix)


def color_matrix(changes: list[tuple[str, float]], mean: np.ndarray) -> np.ndarray:
    """Matrix (3, 4) of successive colour changes, for an image of the given mean colour (3,).

    brightness f: x -> f x;  saturation f: x -> f x + (1 - f) luma(x);
    contrast f: x -> f x + (1 - f) luma of the mean colour.
    """
    linear, shift = np.eye(3), np.zeros(3)
    for name, factor in changes:
        if name == "brightness":
            linear, shift = factor * linear, factor * shift
        elif name == "contrast":
            grey = LUMA @ (linear @ mean + shift)
            linear, shift = factor * linear, factor * shift + (1 - factor) * grey
        elif name == "saturation":
            mix = factor * np.eye(3) + (1 - factor) * LUMA
            linear, shift = mix @ linear, mix @ shift
        else:
            raise ValueError(f"unknown colour change {name!r}: brightness, contrast or saturation")
    return np.concatenate([linear, shift[:, None]], axis=1)
