"""Export the network of a run to ONNX, and compare it with PyTorch.

    python -m scripts.export run=outputs/NAME                            # writes checkpoints/last.onnx in the run directory
    python -m scripts.export run=last.pt output=fcos.onnx size=[512,512]

Options:
    run=FOLDER|FILE|zoo:NAME   a run directory, a checkpoint, or a detector of the zoo
    output=FILE                default: the checkpoint's path with the suffix .onnx; outputs/NAME.onnx for the zoo
    size=[H,W]                 a fixed image size, multiples of 32; default: any
    check=false                do not compare the file with PyTorch

The input ``images`` is uint8 RGB (B, 3, H, W). The outputs are those of the detector's ``forward``, before decoding. The command needs
the extra packages onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

from pathlib import Path

from scripts.entry import asks_for_help, options_of, quiet_libraries, run_command

DEFAULTS = {"run": None, "output": None, "size": list, "check": True}


def main(arguments: list[str]) -> Path | None:
    """Write the file, compare it with PyTorch and print both results; returns its path, or None after help."""
    if asks_for_help(arguments, __doc__):
        return None
    quiet_libraries()
    options = options_of(arguments, DEFAULTS)
    if options["run"] is None:
        raise ValueError("which run? python -m scripts.export run=outputs/NAME")
    size = options["size"]
    if size is not None and not all(isinstance(side, int) for side in size):
        raise ValueError(f"size is {size!r}; it must be height and width, such as [512,512]")

    from afl.export import check_onnx, export_onnx
    from afl.predict import load_predictor
    from afl.zoo import ZOO

    predictor = load_predictor(options["run"], device="cpu")
    folder = Path("outputs") if predictor.checkpoint.parent == ZOO else predictor.checkpoint.parent
    path = Path(options["output"] or folder / f"{predictor.checkpoint.stem}.onnx")
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
    run_command(main)
