"""The commands that answer questions about the records in ``results/TABLE``. They print the answer and write it as Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from afl.reporting import answers, load_records, questions
from afl.reporting.documents import refreshed
from afl.reporting.frame import frame
from afl.tables.committed import KeptTable, kept_table, write_answer
from afl.tracking import FINISHED, names_afl, write_json, write_text
from scripts.reports.material import figures_on_training_images, recognition_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README", "longtail_shapes", "mechanism", "other_losses", "photographs", "trashcan_and_bccd")
DOCUMENTS = ("README.md", *(f"results/{page}.md" for page in PAGES))


def noise(table: str = "shapes", seeds: int = 5, results: str = "results") -> None:
    """The changes of a table when only the seed changes.

        python -m scripts.report noise [table=shapes] [seeds=5]

    Prints the standard deviation over seeds and the half-width that the interval of a difference over ``seeds`` seeds would have.
    Writes RESULTS/TABLE/noise.md.
    """
    if seeds < 2:
        sys.exit(f"seeds is {seeds}, but an interval needs two or more")
    kept = kept_table(table, results)
    if len(kept.seeds) < 2:
        sys.exit(f"{kept.folder / 'records'} has records of one seed; the spread over seeds needs two")
    kept.write("noise.md", answers.noise_text(questions.noise(kept.table()), seeds))


def contrast(
    table: str = "shapes", loss: str = "afl", against: str = "", other: str = "", results: str = "results"
) -> None:
    """One loss of a table against the others: intervals, exact p values, correction for the number of comparisons.

        python -m scripts.report contrast [table=shapes] [loss=afl] [against=cbfl_instances]
        python -m scripts.report contrast table=confirmation loss=afl against=fl other=confirmation_lr

    Without ``against``: the loss against focal loss, class-balanced focal loss, deferred weights and the best other loss, if the
    table has them. Writes RESULTS/TABLE/LOSS-contrasts.md, and for a form of AFL also, by detector, AFL against cbfl_instances,
    which is AFL without its gate. With ``against``: by detector only, in RESULTS/TABLE/LOSS-against-AGAINST.md. With ``other``, a table of the same
    detectors and units with other settings: the loss against AGAINST (default: the baseline) of that table, in
    RESULTS/TABLE/LOSS-against-AGAINST-of-OTHER.md.
    """
    kept = kept_table(table, results)
    whole = kept.table()
    if other:
        second = kept_table(other, results).table()
        against = against or str(second.spec.baseline)
        found = questions.contrasts(whole, [(loss, against)], second)
        if not found:
            sys.exit(
                f"tables {table} and {other} have no seed with these losses on every detector of {table}"
            )
        kept.write(f"{loss}-against-{against}-of-{other}.md".replace("/", "_"), answers.contrasts_text(found))
        return
    if not against:
        pairs, best = questions.family(whole, loss)
        found = questions.contrasts(whole, pairs)
        if not found:
            sys.exit(f"{kept.folder / 'records'} has no seed with {loss} and another loss on every detector")
        kept.write(f"{loss}-contrasts.md".replace("/", "_"), answers.contrasts_text(found, best))
        if names_afl(loss) and "cbfl_instances" in whole.spec.losses:
            against = "cbfl_instances"
    if against:
        text = answers.contrast_text(questions.contrast(whole, loss, against), loss, against)
        kept.write(f"{loss}-against-{against}.md".replace("/", "_"), text)


def ranking(table: str = "remedies", results: str = "results") -> None:
    """The losses of a table in the order of what they gain over its baseline, with what they cost.

        python -m scripts.report ranking [table=remedies]

    Gains with 95 % intervals and p values adjusted for their number (Holm), and the time and memory of a training step as multiples
    of focal loss's, from RESULTS/benchmark. A table that is still being filled is ranked over the detectors that have the most
    losses. Writes RESULTS/TABLE/ranking.md.
    """
    kept = kept_table(table, results)
    whole = kept.most_complete()
    found = questions.ranking(whole, questions.step_costs(Path(results) / "benchmark" / "remedies.json"))
    kept.write("ranking.md", answers.ranking_text(found, whole.spec.detectors, whole.spec.baseline))


def classes(
    table: str = "trashcan", losses: Sequence[str] = (), shown: int = 6, results: str = "results"
) -> None:
    """The classes of a table whose AP a loss changes most, averaged over detectors.

        python -m scripts.report classes [table=trashcan] [losses=[fl,afl]] [shown=6]

    Losses are compared with the first one. By default they are all losses of the table. A table of several data sets has an answer
    for each of them. Writes RESULTS/TABLE/classes.md.
    """
    kept = kept_table(table, results)
    whole = kept.table()
    spec = whole.spec
    losses = list(losses) or list(spec.losses)
    spec.require_losses(losses)
    own = frame(whole.cells)
    found = {
        name: questions.classes(own[own.dataset == name], spec.detectors, losses) for name in spec.datasets
    }
    if all(one.empty for one in found.values()):
        sys.exit(f"no seed of {kept.folder / 'records'} has {', '.join(losses)} on every detector yet")
    texts = {
        name: f"no seed has {', '.join(losses)} on every detector yet"
        if one.empty
        else answers.classes_text(questions.most_moved(one, losses[0], shown), losses[0])
        for name, one in found.items()
    }
    several = len(texts) > 1
    parts = [f"{name}:\n\n{text}" if several else text for name, text in texts.items()]
    kept.write("classes.md", "\n\n".join(parts))


def mechanism(
    table: str = "shapes",
    losses: Sequence[str] = ("cbfl_instances", "afl"),
    parts: Sequence[int] = (0, 2, -1),
    results: str = "results",
) -> None:
    """The gradient of a loss on the positives of each frequency group as a multiple of the baseline's, early and late, in the
    batches that a run logs.

        python -m scripts.report mechanism [table=shapes] [losses=[cbfl_instances,afl]] [parts=[0,2,-1]]

    ``parts`` are tenths of the logged batches, from 0; negative ones count from the end. Gradients are measured only in logged
    batches, one in every trainer.log_every steps: of 840 steps with log_every=50steps a tenth has one or two. Writes
    RESULTS/TABLE/mechanism.md.
    """
    kept = kept_table(table, results)
    found = questions.push_ratios(_long(kept), losses, kept.spec.baseline)
    if found.empty:
        sys.exit(
            f"{kept.folder / 'records'} has no seed with runs of {kept.spec.baseline} and of {', '.join(losses)}"
        )
    kept.write("mechanism.md", answers.mechanism_text(found, parts))


def gate(
    tables: Sequence[str] = (
        "shapes",
        "data_seeds",
        "confirmation",
        "scratch",
        "short",
        "closed",
        "bccd",
        "trashcan_frames",
        "trashcan",
        "photos_gpu",
        "foda",
        "forms_ccp",
    ),
    loss: str = "afl",
    results: str = "results",
) -> None:
    """The opening of AFL's gate over the training: kappa at each quarter, from 1 (closed) to 0 (open).

        python -m scripts.report gate [tables=[shapes,trashcan]] [loss=afl]

    A gate that stays closed means that training ended while the gradients were still large. Writes RESULTS/gate.md.
    """
    found = {}
    for name in tables:
        kept = kept_table(name, results)
        found[name] = questions.gate_opening(_long(kept), loss)
        if found[name].empty:
            sys.exit(f"no finished run of {loss} in {kept.folder / 'records'} has a gate on record")
    write_answer(Path(results) / "gate.md", answers.gate_text(found))


def choice(table: str = "search", results: str = "results") -> None:
    """The free choices of AFL that its search selects, by the rule of results/protocol.md.

        python -m scripts.report choice [table=search]

    Writes RESULTS/TABLE/choice.md.
    """
    kept = kept_table(table, results)
    if "factors" not in kept.spec:
        sys.exit(f"table={kept.spec.name} is not a search: it names no factors")
    factors = OmegaConf.to_container(kept.spec.factors)
    levels = questions.choice(_long(kept), kept.spec.baseline, kept.spec.start, factors)
    kept.write("choice.md", answers.choice_text(levels))


def forms(
    tables: Sequence[str] = ("forms", "forms_ccp"), least_head: float = -0.005, results: str = "results"
) -> None:
    """Which form of AFL the rule of results/protocol.md chooses from its development sets.

        python -m scripts.report forms [tables=[forms,forms_ccp]]

    Writes RESULTS/FIRST_TABLE/forms.md.
    """
    kept = {name: kept_table(name, results) for name in tables}
    first = kept[tables[0]]
    candidates = [name for name in first.spec.losses if names_afl(name)]
    found = questions.forms(
        {name: _long(one) for name, one in kept.items()}, first.spec.baseline, candidates, least_head
    )
    titles = {name: one.spec.label for name, one in kept.items()}
    first.write("forms.md", answers.forms_text(found, titles))


def tuning(folder: str = "results/forms/fl_tuning") -> None:
    """The settings of one loss by the figures of runs that change one setting at a time.

        python -m scripts.report tuning [folder=results/forms/fl_tuning]

    Reads FOLDER/records; the most frequent value of a setting is its default. Writes FOLDER/tuning.md.

    Raises:
        ValueError: the folder has no records.
    """
    records = load_records(sorted((Path(folder) / "records").glob("*.json")))
    if not records:
        raise ValueError(
            f"{folder}/records has no records; name a folder with a records directory: folder=FOLDER"
        )
    write_answer(Path(folder) / "tuning.md", answers.tuning_text(questions.tuning(records)))


def fit(
    table: str = "shapes",
    losses: Sequence[str] = ("fl", "afl"),
    metrics: Sequence[str] = (),
    runs: str = "outputs",
    results: str = "results",
) -> None:
    """AP on the training images and on the validation images.

        python -m scripts.report fit [table=shapes] [losses=[fl,afl]] [metrics=[AP_r,AP_f]] [runs=outputs]

    Runs of the table in ``runs`` that were not measured before are evaluated on their training images, without augmentation, and kept in
    RESULTS/TABLE/fit.json. By default the metrics are those of the rarest and of the most frequent group of the data set. Writes
    RESULTS/TABLE/fit.md.
    """
    kept = kept_table(table, results)
    path = kept.folder / "fit.json"
    known = _measured_before(path)
    for record in kept.records:
        wanted = record.status == FINISHED and record.loss in losses and record.key not in known
        measured = figures_on_training_images(Path(runs) / record.key) if wanted else None
        if measured:
            known[record.key] = measured
            write_json(path, known)
            print(f"{record.key}: AP {100 * measured['AP']:.1f} on its training images")
    own = _long(kept)
    groups = [name for name in ("AP_r", "AP_c", "AP_f") if (own.metric == name).any()]
    answered = [
        answers.fit_text(found, metric)
        for metric in list(metrics) or dict.fromkeys([*groups[:1], *groups[-1:]])
        if not (found := questions.fit(own, known, losses, metric)).empty
    ]
    if not answered:
        sys.exit(
            f"none of the runs of {', '.join(losses)} in {kept.folder / 'records'} has been measured or has its weights in {runs}; "
            "name their folder: runs=FOLDER"
        )
    kept.write("fit.md", "\n\n".join(answered))


def _measured_before(path: Path) -> dict[str, Any]:
    """Figures by run key that an earlier call has kept in a file; empty if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def recognition(
    table: str = "foda",
    losses: Sequence[str] = ("fl", "afl"),
    shifts: Sequence[float] = (),
    runs: str = "outputs",
    results: str = "results",
) -> None:
    """Which part of the objects is localised, and which part of these gets its class.

        python -m scripts.report recognition [table=foda] [losses=[fl,afl]] [shifts=[0.3,0.6]] [runs=outputs]

    An object is localised if a detection of any class overlaps it by at least 0.5, and recognised if the detection with the highest
    score among these has its class. Kept detections of the table's runs in ``runs`` are counted. ``shifts`` also evaluates the
    weights of the first loss with logits shifted by tau ln(n_c / max n), the post-hoc logit adjustment, for each of these tau. The
    counts are kept in RESULTS/TABLE/recognition.json. Writes RESULTS/TABLE/recognition.md.
    """
    kept = kept_table(table, results)
    path = kept.folder / "recognition.json"
    known = _measured_before(path)
    own = _long(kept)
    own = own[own.loss.isin(losses)].drop_duplicates("key")
    first = own[own.loss == losses[0]]
    shifted = {tau: f"{losses[0]}, shift {tau:g}" for tau in shifts}
    for tau, name in shifted.items():
        keys = ["+".join(f"{part} shift {tau:g}" for part in key.split("+")) for key in first.key]
        own = pd.concat([own, first.assign(loss=name, key=keys)])
    for key in (part for keys in own.key for part in keys.split("+") if part not in known):
        folder, _, tau = key.partition(" shift ")
        counts = recognition_of(Path(runs) / folder, float(tau) if tau else None)
        if counts:
            known[key] = counts
            write_json(path, known)
    order = [losses[0], *shifted.values(), *losses[1:]]
    localised, recognised = questions.recognition(own, known, order)
    if localised.empty:
        sys.exit(
            f"no run of {', '.join(losses)} in {kept.folder / 'records'} has been counted or has its detections in {runs}; "
            "name their folder: runs=FOLDER"
        )
    kept.write("recognition.md", answers.recognition_text(localised, recognised))


def documents() -> None:
    """Update the tables of results/ inside README.md and the pages of results/, between their marks.

        python -m scripts.report documents

    Names the files that it has written.
    """
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        if (new := refreshed(text, ROOT / "results", (ROOT / name).parent)) != text:
            write_text(ROOT / name, new)
            print("written:", name)
        else:
            print("up to date:", name)


def _long(kept: KeptTable) -> pd.DataFrame:
    """The long table of a kept table's runs, in the order of their files."""
    return frame(dict(sorted(kept.table().cells.items())))
