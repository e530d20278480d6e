"""Adaptive Focal Loss (reconstruction) in torchvision's RetinaNet, trained on a COCO file.

    python -m examples.torchvision_retinanet_afl                                       # 12 scenes that come with the repository
    python -m examples.torchvision_retinanet_afl instances_train.json images steps=5000

The example needs torch, torchvision and ``afl.losses`` (``pip install .``), and nothing else from this project. It differs from a usual
training script of torchvision in two places: the head below, and the line that sets its loss.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torchvision.io import decode_image
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetClassificationHead

from afl.losses import AdaptiveFocalLoss

SCENES = Path(__file__).resolve().parents[1] / "zoo" / "images" / "shapes_lvis"


class AdaptiveHead(RetinaNetClassificationHead):
    """torchvision's classification head with another loss on the anchors that torchvision has matched."""

    loss: AdaptiveFocalLoss

    def compute_loss(self, targets, head_outputs, matched_idxs):
        logits, match = head_outputs["cls_logits"], torch.stack(matched_idxs)  # (B, A, C), (B, A)
        wanted = torch.zeros_like(logits)
        for image, target in enumerate(targets):
            positive = match[image] >= 0
            wanted[image, positive, target["labels"][match[image, positive]]] = 1.0
        kept = match != self.BETWEEN_THRESHOLDS
        return self.loss(logits[kept], wanted[kept]) / (match >= 0).sum().clamp(min=1)


def read(annotations: Path, images: Path) -> tuple[list[tuple[Path, dict]], int]:
    """(image file, target) of every image with objects, and the number of classes; boxes are xyxy in pixels."""
    content = json.loads(annotations.read_text(encoding="utf-8"))
    number = {one["id"]: i for i, one in enumerate(content["categories"])}
    own: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        if not one.get("iscrowd"):
            own[one["image_id"]].append(one)
    samples = []
    for image in content["images"]:
        if own[image["id"]]:
            boxes = torch.tensor([one["bbox"] for one in own[image["id"]]])
            boxes[:, 2:] += boxes[:, :2]
            labels = torch.tensor([number[one["category_id"]] for one in own[image["id"]]])
            samples.append((images / image["file_name"], {"boxes": boxes, "labels": labels}))
    return samples, len(number)


def build(instances_per_class: torch.Tensor, image_size: int) -> RetinaNet:
    """RetinaNet with Adaptive Focal Loss, for small objects and from random weights.

    For photographs, use ``retinanet_resnet50_fpn(weights_backbone="DEFAULT", num_classes=C)`` and replace its head in the same way.
    """
    classes = len(instances_per_class)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        trainable_layers=5,
        returned_layers=[1, 2, 3],
        extra_blocks=None,
        norm_layer=torch.nn.BatchNorm2d,
    )
    anchors = AnchorGenerator(((16,), (24,), (32,), (48,)), ((0.7, 1.0, 1.4),) * 4)
    model = RetinaNet(backbone, classes, min_size=image_size, max_size=image_size, anchor_generator=anchors)
    model.head.classification_head = AdaptiveHead(
        backbone.out_channels, anchors.num_anchors_per_location()[0], classes
    )
    model.head.classification_head.loss = AdaptiveFocalLoss(instances_per_class, reduction="sum")
    return model


def main(
    annotations: Path = SCENES / "annotations.json",
    images: Path = SCENES,
    *,
    steps: int = 20,
    batch: int = 4,
    image_size: int = 96,
) -> list[float]:
    """Train for some steps; returns the loss of each of them."""
    torch.manual_seed(0)
    samples, classes = read(annotations, images)
    labels = torch.cat([target["labels"] for _, target in samples])
    model = build(torch.bincount(labels, minlength=classes).float(), image_size).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for step in range(steps):
        chosen = [samples[(step * batch + i) % len(samples)] for i in range(batch)]
        pictures = [decode_image(str(path), mode="RGB").float() / 255 for path, _ in chosen]
        total = sum(model(pictures, [target for _, target in chosen]).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(total.item())
        if step % 10 == 0 or step == steps - 1:
            kappa = model.head.classification_head.loss.kappa.item()
            print(f"step {step:4d}  loss {losses[-1]:.3f}  kappa {kappa:.3f}")
    return losses


if __name__ == "__main__":
    named = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    files = [Path(word) for word in sys.argv[1:] if "=" not in word]
    main(*files, **{name: int(value) for name, value in named.items()})
