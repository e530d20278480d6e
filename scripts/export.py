"""Export the raw network of a run to ONNX, and compare it with PyTorch.

    python -m scripts.export run=outputs/NAME                            # beside the checkpoint: checkpoints/last.onnx
    python -m scripts.export run=last.pt output=fcos.onnx size=[512,512]

Options:
    output=FILE      default: the checkpoint's path with the suffix .onnx
    size=[H,W]       a fixed image size, multiples of 32; default: any
    check=false      do not run the file with onnxruntime afterwards

The input ``images`` is uint8 RGB (B, 3, H, W); the outputs are those of the detector's ``forward``, before decoding. Needs
the extra packages onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import sys
from pathlib import Path

from afl.export import ExportError, check_onnx, export_onnx
from afl.predict import load_predictor
from afl.training.checkpoint import CheckpointError
from scripts.entry import asks_for_help, options_of, quiet_libraries

DEFAULTS = {"run": None, "output": None, "size": None, "check": True}


def main(arguments: list[str]) -> Path | None:
    """Write the file, compare, and say both; returns its path, or None where only help was wanted."""
    if asks_for_help(arguments, __doc__):
        return None
    quiet_libraries()
    options = options_of(arguments, DEFAULTS)
    if options["run"] is None:
        raise ValueError("which run? python -m scripts.export run=outputs/NAME")
    size = options["size"]
    if size is not None and not (isinstance(size, list) and all(isinstance(side, int) for side in size)):
        raise ValueError(f"size is {size!r}; it is height and width such as [512,512]")
    predictor = load_predictor(str(options["run"]), device="cpu")
    path = Path(options["output"] or predictor.checkpoint.with_suffix(".onnx"))
    names = export_onnx(predictor, path, size)
    shape = "any multiples of 32" if size is None else f"{size[0]} x {size[1]}"
    print(
        f"written: {path} ({path.stat().st_size / 1e6:.1f} MB; images of {shape}; outputs {', '.join(names)})"
    )
    if options["check"]:
        differences = check_onnx(predictor, path, size)
        figures = ", ".join(f"{name} {value:.1g}" for name, value in differences.items())
        print(f"onnxruntime against PyTorch, largest difference: {figures}")
    return path


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CheckpointError, ExportError, OSError, ValueError) as problem:
        sys.exit(str(problem))
