"""Reports from losses, records and runs.

    python -m scripts.report NAME [option=value ...]
    python -m scripts.report NAME --help

Pages and pictures:
    html        tables, curves, gradients and pictures of all runs in one page, outputs/report.html
    dataset     a data set in one page: its classes, objects and some images
    compare     two runs: differences in their settings and in AP
    gallery     the detections of every detector in the same images
    heads       the score maps of a run for one image
    figures     the figures of the losses, in results/figures
    trade       the gain of each loss of a table on rare classes against its loss on frequent ones
    push        the gradient of each loss on each frequency group over training, and the gain of each group
    screen      the gradient of losses on each frequency group of a trained detector

Questions about the records of a table, answered in results/TABLE:
    contrast    one loss against the others: intervals, exact p values, correction for the number of comparisons
    ranking     the losses of a table in the order of their gains, with their costs
    noise       the changes of a table when only the seed changes
    classes     the classes whose AP a loss changes most
    mechanism   the gradient of a loss on each frequency group, early and late
    gate        the opening of AFL's gate over training
    choice      the free choices of AFL that its search selects
    forms       the form of AFL that the rule of results/protocol.md chooses
    tuning      the best setting of a loss, from runs that change one at a time
    fit         AP on the training images
    recognition the part of the objects that is localised, and the part of these that gets its class
    documents   the tables inside README.md and the pages of results/
"""

from __future__ import annotations

import ast
import importlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afl.config import did_you_mean
from scripts.entry import asks_for_help, options_of, own_options, quiet_libraries, run_command

HERE = Path(__file__).parent / "reports"
# The module in ``scripts.reports`` of each command; the function has the command's name.
MODULES = {
    "html": "html", "dataset": "dataset", "compare": "compare", "gallery": "gallery", "heads": "heads",
    "figures": "figures", "push": "figures", "trade": "figures", "screen": "screen",
    "contrast": "questions", "ranking": "questions", "noise": "questions", "classes": "questions", "mechanism": "questions",
    "gate": "questions", "choice": "questions", "forms": "questions", "tuning": "questions", "fit": "questions",
    "recognition": "questions", "documents": "questions",
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A command as its source describes it. Its module is imported only when the command runs.

    Attributes:
        document: its docstring.
        defaults: of its options. A tuple in the signature becomes a list.
        takes_more: it accepts further arguments, which are not its options.
    """

    document: str
    defaults: dict[str, Any]
    takes_more: bool


def command(name: str) -> Command:
    """The command of that name."""
    tree = ast.parse((HERE / f"{MODULES[name]}.py").read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    names = [argument.arg for argument in (found.args.kwonlyargs or found.args.args)]
    values = map(ast.literal_eval, found.args.kw_defaults if found.args.kwonlyargs else found.args.defaults)
    defaults = {
        option: list(value) if isinstance(value, tuple) else value
        for option, value in zip(names, values, strict=True)
    }
    return Command(ast.get_docstring(found), defaults, found.args.vararg is not None)


def main(arguments: list[str]) -> Any:
    """Run one command and return its result.

    Raises:
        ValueError: the command does not have the option, or the value has another type.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    quiet_libraries()
    name, *rest = arguments or [""]
    if name not in MODULES:
        if asks_for_help(arguments, __doc__):
            return None
        meant = did_you_mean(name, MODULES) or " Which report?"
        sys.exit(f"{meant[1:]} python -m scripts.report {' | '.join(MODULES)}")
    chosen = command(name)
    if asks_for_help(rest, chosen.document):
        return None
    if chosen.takes_more:
        options, more = own_options(rest, chosen.defaults)
    else:
        options, more = options_of(rest, chosen.defaults), []
    return getattr(importlib.import_module(f"scripts.reports.{MODULES[name]}"), name)(*more, **options)


if __name__ == "__main__":
    run_command(main)
