"""How AFL's gate opens over training: kappa, which falls from 1 to 0 as the running mean of g over positives falls to its threshold.

A gate that stays shut says that training ended before the network was past its large gradients; what the class weights took from the
frequent classes until then, it had no time to give back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from afl.tracking import FINISHED, Record

QUARTERS = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75, "all": 1.0}
"""Parts of the training, by their heading."""


def kappas_of(records: Iterable[Record], loss: str) -> dict[str, dict[str, float]]:
    """Kappa of ``loss`` around each quarter of the training, by detector; the mean over seeds and over the detector's maps.

    Records keep means over tenths of the training; each quarter takes the tenth whose last step is nearest to it. Detectors without
    a kappa on record are left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        curves = _curves(record.gradient_dynamics) if (record.status, record.loss) == (FINISHED, loss) else []
        if not curves:
            continue
        own = found.setdefault(record.detector, {name: [] for name in QUARTERS})
        steps = record.gradient_dynamics["steps"]
        for name, part in QUARTERS.items():
            nearest = min(range(len(steps)), key=lambda i: abs(steps[i] - part * steps[-1]))
            own[name].append(math.fsum(curve[nearest] for curve in curves) / len(curves))
    return {
        detector: {name: math.fsum(values) / len(values) for name, values in own.items()}
        for detector, own in found.items()
    }


def _curves(dynamics: Mapping) -> list[Sequence[float]]:
    return [curve for name, curve in dynamics.get("curves", {}).items() if name.endswith("/kappa")]


def to_markdown(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Tables and detectors by quarters of the training; ``tables``: what ``kappas_of`` says of each, by name."""
    lines = [
        "| table | detector | " + " | ".join(QUARTERS) + " |",
        "| --- | --- |" + " ---: |" * len(QUARTERS),
    ]
    for table, detectors in tables.items():
        for detector, values in detectors.items():
            lines.append(
                f"| {table} | {detector} | " + " | ".join(f"{values[name]:.2f}" for name in QUARTERS) + " |"
            )
    return "\n".join(lines)
