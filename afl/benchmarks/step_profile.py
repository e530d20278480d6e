"""The page on the time of the parts of a training step for each detector, and on the effect of each setting."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from afl.benchmarks.harness import machine
from afl.benchmarks.step_parts import PARTS
from afl.reporting.markdown import markdown
from afl.tracking import git_state, write_text

ROOT = Path(__file__).resolve().parents[2]
DETECTORS = ("cornernet", "centernet", "extremenet", "retinanet", "fcos", "objectbox")
LOSS = "afl"
SHIPPED = ("bf16", "channels_last")
# Variants that are compared with the default settings; each removes or adds one setting.
VARIANTS = {
    "shipped": SHIPPED,
    "fp32": ("channels_last",),
    "contiguous": ("bf16",),
    "optimiser not fused": (*SHIPPED, "plain_optimizer"),
    "compiled": (*SHIPPED, "compile"),
}


def write_page(folder: Path, against: str | None, steps: int, rounds: int, compiled: bool = True) -> Path:
    """Measure, and write ``parts.json`` and the page that is generated from it.

    Args:
        folder: of both files.
        against: an older checkout of the project, measured alternately with this one; None keeps its earlier measurement in
            ``parts.json``.
        steps: of each measurement. A measurement runs ``rounds`` times in separate processes, and the median of the medians is used.
        compiled: also measure the compiled step, whose compilation takes one or two minutes for each detector.

    Raises:
        FileNotFoundError: ``against`` is not a checkout.
        RuntimeError: a measurement failed.
    """
    file = folder / "parts.json"
    kept = json.loads(file.read_text()) if file.is_file() else {}
    if against and not (Path(against) / "afl").is_dir():
        raise FileNotFoundError(f"against={against} is not a checkout of this project")
    before, after = {} if against else kept.get("before"), {}
    old = Path(against) if against else None
    variants = {
        name: settings for name, settings in VARIANTS.items() if compiled or "compile" not in settings
    }
    with tempfile.TemporaryDirectory() as cache:
        for detector in DETECTORS:
            mine, others = [], []
            for _ in range(rounds):
                mine.append(_parts(ROOT, detector, steps, f"{cache}/after", variants))
                if old:
                    others.append(_parts(old, detector, steps, f"{cache}/before", {"shipped": SHIPPED}))
            after[detector] = {name: _median([one[name] for one in mine]) for name in variants}
            if old:
                before[detector] = _median([one["shipped"] for one in others])
            print(f"{detector}: {sum(after[detector]['shipped'].values()):.0f} ms", flush=True)
    figures = {
        "machine": machine(),
        "before_commit": git_state(old)["sha"] if old else kept.get("before_commit"),
        "steps": steps,
        "rounds": rounds,
        "before": before,
        "after": after,
    }
    write_text(file, json.dumps(figures, indent=1) + "\n")
    page = folder / "README.md"
    write_text(page, page_of(figures))
    return page


def _parts(
    checkout: Path, detector: str, steps: int, cache: str, variants: dict[str, tuple[str, ...]]
) -> dict[str, dict[str, float]]:
    code = f"import runpy, sys; sys.path.insert(0, {str(checkout)!r}); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    script = Path(__file__).with_name("step_parts.py")
    command = [sys.executable, "-c", code, script, detector, LOSS, str(steps), cache, json.dumps(variants)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{detector} failed in {checkout}: {done.stderr[-800:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _median(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in PARTS}


def _commit(figures: dict) -> str:
    return f" (commit {figures['before_commit'][:7]})" if figures.get("before_commit") else ""


def page_of(figures: dict) -> str:
    """The page as Markdown, from the figures alone."""
    facts, after, before = figures["machine"], figures["after"], figures["before"]
    shipped = {detector: variants["shipped"] for detector, variants in after.items()}
    longest = ", ".join(f"{max(PARTS, key=parts.get)} ({detector})" for detector, parts in shipped.items())
    names = [name for name in next(iter(after.values())) if name != "shipped"]
    ratios = [
        [
            detector,
            *(f"{sum(variants[name].values()) / sum(shipped[detector].values()):.2f}x" for name in names),
        ]
        for detector, variants in after.items()
    ]
    sections = [
        "# Where the time of one training step goes",
        f"LongTail Shapes, 16 images of 96 x 96 pixels, loss `{LOSS}`, backbone `tiny`, one thread of {facts['cpu']}, load "
        f"{facts['load']} at the end, torch {facts['torch']}. Milliseconds: medians over {figures['steps']} steps, then over "
        f"{figures['rounds']} process(es); images were decoded before. On a GPU unmeasured ({facts['gpu']} here).",
        "Made from `parts.json` by `python -m scripts.benchmark profile against=CHECKOUT`, where CHECKOUT is the project before its\n"
        f"kernels, windows for Gaussian targets and fused optimisers{_commit(figures)}; without `against` the column *before* stays as "
        "it is.",
        _table_of_parts(shipped, before),
        "## What bounds it",
        _table_of_shares(shipped),
        f"The longest part: {longest}.",
    ]
    if before:
        rows = [[detector, *_milliseconds(parts)] for detector, parts in before.items()]
        sections += ["## The same parts before", markdown(["detector", *PARTS], rows)]
    sections += [
        "## What each setting buys",
        "A step with another setting over the shipped one (bf16, channels_last, fused optimiser, not compiled), both taking turns in "
        "one process: above 1 the shipped one is faster.",
        markdown(["detector", *names], ratios),
    ]
    if "compiled" not in names:
        sections.append("The compiled step was not measured (`compiled=false`).")
    return "\n\n".join(sections) + "\n"


def _milliseconds(parts: dict[str, float]) -> list[str]:
    return [f"{parts[name]:.1f}" for name in PARTS]


def _table_of_parts(shipped: dict[str, dict[str, float]], before: dict[str, dict[str, float]] | None) -> str:
    rows = []
    for detector, parts in shipped.items():
        total = sum(parts.values())
        old = sum(before[detector].values()) if before else None
        compared = [f"{old:.1f}", f"{old / total:.2f}x"] if old else ["", ""]
        rows.append([detector, *_milliseconds(parts), f"{total:.1f}", *compared])
    return markdown(["detector", *PARTS, "step", "before", "faster"], rows)


def _table_of_shares(shipped: dict[str, dict[str, float]]) -> str:
    rows = []
    for detector, parts in shipped.items():
        total = sum(parts.values())
        shares = [parts["forward"] + parts["backward"], parts["losses"], parts["input"]]
        shares.append(total - sum(shares))
        rows.append([detector, *(f"{100 * share / total:.0f} %" for share in shares)])
    head = ["detector", "network (forward + backward)", "losses and targets", "input", "the rest"]
    return markdown(head, rows)
