"""Questions about the records of a table. Each is one function from the long table (``afl.reporting.frame``) to a small one.

Add a question as a function here, its text in ``afl.reporting.answers`` and its command as a function in ``scripts/reports``.
"""

from afl.reporting.questions.classes import classes, mean_of, most_moved, moved_by
from afl.reporting.questions.contrasts import (
    adjusted,
    contrast,
    contrasts,
    family,
    gains,
    half_width,
    noise,
    pooled_deviation,
    variants_apart,
)
from afl.reporting.questions.dynamics import QUARTERS, gate_opening, push_over_training, push_ratios
from afl.reporting.questions.forms import forms
from afl.reporting.questions.ranking import Ranked, ranking, step_costs
from afl.reporting.questions.recognition import recognition
from afl.reporting.questions.search import choice, fit
from afl.reporting.questions.tuning import DEFAULTS, tuning

__all__ = [
    "DEFAULTS", "QUARTERS", "Ranked", "adjusted", "choice", "classes", "contrast", "contrasts", "family", "fit", "forms", "gains",
    "gate_opening", "half_width", "mean_of", "most_moved", "moved_by", "noise", "pooled_deviation", "push_over_training", "push_ratios",
    "ranking", "recognition", "step_costs", "tuning", "variants_apart",
]  # fmt: skip
