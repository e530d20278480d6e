"""The answers to the questions of ``afl.reporting.questions`` as Markdown. Metrics are shown times 100."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import pandas as pd

from afl.reporting.inference import Difference, Interval
from afl.reporting.intervals import Estimate, rounded
from afl.reporting.markdown import markdown
from afl.reporting.names import GROUPS
from afl.reporting.questions import DEFAULTS, QUARTERS, Ranked, adjusted, half_width, mean_of, moved_by

Row = tuple[str, str]
"""(data set, detector)"""


def _label(place: Row, places: Sequence[Row]) -> str:
    dataset, detector = place
    return detector if len({other for other, _ in places}) == 1 else f"{dataset}: {detector}"


def _shown(value: float) -> str:
    """One decimal; a dash for an undefined figure, such as the share of a group without objects."""
    return "—" if math.isnan(value) else rounded(value)


def _compared(value: float, first: float) -> str:
    """``12.3 (+0.4)``: a figure and its difference to the first; the difference is left out if one of them is undefined."""
    undefined = math.isnan(value) or math.isnan(first)
    return _shown(value) if undefined else f"{rounded(value)} ({rounded(value - first, '+')})"


def noise_text(found: pd.DataFrame, seeds: int) -> str:
    """Rows by metrics: spread over seeds / half-width of a paired difference over ``seeds`` seeds."""
    metrics = list(found.index.unique("metric"))
    places = list(dict.fromkeys(found.index.droplevel("metric")))

    def cell(place: Row, metric: str) -> str:
        own = found.loc[(*place, metric)]
        if math.isnan(own.spread):
            return "one seed"
        return f"{_shown(100 * own.spread)} / {_shown(100 * half_width(own.paired, seeds))}"

    rows = [[_label(place, places), *(cell(place, metric) for metric in metrics)] for place in places]
    return (
        f"Standard deviation over seeds / half-width of the 95 % interval of a difference to the baseline over {seeds} seeds, "
        "x 100, pooled over the arms of a row:\n\n" + markdown(["", *metrics], rows)
    )


def contrast_text(found: Mapping[Row, Mapping[str, Estimate | None]], loss: str, against: str) -> str:
    """Rows by metrics. Bold: the interval excludes zero."""
    metrics = list(next(iter(found.values())))
    rows = [
        [_label(place, list(found)), *(_bold(own[metric]) for metric in metrics)]
        for place, own in found.items()
    ]
    return markdown([f"{loss} - {against}", *metrics], rows)


def _bold(own: Estimate | None) -> str:
    if own is None:
        return "—"
    return f"**{own.percent('+')}**" if own.positive or own.negative else own.percent("+")


def contrasts_text(found: Mapping[tuple[str, str, str], Difference], best: str | None = None) -> str:
    """A line for each contrast and metric, and how to read it. ``best``: the loss to name as the best other one."""
    p = adjusted(found)

    def line(place: tuple[str, str, str], own: Difference) -> list[str]:
        loss, against, metric = place
        halves = [_half(own.mean, one) for one in (own.unpooled, own.pooled, own.random_detectors)]
        pairs = zip((own.p_units, own.p_differences), p[place], strict=True)
        return [
            f"{loss} - {against}" + (" (best other)" if against == best else ""), metric,
            rounded(100 * own.mean, "+"), f"{own.detectors} x {own.units}", *halves,
            *(f"{_p(plain)} ({_p(corrected)})" for plain, corrected in pairs),
        ]  # fmt: skip

    head = [
        "contrast", "metric", "mean", "detectors x units", "unpooled", "pooled", "random detectors",
        "p by unit", "p by difference",
    ]  # fmt: skip
    return markdown(head, [line(place, own) for place, own in found.items()], text=2) + "\n\n" + READING


READING = """A unit is one data set with one seed; a difference is one detector's in one unit. Differences x 100, averaged over detectors. The
three intervals are half-widths at 95 %, in brackets their degrees of freedom, bold where the interval excludes zero:

- unpooled: t interval of the means over detectors by unit.
- pooled: the noise of all detectors together, taken as independent within a unit. More degrees of freedom, and too narrow where a
  unit moves all detectors alike.
- random detectors: detectors are a sample of detectors too; variance (MS_detectors + MS_units - MS_rest) / (detectors x units) of
  the two-way layout, degrees of freedom by Satterthwaite.

