"""The images that come with the zoo: validation images with their objects, for demos and for checks of the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from afl.evaluation import CocoEvaluator
from afl.predict import Predictor
from afl.tracking import Picture
from afl.training.pictures import contact_sheet
from datasets import read_image_file

ANNOTATIONS = "annotations.json"


def kept_ap(predictor: Predictor, folder: Path) -> float:
    """COCO AP on the images in ``folder``, over the classes that they have, by pycocotools.

    Args:
        folder: with ``annotations.json`` in MS COCO's format and its images.
    """
    truth = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
    evaluator = CocoEvaluator(truth, max_detections=100, backend="official")
    files = [folder / image["file_name"] for image in truth["images"]]
    evaluator.process([image["id"] for image in truth["images"]], predictor(files, score=0))
    return evaluator.evaluate()["AP"]


def kept_sheet(predictor: Predictor, folder: Path, images: int, title: str) -> np.ndarray:
    """Images of ``folder`` with the most kinds of objects, then with the largest, each with its objects and its detections.

    Returns:
        (H, W, 3) uint8 RGB, as :func:`afl.training.pictures.contact_sheet` draws it.
    """
    truth = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
    label = {number: i for i, number in enumerate(predictor.category_ids)}
    own: dict[int, list] = {image["id"]: [] for image in truth["images"]}
    for one in truth["annotations"]:
        own[one["image_id"]].append(one)

    def richness(image: dict) -> tuple[int, float]:
        objects = own[image["id"]]
        return len({one["category_id"] for one in objects}), sum(one["area"] for one in objects)

    richest = sorted(truth["images"], key=richness, reverse=True)
    pictures = []
    for image in richest[:images]:
        pixels = read_image_file(folder / image["file_name"])
        found = predictor(pixels)
        boxes = np.array([one["bbox"] for one in own[image["id"]]], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        pictures.append(
            Picture(
                name=image["file_name"],
                pixels=pixels,
                boxes=boxes,
                labels=np.array([label[one["category_id"]] for one in own[image["id"]]], int),
                found_boxes=found.boxes.numpy(),
                found_scores=found.scores.numpy(),
                found_labels=found.labels.numpy(),
            )
        )
    return contact_sheet(pictures, predictor.names, title)
