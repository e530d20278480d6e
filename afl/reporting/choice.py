"""AFL's free choices by the rule of ``results/protocol.md``, from the records of a search.

The score of an arm is the mean over (detector, seed) of half the sum of its differences to a baseline, AP and AP_r. In each
factor, levels are compared with the starting arm, paired; the best one replaces it if it is ahead by more than one standard error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from afl.tracking import FINISHED, Record

METRICS = ("AP", "AP_r")
Scores = dict[str, dict[tuple[str, int], float]]  # arm -> (detector, seed) -> score


@dataclass(frozen=True)
class Level:
    """One level of one factor.

    Attributes:
        factor, arm: which.
        score: in [-1, 1], mean over pairs of detector and seed.
        ahead: mean paired difference of the score to the start's; 0 for the start itself.
        error: standard error of ``ahead``.
        chosen: the rule takes this level.
    """

    factor: str
    arm: str
    score: float
    ahead: float
    error: float
    chosen: bool


def arm_scores(records: Iterable[Record], baseline: str) -> Scores:
    """Scores of all arms for every (detector, seed) that has a finished run of the arm and of the baseline."""
    runs = {(r.loss, r.detector, r.seed): r.metrics for r in records if r.status == FINISHED}
    scores: Scores = {}
    for (arm, detector, seed), metrics in sorted(runs.items()):
        base = runs.get((baseline, detector, seed))
        if base is not None:
            score = fmean(metrics[name] - base[name] for name in METRICS)
            scores.setdefault(arm, {})[detector, seed] = score
    return scores


def choose(scores: Scores, start: str, factors: Mapping[str, Sequence[str]]) -> list[Level]:
    """Every level of every factor with its score, and which one the rule takes.

    Raises:
        ValueError: an arm has no run that can be paired with the start's.
    """
    return [level for name, arms in factors.items() for level in _factor(scores, start, name, arms)]


def _factor(scores: Scores, start: str, name: str, arms: Sequence[str]) -> list[Level]:
    compared = [_compared(scores, start, name, arm) for arm in (start, *arms)]
    best = max(compared[1:], key=lambda level: level.score)
    chosen = best.arm if best.ahead > best.error else start
    return [Level(**{**vars(level), "chosen": level.arm == chosen}) for level in compared]


def _compared(scores: Scores, start: str, factor: str, arm: str) -> Level:
    pairs = sorted(scores.get(arm, {}).keys() & scores.get(start, {}).keys())
    if not pairs:
        raise ValueError(f"{arm} has no run that can be compared with one of {start}")
    ahead = [scores[arm][pair] - scores[start][pair] for pair in pairs]
    return Level(
        factor=factor,
        arm=arm,
        score=fmean(scores[arm][pair] for pair in pairs),
        ahead=fmean(ahead),
        error=stdev(ahead) / math.sqrt(len(ahead)) if len(ahead) > 1 else math.inf,
        chosen=False,
    )


def to_markdown(levels: Sequence[Level]) -> str:
    """A table of the levels, scores times 100."""
    lines = [
        "| factor | level | score | ahead of the start | chosen |",
        "| --- | --- | ---: | ---: | :---: |",
    ]
    for level in levels:
        error = "" if math.isinf(level.error) else f" ± {100 * level.error:.1f}"
        ahead = "(start)" if level.ahead == level.error == 0 else f"{100 * level.ahead:+.1f}{error}"
        lines.append(
            f"| {level.factor} | {level.arm} | {100 * level.score:+.1f} | {ahead} | {'yes' if level.chosen else ''} |"
        )
    return "\n".join(lines)
