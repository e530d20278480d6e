"""This project against others on the same work, in one run on this machine.

    python -m scripts.benchmark                          # every subject of the next line
    python -m scripts.benchmark loss|step|remedies|gpu|eval|input|decode|project [...]
    python -m scripts.benchmark clone                    # an hour: set-up, table and tests of a clean clone
    python -m scripts.benchmark loss quick=true          # small sizes in seconds: whether it runs, not how fast
    python -m scripts.benchmark threads=2 results=FOLDER
    python -m scripts.benchmark profile [against=CHECKOUT] [steps=12] [rounds=3] [compiled=false]   # where a step's time goes

Prints a table of ours, theirs, ratio, memory, budget and verdict, and writes it as JSON with the machine's facts to
``results/benchmark/SUBJECT.json``, and all of them as a page to ``results/benchmark/README.md``. Times are medians of
repetitions that take turns; the other side is called from its own package. ``profile`` writes the page
``results/speed/README.md``; with ``against`` an older checkout is measured beside.
"""

from __future__ import annotations

import os

from scripts.entry import asks_for_help, options_of, quiet_libraries, run_command

SUBJECTS = ("loss", "step", "remedies", "gpu", "eval", "input", "decode", "project", "clone")
DEFAULTS = {
    "quick": False,
    "threads": 1,
    "results": "results",
    "against": None,
    "steps": 12,
    "rounds": 3,
    "compiled": True,
}


def main(arguments: list[str]) -> None:
    """Subjects, or ``profile``, and ``NAME=VALUE`` options; see the top of this file."""
    if asks_for_help(arguments, __doc__):
        return
    chosen = [argument for argument in arguments if "=" not in argument]
    options = options_of([argument for argument in arguments if "=" in argument], DEFAULTS)
    unknown = sorted(set(chosen) - {*SUBJECTS, "profile"})
    if unknown:
        raise ValueError(
            f"the benchmark does not know {unknown[0]!r}; it takes {', '.join([*SUBJECTS, 'profile'])}"
        )
    # Before torch: its profiler reports memory that it did not see allocated, and that there is no GPU.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from afl.benchmarks.run import run

    quiet_libraries()
    run(chosen, options)


if __name__ == "__main__":
    run_command(main)
