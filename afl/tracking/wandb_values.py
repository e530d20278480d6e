"""Converts figures, pictures and charts to W&B's types.

The functions take the module ``wandb`` as an argument, because importing it takes two seconds and most runs do not use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afl.tracking.tracker import Chart, Picture

# The W&B charts for this project's charts, and the names of their columns.
CHARTS = {
    "lines": ("wandb/area-under-curve/v0", ("class", "x", "y")),
    "confusion": ("wandb/confusion_matrix/v1", ("Actual", "Predicted", "nPredictions")),
}


def plain_values(wandb: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, texts and histograms by name.

    A tensor or array of several values becomes a histogram of its finite values. One without a finite value is left out.
    """
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or isinstance(value, str):
            plain[name] = value
            continue
        numbers = np.asarray(
            value.detach().float().cpu() if hasattr(value, "detach") else value, float
        ).ravel()
        finite = numbers[np.isfinite(numbers)]
        if numbers.size == 1:
            plain[name] = float(numbers[0])
        elif finite.size:
            plain[name] = wandb.Histogram(finite)
    return plain


def image(wandb: Any, picture: Picture, class_names: Mapping[int, str]) -> Any:
    """A picture with its objects (``ground_truth``) and its detections (``predictions``).

    Args:
        class_names: by label; labels without a name are shown as numbers.

    Raises:
        ValueError: a box is not finite.
    """
    truth = [
        _box(box, label, class_names.get(int(label), str(int(label))))
        for box, label in zip(picture.boxes, picture.labels, strict=True)
    ]
    found = [
        _box(box, label, f"{class_names.get(int(label), int(label))} {float(score):.2f}")
        | {"scores": {"score": float(score)}}
        for box, label, score in zip(
            picture.found_boxes, picture.found_labels, picture.found_scores, strict=True
        )
    ]
    names = {"class_labels": dict(class_names)} if class_names else {}
    return wandb.Image(
        np.asarray(picture.pixels),
        caption=picture.name,
        boxes={
            "ground_truth": {"box_data": truth, **names},
            "predictions": {"box_data": found, **names},
        },
    )


def table(wandb: Any, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A W&B Table."""
    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def drawn_chart(wandb: Any, chart: Chart) -> Any:
    """A chart that W&B draws from a table of its rows."""
    spec, fields = CHARTS[chart.kind]
    return wandb.plot_table(
        vega_spec_name=spec,
        data_table=table(wandb, chart.columns, chart.rows),
        fields=dict(zip(fields, chart.columns, strict=True)),
        string_fields={"title": chart.title},
    )


def _box(box: Sequence[float], label: int, caption: str) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"a box is not finite: {(x1, y1, x2, y2)}")
    return {
        "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
        "domain": "pixel",
        "class_id": int(label),
        "box_caption": caption,
    }
