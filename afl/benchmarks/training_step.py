"""One training step of RetinaNet and FCOS compared with torchvision's, with the same backbone, images, batch and classes.

The step starts with a batch of decoded images: normalisation, forward pass, assignment, losses, backward pass, clipping and SGD.
Torchvision's side calls its RetinaNet and FCOS as its training script does (references/detection in its repository, ``train_one_epoch``):
with a list of images, SGD with a momentum of 0.9, and float32 by default. Our side uses the project's settings (channels_last, fused
optimiser, weight decay). The step of torchvision's side differs from that script:

- It clips gradients, because our side does. The script does not clip.
- The rate is 1e-5 on both sides, because the weights are random. The script's default is 0.02, after a warm-up.
- It has no weight decay. The script's default is 1e-4.
- The backbone is a ResNet with random weights, fixed batch norms and no frozen stage. The script trains the last three stages of a
  pre-trained ResNet-50. On the CPU it is ResNet-18.
- RetinaNet computes P6 from C5, like ours and the paper. ``retinanet_resnet50_fpn`` computes it from P5.
- All images have the same size, which torchvision's transform keeps.
- It logs nothing. The script averages the losses over processes and reads their sum after every forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch import nn
from torchvision.models.detection import FCOS as TheirFCOS
from torchvision.models.detection import RetinaNet as TheirRetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from afl.benchmarks.harness import Row, peak_bytes, take_turns
from afl.training.build import build_detector
from afl.training.compiled import compiled_forward
from afl.training.compose import compose_cell
from afl.training.inputs import normalise
from afl.training.optimizer import build_optimizer
from afl.training.precision import network_precision
from detectors.boxes import middles_of_sides
from detectors.contract import ClassCounts, Targets, weighted_sum

CLASSES, OBJECTS = 80, 8
# Smallest allowed ratio of seconds, theirs / ours: with the default precision of each side, and with the same precision.
BUDGET, EQUAL_BUDGET = 1.3, 1.0
CLIP_NORM = 35.0  # of all gradients; the time of clipping does not depend on it
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def measure(quick: bool) -> list[Row]:
    """Both detectors in both precisions on the CPU, then the memory of many classes."""
    device = torch.device("cpu")
    batch, size = (1, 64) if quick else (2, 320)
    rows = []
    for name in ("retinanet", "fcos"):
        sides: dict[str, Callable[[], None]] = {}
        for precision, autocast in PRECISIONS.items():
            sides[f"ours {precision}"] = our_step(name, batch, size, device, autocast)
            sides[f"theirs {precision}"] = their_step(name, batch, size, device, autocast)
        memory = {side: peak_bytes(work) for side, work in sides.items()}
        seconds = take_turns(sides, 1 if quick else 5)
        setting = f"{batch} x {size} px, {CLASSES} classes, cpu"
        # The defaults of both sides, then equal precision.
        for ours, theirs, budget in (
            ("bf16", "fp32", BUDGET),
            ("fp32", "fp32", EQUAL_BUDGET),
            ("bf16", "bf16", EQUAL_BUDGET),
        ):
            mine, other = f"ours {ours}", f"theirs {theirs}"
            defaults = ", both sides' defaults" if ours != theirs else ""
            rows.append(
                Row.speed_up(
                    f"step, {name}, {ours} against {theirs}, {setting}", seconds[mine], seconds[other], budget=budget,
                    ours_memory=memory[mine], theirs_memory=memory[other],
                    note=f"torchvision{defaults}; memory: most tensors alive at once",
                )
            )  # fmt: skip
        what = f"memory of the step / theirs, {name}, bf16 against fp32"
        rows.append(Row.share(what, memory["ours bf16"], memory["theirs fp32"], unit="B", budget=1.0))
    return [*rows, many_classes(device, quick)]


def many_classes(device: torch.device, quick: bool) -> Row:
    """The memory of a RetinaNet step at 512 x 512 with 1,203 classes compared with the same step with one class.

    The weights of the class layer and their gradient are subtracted, because they are not part of the map.
    """
    size, classes = (64, 203) if quick else (512, 1203)
    peaks, layer = {}, {}
    for count in (1, classes):
        detector = our_detector("retinanet", count, device)
        work = gradient_work(detector, 1, size, device, None, count)
        for parameter in detector.parameters():
            parameter.grad = None
        peaks[count] = peak_bytes(work)
        layer[count] = sum(p.nbytes for p in detector.class_layer.parameters())
        with torch.no_grad():
            logits = detector(torch.zeros(1, 3, size, size, device=device))["logits"]
    return Row.share(
        f"RetinaNet step at {size} px, {classes:,} classes: peak above the rest / logits, fp32, {device.type}",
        peaks[classes] - peaks[1] - (layer[classes] - layer[1]),
        logits.nbytes,
        unit="B",
        budget=3.0,
        note="above the same step with 1 class and the class layer's gradient",
    )


def our_detector(name: str, classes: int, device: torch.device, backbone: str = "resnet18") -> nn.Module:
    """This project's detector with its published sizes on a ResNet with frozen statistics."""
    overrides = [
        "dataset=coco",
        f"backbone={backbone}",
        "backbone.pretrained=false",
        "backbone.frozen_stages=0",
        "dataset.root=unused",
    ]
    config = compose_cell(detector=name, loss="fl", overrides=overrides)
    counts = torch.ones(classes)
    return build_detector(config, ClassCounts(counts, counts)).to(device, memory_format=torch.channels_last)


