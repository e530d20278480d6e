"""Summarises the gradient dynamics of a whole run for its record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

PARTS = 10
# Endings of the names of figures that are only in ``metrics.jsonl``.
_LEFT_OUT = ("count", "q10", "q50", "q90", "gate_q10", "gate_q90")


def summarize(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The gradient figures of ``metrics.jsonl``, as means over ten equal parts of the training.

    Args:
        lines: of ``read_metrics``.

    Returns:
        Empty if nothing was logged; otherwise

        steps: last logged step of each part (fewer than ten parts for fewer lines).
        share: by map, the share of each ``SIGN/GROUP`` in the whole run's sum of |dL/dz|.
        curves: by figure, its means over the parts, None in a part without it: ``gradient_norm`` and, by their names in
            ``metrics.jsonl``, the sums of |dL/dz|, medians of the gate, weights of positives, and statistics of the links.

        Numbers have four digits.
    """
    lines = [line for line in lines if "gradient_norm" in line]
    parts = [
        [lines[i] for i in own] for own in np.array_split(np.arange(len(lines)), min(PARTS, len(lines)) or 1)
    ]
    if not lines:
        return {}
    names = {name: None for line in lines for name in line if name == "gradient_norm" or _is_kept(name)}
    masses: dict[str, dict[str, float]] = {}
    for name in names:
        if name.endswith("/sum"):
            _, map_name, sign, group, _ = name.split("/")
            masses.setdefault(map_name, {})[f"{sign}/{group}"] = sum(line.get(name) or 0.0 for line in lines)
    return {
        "steps": [part[-1]["step"] for part in parts],
        "share": {
            map_name: {key: _short(mass / total) for key, mass in own.items()}
            for map_name, own in masses.items()
            if (total := sum(own.values())) > 0
        },
        "curves": {name: [_mean([line.get(name) for line in part]) for part in parts] for name in names},
    }


def mass_curves(summary: Mapping[str, Any]) -> dict[str, list[float]]:
    """By ``SIGN/GROUP``, the sum of |dL/dz| of a logged step over all maps of the detector, mean of each part."""
    total: dict[str, np.ndarray] = {}
    for name, values in summary["curves"].items():
        if name.endswith("/sum"):
            _, _, sign, group, _ = name.split("/")
            total[f"{sign}/{group}"] = total.get(f"{sign}/{group}", 0.0) + np.array(values, float)
    return {key: values.tolist() for key, values in total.items()}


def _is_kept(name: str) -> bool:
    return name.startswith("gradient/") and name.rpartition("/")[2] not in _LEFT_OUT


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _short(sum(known) / len(known)) if known else None


def _short(value: float) -> float:
    return float(f"{value:.4g}")
