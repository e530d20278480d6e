"""What a class-weighted loss does to the gradient of positives over training, beside focal loss on the same seeds.

    ratio = sum over seeds of S_loss / sum over seeds of S_fl,    S: sum of |dL/dz| over the positives of a frequency group

S is the mean over the logged steps of a part of the training, summed over a detector's maps and taken before the normaliser
(``afl.training.gradient_dynamics``). A ratio of 1 says that the group is pushed as hard as by the baseline at that time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from afl.reporting.records import cell_of
from afl.tracking import FINISHED, Record, mass_curves

GROUPS = ("r", "c", "f")
Place = tuple[str, str]
"""(detector, loss)"""


@dataclass(frozen=True)
class GradientRatio:
    """Of one loss on one detector, in one part of the training.

    Attributes:
        detector, loss: which.
        until: last logged step of the part.
        ratio: by frequency group; NaN where the baseline's positives had no gradient.
    """

    detector: str
    loss: str
    until: int
    ratio: Mapping[str, float]


def gradient_ratios(
    records: Iterable[Record], losses: Sequence[str], baseline: str, parts: Sequence[int]
) -> list[GradientRatio]:
    """Ratios for every detector, over the seeds for which both losses have a finished run.

    Args:
        records: of one data set.
        losses: to be compared with ``baseline``.
        parts: which tenths of the training, counted from 0; negative ones from its end.
    """
    runs = {cell_of(record)[1:]: record for record in records if record.status == FINISHED}
    found = []
    for detector in dict.fromkeys(detector for detector, _, _ in runs):
        for loss in losses:
            seeds = [s for d, own, s in runs if (d, own) == (detector, loss) and (d, baseline, s) in runs]
            if not seeds:
                continue
            steps = runs[detector, loss, seeds[0]].gradient_dynamics["steps"]
            ours = [mass_curves(runs[detector, loss, seed].gradient_dynamics) for seed in seeds]
            theirs = [mass_curves(runs[detector, baseline, seed].gradient_dynamics) for seed in seeds]
            for part in parts:
                ratio = {group: _ratio(ours, theirs, f"positive/{group}", part) for group in GROUPS}
                found.append(GradientRatio(detector, loss, steps[part], ratio))
    return found


def _ratio(ours: Sequence[Mapping], theirs: Sequence[Mapping], key: str, part: int) -> float:
    below = math.fsum(curves[key][part] for curves in theirs)
    return math.fsum(curves[key][part] for curves in ours) / below if below else math.nan


def to_markdown(found: Sequence[GradientRatio]) -> str:
    """Detectors and losses by parts of the training; each place is rare / common / frequent."""
    until = list(dict.fromkeys(one.until for one in found))
    rows: dict[Place, dict[int, GradientRatio]] = {}
    for one in found:
        rows.setdefault((one.detector, one.loss), {})[one.until] = one
    lines = [
        "| detector | loss | " + " | ".join(f"until step {step}" for step in until) + " |",
        "| --- | --- |" + " ---: |" * len(until),
    ]
    for (detector, loss), places in rows.items():
        texts = [" / ".join(f"{places[step].ratio[g]:.1f}" for g in GROUPS) for step in until]
        lines.append(f"| {detector} | {loss} | " + " | ".join(texts) + " |")
    return "\n".join(lines)
