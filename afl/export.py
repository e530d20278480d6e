"""Exports the network of a detector to ONNX, for runtimes without PyTorch.

The exported network computes the outputs of the detector's ``forward`` from pixels: normalisation, backbone, pyramid and heads. It
does not include decoding (peaks, grouping, NMS), which differs between the detectors and depends on the data. The docstrings of
``forward`` describe each output; sizes of levels are left out, because they follow from the image. Metadata of the file: ``classes``,
``category_ids``, ``detector``, ``strides``, ``outputs`` and ``input``, as JSON.

This module needs onnx, onnxscript and, for the check, onnxruntime (the extra ``export``).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from afl.predict import Predictor
from afl.tracking import write_bytes
from afl.training.inputs import normalise
from detectors.corner_pooling import WALKS, CornerPooling, pool_by_doubling

DIVISOR = 32
INPUT = "images"
# Longest side of a map for which exported corner pooling is exact, in cells: images of 8192 pixels at stride 4.
LONGEST_WALK = 2048
# So large that every level of the pyramid has several locations, because the exporter treats a side of one as a constant.
TRACED = (2, 3, 320, 384)
# Other batches and sizes at which the file is compared with PyTorch.
CHECKED = ((2, 3, 320, 384), (1, 3, 64, 96), (3, 3, 256, 160))


class ExportError(RuntimeError):
    """The network cannot be exported, or the exported file gives other results."""


class RawNetwork(nn.Module):
    """uint8 RGB images (B, 3, H, W), H and W multiples of 32, to the floating-point outputs of a detector, in their order.

    Args:
        detector: copied; in evaluation mode, on the CPU.

    Attributes:
        names: of the outputs, in the order in which they are returned.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).cpu().float().eval()
        # `forward` does not use the losses. The exporter writes their names as Python code, where "class" is a keyword.
        self.detector.classification = nn.ModuleDict()
        for module in self.detector.modules():
            if isinstance(module, CornerPooling):
                # ONNX has no running maximum.
                one, other = module.pools
                module.pools = partial(_doubled, *WALKS[one]), partial(_doubled, *WALKS[other])
        with torch.no_grad():
            self.names = list(self._outputs(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        # The numbers of locations of each level follow from the image's size and are not outputs of the network.
        outputs = self.detector(normalise(images, channels_last=False))
        return {name: value for name, value in outputs.items() if value.is_floating_point()}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._outputs(images).values())


def _doubled(axis: int, towards_start: bool, x: Tensor) -> Tensor:
    return pool_by_doubling(x, axis, towards_start, LONGEST_WALK)


def export_onnx(predictor: Predictor, path: Path, size: Sequence[int] | None = None) -> list[str]:
    """Write the raw network of ``predictor`` to ``path``.

    Args:
        size: fixed height and width of all images, for runtimes that need fixed sizes; None for any multiples of 32. The number
            of images is never fixed.

    Returns:
        Names of the outputs, in their order.

    Raises:
        ExportError: a package is missing, or the exporter does not support an operation of this network.
        ValueError: the size is not two multiples of 32.
    """
    require("onnx", "onnxscript")
    largest = LONGEST_WALK * 4
    if size is not None and (len(size) != 2 or any(s < DIVISOR or s % DIVISOR or s > largest for s in size)):
        raise ValueError(
            f"size is {list(size)}; it must be height and width, multiples of {DIVISOR} up to {largest}, such as [512,512]"
        )
    network = RawNetwork(predictor.detector)
    example = torch.zeros(TRACED if size is None else (2, 3, *size), dtype=torch.uint8)
    shapes = {0: torch.export.Dim("batch", min=1, max=4096)}
    if size is None:
        shapes |= {
            axis: DIVISOR * torch.export.Dim(name, min=1, max=largest // DIVISOR)
            for axis, name in ((2, "height_32"), (3, "width_32"))
        }
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=[INPUT],
                output_names=network.names,
                verbose=False,
            )
    except Exception as error:  # the exporter's own exceptions are private, and so is what it meets inside
        reasons = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise ExportError(
            f"{predictor.config.cell.detector} cannot be exported: {reasons[0] if reasons else type(error).__name__}"
        ) from error
    program.model.metadata_props.update(
        {
            "classes": json.dumps(list(predictor.names), ensure_ascii=False),
            "category_ids": json.dumps(list(predictor.category_ids)),
            "detector": json.dumps(predictor.config.cell.detector),
            "strides": json.dumps(
                list(getattr(predictor.detector, "strides", None) or [predictor.detector.stride])
            ),
            "outputs": json.dumps(network.names),
            "input": json.dumps(
                "uint8 RGB (B, 3, H, W), padded at the bottom and the right to multiples of 32"
            ),
        }
    )
    write_bytes(path, program.model_proto.SerializeToString())
    return network.names


@torch.no_grad()
def check_onnx(
    predictor: Predictor, path: Path, size: Sequence[int] | None = None, tolerance: float = 1e-3
) -> dict[str, float]:
    """Run ``path`` with onnxruntime and the detector with PyTorch on the same random images.

    Args:
        size: the fixed size that was exported; None: several sizes and batches are compared.
        tolerance: largest difference allowed, absolute below 1 and relative above.

    Returns:
        Largest absolute difference of each output.

    Raises:
        ExportError: onnxruntime is missing, or an output has another shape or differs by more than ``tolerance``.
    """
    require("onnxruntime")
    import onnxruntime

    detector = copy.deepcopy(predictor.detector).cpu().float().eval()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    generator = np.random.default_rng(0)
    largest = dict.fromkeys(names, 0.0)
    for shape in CHECKED if size is None else ((2, 3, *size), (1, 3, *size)):
        images = generator.integers(0, 256, shape, dtype=np.uint8)
        expected = detector(normalise(torch.from_numpy(images), channels_last=False))
        for name, value in zip(names, session.run(None, {INPUT: images}), strict=True):
            wanted = expected[name].numpy()
            if value.shape != wanted.shape:
                raise ExportError(
                    f"{path}: {name} has shape {value.shape} for images {shape}, PyTorch {wanted.shape}"
                )
            difference = np.abs(value - wanted)
            if (difference > tolerance * np.maximum(1, np.abs(wanted))).any():
                raise ExportError(
                    f"{path}: {name} differs from PyTorch by {difference.max():.2g} on images {shape}"
                )
            largest[name] = max(largest[name], float(difference.max(initial=0.0)))
    return largest


def require(*packages: str) -> None:
    """Raise ExportError if one of the packages is not installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: .venv/bin/uv pip install --python .venv/bin/python "
            "-r pyproject.toml --extra export"
        )


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's progress and its messages about internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
