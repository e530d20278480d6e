"""Compare this project with other packages on the same work, in one run on this machine.

    python -m scripts.benchmark                          # every subject of the next line
    python -m scripts.benchmark loss|step|remedies|gpu|compiled|eval|input|decode [...]
    python -m scripts.benchmark clone                    # half an hour: setup, table and tests of a clean clone
    python -m scripts.benchmark loss quick=true          # small sizes in seconds: a check that it runs, not a measurement
    python -m scripts.benchmark gpu dry=true             # the GPU's run on a CPU, with interpreted kernels: a check that it runs
    python -m scripts.benchmark threads=2 results=FOLDER

Prints a table of our figures, theirs, ratio, memory, budget and verdict. Writes it as JSON, with a description of the machine, to
``results/benchmark/SUBJECT.json``, and writes the page of all tables to ``results/benchmark/README.md``. Times are medians of
alternating repetitions; the other side is called from its package.
"""

from __future__ import annotations

import os

from afl.config import did_you_mean
from scripts.entry import asks_for_help, options_of, quiet_libraries, run_command

SUBJECTS = ("loss", "step", "remedies", "gpu", "compiled", "eval", "input", "decode", "clone")
DEFAULTS = {"quick": False, "dry": False, "threads": 1, "results": "results"}


def main(arguments: list[str]) -> None:
    """Subjects and ``NAME=VALUE`` options; see the top of this file."""
    if asks_for_help(arguments, __doc__):
        return
    chosen = [argument for argument in arguments if "=" not in argument]
    options = options_of([argument for argument in arguments if "=" in argument], DEFAULTS)
    unknown = sorted(set(chosen) - set(SUBJECTS))
    if unknown:
        meant = did_you_mean(unknown[0], SUBJECTS)
        raise ValueError(f"there is no subject {unknown[0]!r}.{meant} There are: {', '.join(SUBJECTS)}")
    if options["dry"]:
        os.environ |= {"TRITON_INTERPRET": "1", "AFL_TRITON": "on"}
    # Set before torch is imported: its profiler reports memory that was allocated earlier, and a missing GPU.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from afl.benchmarks.run import run

    quiet_libraries()
    run(chosen, options)


if __name__ == "__main__":
    run_command(main)