def gradient_work(
    detector: nn.Module,
    batch: int,
    size: int,
    device: torch.device,
    autocast: torch.dtype | None,
    classes: int,
    compiled: bool = False,
) -> Callable[[], None]:
    """From decoded images to gradients."""
    images, boxes, labels = scene(batch, size, classes, device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = Targets(
        boxes=boxes,
        labels=labels,
        ignored=torch.zeros_like(labels, dtype=torch.bool),
        image_sizes=torch.full((batch, 2), size, device=device),
        extreme_points=middles_of_sides(boxes),
    )
    forward = compiled_forward(detector) if compiled else detector

    def work() -> None:
        detector.zero_grad(set_to_none=True)
        x = normalise(images, channels_last=True)
        with network_precision(device.type, autocast):
            outputs = forward(x)
        losses = detector.losses(outputs, targets)
        del outputs
        weighted_sum(losses, detector.loss_weights).backward()

    return work


def our_step(
    name: str,
    batch: int,
    size: int,
    device: torch.device,
    autocast: torch.dtype | None,
    *,
    compiled: bool = False,
    backbone: str = "resnet18",
) -> Callable[[], None]:
    """A whole step of this project's loop."""
    detector = calm(our_detector(name, CLASSES, device, backbone))
    optimizer = build_optimizer(_sgd, detector, 1e-4)
    gradients = gradient_work(detector, batch, size, device, autocast, CLASSES, compiled)

    def work() -> None:
        gradients()
        nn.utils.clip_grad_norm_(detector.parameters(), CLIP_NORM)
        optimizer.step()

    return work


def their_step(
    name: str,
    batch: int,
    size: int,
    device: torch.device,
    autocast: torch.dtype | None,
    *,
    backbone: str = "resnet18",
) -> Callable[[], None]:
    """A whole step of torchvision's model; the module's docstring names the differences from torchvision's reference script."""
    body = getattr(torchvision.models, backbone)(weights=None, norm_layer=FrozenBatchNorm2d)
    widths = [body.layer2[0], body.layer3[0], body.layer4[0]]
    widths = [block.downsample[0].out_channels for block in widths]
    last = LastLevelP6P7(widths[-1] if name == "retinanet" else 256, 256)
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    pyramid = BackboneWithFPN(body, layers, widths, 256, extra_blocks=last)
    build = TheirRetinaNet if name == "retinanet" else TheirFCOS
    model = calm(build(pyramid, num_classes=CLASSES, min_size=size, max_size=size)).to(device).train()
    optimizer = _sgd([{"params": [p for p in model.parameters() if p.requires_grad]}])
    images, boxes, labels = scene(batch, size, CLASSES, device)
    listed = [image.float() / 255 for image in images]
    truth = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        with network_precision(device.type, autocast):
            losses = model(listed, truth)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    return work


def calm(detector: nn.Module) -> nn.Module:
    """Scale down the end of every bottleneck, because with fixed statistics and random weights, activations grow with depth."""
    for name, module in detector.named_modules():
        if name.endswith("bn3"):
            module.weight.fill_(0.1)
    return detector


def scene(batch: int, size: int, classes: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """uint8 images (B, 3, S, S), boxes (B, 8, 4) with sides of a tenth to a half of the image's side, labels (B, 8)."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, size, size), generator=random, dtype=torch.uint8)
    sides = size * (0.1 + 0.4 * torch.rand(batch, OBJECTS, 2, generator=random))
    corner = torch.rand(batch, OBJECTS, 2, generator=random) * (size - sides)
    labels = torch.randint(classes, (batch, OBJECTS), generator=random)
    return images.to(device), torch.cat([corner, corner + sides], -1).to(device), labels.to(device)


def _sgd(groups: list[dict], **more: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=1e-5, momentum=0.9, **more)