P values are two-sided and exact, over all assignments of signs to units or to single differences; n units cannot give less than
2 / 2^n. In brackets they are adjusted over all lines of this table (Holm). The best other loss was chosen by these same records."""


def ranking_text(found: Sequence[Ranked], detectors: Sequence[str], baseline: str) -> str:
    """A line for each loss, the best first, and how to read it."""
    first, *others = next(one for one in found if one.gains).gains
    head = [
        "rank", "loss", first, "unpooled", "p (Holm)", *others, "detectors x units", f"step time / {baseline}",
        f"memory / {baseline}",
    ]  # fmt: skip

    def line(rank: int, one: Ranked) -> list[str]:
        cost = ["—" if value is None else f"{value:.2f}" for value in (one.time, one.memory)]
        if not one.gains:
            return [str(rank), one.loss, *["—"] * (len(head) - 4), *cost]
        own = one.gains[first]
        return [
            str(rank), one.loss, _gain(own), _half(own.mean, own.unpooled), _p(one.p[first]),
            *(_gain(one.gains[metric]) if metric in one.gains else "—" for metric in others),
            f"{own.detectors} x {own.units}", *cost,
        ]  # fmt: skip

    lines = [line(rank, one) for rank, one in enumerate(found, start=1)]
    reading = RANKING_READING.format(baseline=baseline, first=first, detectors=", ".join(detectors))
    return markdown(head, lines, align="---: --- " + "---: " * (len(head) - 2)) + "\n\n" + reading


RANKING_READING = """Differences to {baseline} x 100, averaged over {detectors}; ranked by {first}. After ± the half-width of the 95 % interval that pools
the noise of the detectors, bold where it excludes zero; "unpooled" is that of the means over detectors by unit. P values are exact, over
the signs of single differences, and adjusted over all losses and metrics of this table (Holm). Step time and memory are
those of a training step on a CPU as multiples of focal loss's, the mean of RetinaNet and CenterNet (results/benchmark)."""


def _gain(own: Difference) -> str:
    """``+1.2 ± 0.4`` with the pooled interval."""
    text = rounded(100 * own.mean, "+")
    if own.pooled is None:
        return text
    text += f" ± {100 * own.pooled.half:.1f}"
    return f"**{text}**" if abs(own.mean) > own.pooled.half else text


def _half(mean: float, own: Interval | None) -> str:
    if own is None:
        return "—"
    text = f"± {100 * own.half:.1f}"
    return (f"**{text}**" if abs(mean) > own.half else text) + f" ({own.freedom})"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def classes_text(found: pd.DataFrame, baseline: str) -> str:
    """Classes by losses, with the paired difference to the baseline in brackets. Bold: its interval excludes zero."""
    losses = list(found.columns.unique("loss"))

    def cell(row: pd.Series, loss: str) -> str:
        mean = mean_of(row, loss)
        if mean is None:
            return "—"  # the mean of the other classes, if no seed has all of them
        return mean.percent() + ("" if loss == baseline else f" ({_bold(moved_by(row, loss, baseline))})")

    rows = [[*place, *(cell(row, loss) for loss in losses)] for place, row in found.iterrows()]
    return markdown(["class", "group", *losses], rows, text=2)


def mechanism_text(found: pd.DataFrame, parts: Sequence[int]) -> str:
    """Detectors and losses by parts of the training; each cell is rare / common / frequent.

    Args:
        found: the result of ``push_ratios``.
        parts: numbers of parts, from 0. Negative numbers count from the end.
    """
    heads, rows = [], []
    for (detector, loss), own in found.groupby(level=["detector", "loss"], sort=False):
        chosen = own.iloc[list(parts)]
        heads.append([f"until step {step:.0f}" for step in chosen.step])
        cells = [" / ".join(_shown(part[group]) for group in GROUPS) for _, part in chosen.iterrows()]
        rows.append([detector, loss, *cells])
    return markdown(["detector", "loss", *heads[0]], rows, text=2) + "\n\n" + MECHANISM_READING


MECHANISM_READING = """Each cell is rare / common / frequent. Gradients are measured only in the batches that a run logs, one in every trainer.log_every
steps. A column is the mean over a tenth of these batches, not over all steps; its head names the last step of the tenth."""


