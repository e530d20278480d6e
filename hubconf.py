"""Entry points of torch.hub.

    import torch

    predictor = torch.hub.load("OWNER/REPOSITORY", "detector", "fcos-shapes-afl")        # or a checkout: source="local"
    found = predictor("street.jpg")            # boxes (n, 4) xyxy in pixels, scores (n,), labels (n,)
    torch.hub.load("OWNER/REPOSITORY", "zoo")  # the names

The top-level package ``datasets`` of this project has the same name as Hugging Face's package, so do not install both into one environment.
"""

from __future__ import annotations

from typing import Any

dependencies = ["torch", "torchvision", "hydra", "omegaconf", "safetensors", "cv2", "pycocotools", "scipy"]


def zoo() -> list[str]:
    """Names of the trained detectors that come with the repository."""
    from afl.zoo import names

    return names()


def detector(name: str = "fcos-shapes-afl", device: str = "auto", **arguments: Any):
    """A trained detector that is called with images, as :func:`afl.predict.load_predictor` returns it.

    Args:
        name: one of :func:`zoo`.
        device: ``auto`` (CUDA if available), or a torch device name.
        arguments: further arguments of ``load_predictor``.
    """
    from afl.predict import load_predictor

    return load_predictor(f"zoo:{name}", device=device, **arguments)