def gate_text(tables: Mapping[str, pd.DataFrame]) -> str:
    """Tables and detectors by quarters of the training."""
    rows = [
        [table, detector, *(f"{values[name]:.2f}" for name in QUARTERS)]
        for table, found in tables.items()
        for detector, values in found.iterrows()
    ]
    return markdown(["table", "detector", *QUARTERS], rows, text=2)


def choice_text(levels: pd.DataFrame) -> str:
    """The levels of each factor."""

    def ahead(level) -> str:
        if level.ahead == level.error == 0:
            return "(start)"
        return rounded(100 * level.ahead, "+") + (
            "" if math.isinf(level.error) else f" ± {100 * level.error:.1f}"
        )

    rows = [
        [
            level.factor,
            level.arm,
            rounded(100 * level.score, "+"),
            ahead(level),
            "yes" if level.chosen else "",
        ]
        for level in levels.itertuples()
    ]
    return markdown(
        ["factor", "level", "score", "ahead of the start", "chosen"], rows, align="--- --- ---: ---: :---:"
    )


def forms_text(answer: pd.DataFrame, sets: Mapping[str, str]) -> str:
    """The arms with their scores; ``sets`` are the titles of the development sets by name."""

    def points(value: float) -> str:
        return "–" if math.isnan(value) else rounded(100 * value, "+", 2)

    head = ["loss"]
    for title in sets.values():
        head += [f"{title}: score", "AP_f", "pairs"]
    rows = []
    for loss, row in answer.iterrows():
        cells = [str(loss)]
        for name in sets:
            pairs = row["pairs", name]
            cells += [
                points(row["score", name]),
                points(row["AP_f", name]),
                "0" if math.isnan(pairs) else f"{pairs:.0f}",
            ]
        rows.append([*cells, points(row["mean", "score"]), "yes" if row["mean", "chosen"] else ""])
    align = "--- " + "---: " * (3 * len(sets) + 1) + ":---:"
    return markdown([*head, "mean score", "chosen"], rows, align=align)


def tuning_text(answer: pd.DataFrame) -> str:
    """Settings by detectors' metrics and score, each with its difference to the defaults."""
    answer = 100 * answer
    defaults = answer.loc[DEFAULTS]

    def cell(value: float, usual: float, is_default: bool) -> str:
        return _shown(value) if is_default else _compared(value, usual)

    rows = [
        [str(name), *(cell(row[column], defaults[column], name == DEFAULTS) for column in answer.columns)]
        for name, row in answer.iterrows()
    ]
    return markdown(["setting", *(" ".join(column) for column in answer.columns)], rows)


def recognition_text(localised: pd.DataFrame, recognised: pd.DataFrame) -> str:
    """A row for each detector and loss: the localised share of all objects of each group, and the recognised share of these.

    Every loss but the first shows its difference to the first.
    """
    shares = {"localised": localised, "recognised": recognised}
    groups, losses = (list(localised.columns.unique(level)) for level in (0, 1))

    def cell(share: pd.DataFrame, detector: Hashable, group: str, loss: str) -> str:
        value, first = share.loc[detector, (group, loss)], share.loc[detector, (group, losses[0])]
        return _shown(value) if loss == losses[0] else _compared(value, first)

    rows = [
        [
            str(detector),
            loss,
            *(cell(share, detector, group, loss) for share in shares.values() for group in groups),
        ]
        for detector in localised.index
        for loss in losses
    ]
    header = ["detector", "loss", *(f"{name} {group}" for name in shares for group in groups)]
    return "Localised: % of all objects. Recognised: % of the localised objects.\n\n" + markdown(header, rows)


def fit_text(found: pd.DataFrame, metric: str) -> str:
    """Detectors by (part, loss), such as training and validation images. Every loss but the first shows its difference to the first."""
    where, losses = (list(found.columns.unique(level)) for level in (0, 1))

    def cells(values: pd.Series) -> list[str]:
        first = values.iloc[0]
        return [_shown(first), *(_compared(value, first) for value in values.iloc[1:])]

    rows = [
        [str(name), *(text for part in where for text in cells(row[part]))] for name, row in found.iterrows()
    ]
    return markdown([metric, *(f"{part}: {loss}" for part in where for loss in losses)], rows)
