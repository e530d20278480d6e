"""The command that shows all tables and runs in one page."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from omegaconf import OmegaConf

from afl.reporting import Table, TableSpec, build_table, load_records
from afl.reporting.names import in_order
from afl.reporting.pages.material import Gallery, Material
from afl.reporting.pages.report import report
from afl.reporting.records import CellName, cell_of, variants_of
from afl.tables.committed import table_spec
from afl.tracking import FINISHED, Record, read_metrics, write_text
from afl.training.run_identity import CURVES, RECORD
from datasets import DataError
from datasets.errors import explained
from scripts.entry import CONF
from scripts.reports.material import data_of, gallery_of, run_folders, telling_images

# The first table of the page. Its runs are drawn in the charts.
FIRST = "shapes"
BASELINE, OTHER = "fl", "afl"


def html(
    results: str = "results", runs: str = "outputs", output: str = "outputs/report.html", images: int = 4
) -> Path:
    """Tables, differences, class frequencies, pictures, curves, gradients and protocol of all runs, in one page.

        python -m scripts.report html [results=results] [runs=outputs] [output=outputs/report.html] [images=4]

    Tables are those of RESULTS/*/records, and one of the finished runs in RUNS that none of them contains. Curves and pictures come
    from the run directories in RUNS, for the first table that has some there.

    Raises:
        ValueError: no finished run exists.
    """
    folder = Path(runs)
    tables = tables_of_results(Path(results))
    own, notes = tables_of_runs(folder, without={key for table in tables for key in _finished(table)})
    tables += own
    if not tables:
        raise ValueError(
            f"no records in {results}/*/records and no runs in {runs}: train something first, for example "
            "make reproduce-table"
        )
    here = run_folders(folder)
    tables.sort(key=lambda table: not here.keys() & _finished(table).keys())
    material = gather(tables, folder, images, notes)
    page = report(material)
    path = Path(output)
    write_text(path, page)
    for line in material.missing:
        print(line)
    print(f"written: {path} ({len(page.encode()) / 1e6:.1f} MB; open it in any browser)")
    return path


def tables_of_results(results: Path) -> list[Table]:
    """The tables whose records are kept in ``results``, as ``conf/table`` describes them."""
    tables = []
    for folder in sorted(results.glob("*/records")):
        records = load_records(sorted(folder.glob("*.json")))
        if any(record.status == FINISHED for record in records):
            name = folder.parent.name
            tables.append(build_table(records, _spec(name, records)))
    return sorted(tables, key=lambda table: table.spec.name != FIRST)


def _finished(table: Table) -> dict[str, Record]:
    """The finished runs of a table by run key."""
    return {r.key: r for r in table.cells.values() if r is not None and r.status == FINISHED}


def tables_of_runs(runs: Path, without: Collection[str] = ()) -> tuple[list[Table], list[str]]:
    """One table of all finished runs without pre-training and trials on subsets, and the names of the runs that it does not show.

    Of several runs of a cell with different settings, the last one to finish is shown.

    Args:
        without: keys of runs that are shown elsewhere.
    """
    found = [
        (path.stat().st_mtime, record)
        for path in sorted(runs.glob(f"*/{RECORD}"))
        for record in load_records([path])
        if record.status == FINISHED
        and record.key not in without
        and "pretraining" not in record.dataset
        and record.config.get("subset") is None
    ]
    variants = variants_of(record for _, record in found)
    newest: dict[CellName, Record] = {}
    left_out = []
    for _, record in sorted(found, key=lambda pair: -pair[0]):
        cell = cell_of(record, variants.get(record.dataset, ()))
        if newest.setdefault(cell, record) is not record:
            left_out.append(record.key)
    records = list(newest.values())
    if not records:
        return [], []
    notes = []
    if left_out:
        notes.append(
            f"{len(left_out)} runs of cells that were run again later with other settings are not shown: "
            + ", ".join(left_out)
        )
    return [build_table(records, _spec("runs", records, f"Runs in {runs}"))], notes


def _spec(name: str, records: list[Record], title: str = "") -> TableSpec:
    """The table of ``conf/table/NAME.yaml``. For other names, a table of all records."""
    path = CONF / "table" / f"{name}.yaml"
    seeds = sorted({record.seed for record in records})
    if path.is_file():
        return table_spec(OmegaConf.load(path), seeds)
    losses = sorted(
        {record.loss for record in records}, key=lambda loss: (loss != BASELINE, loss == OTHER, loss)
    )
    return TableSpec(
        name=name,
        detectors=in_order({record.detector for record in records}),
        losses=losses,
        datasets=sorted({record.dataset for record in records}),
        seeds=seeds,
        baseline=BASELINE if BASELINE in losses and len(losses) > 1 else None,
        title=title or name,
        label="Your runs" if title else name,
        variants=variants_of(records),
    )


def gather(tables: list[Table], runs: Path, images: int, notes: list[str]) -> Material:
    """Everything that the page shows besides tables. Missing parts are left out and named after the ``notes``."""
    folders, missing = run_folders(runs), list(notes)
    main = tables[0]
    records = list(_finished(main).values())
    here = {record.key: folders[record.key] for record in records if record.key in folders}
    if len(here) < len(records):
        missing.append(
            f"{len(records) - len(here)} of {len(records)} runs of the table {main.spec.name} have no directory in {runs}: "
            "their curves and pictures are not shown. The command that made the table makes them."
        )
    instances, galleries = {}, []
    for dataset in main.spec.datasets:
        own = [record for record in records if record.dataset == dataset]
        if not own:
            continue
        try:
            data = data_of(own[0])
        except (DataError, OSError) as error:
            missing.append(
                f"{dataset} is not on this machine, so class frequencies and pictures are not shown: {explained(error)}"
            )
            continue
        counts = data.statistics.instances.tolist()
        instances[dataset] = dict(zip(data.statistics.names, counts, strict=True))
        chosen = telling_images(data, images)
        galleries += _galleries(main, own, here, data, chosen, missing)
    return Material(
        tables=tables,
        instances=instances,
        curves={key: read_metrics(folder / CURVES) for key, folder in here.items()},
        galleries=galleries,
        missing=missing,
    )


def _galleries(
    main: Table, records: list[Record], here: dict, data, images: list[int], missing: list[str]
) -> list[Gallery]:
    """For each detector the baseline and AFL, or another loss if there is no AFL, first seed."""
    baseline = main.spec.baseline
    others = sorted((loss for loss in main.spec.losses if loss != baseline), key=OTHER.__ne__)
    arms = [baseline, *others] if baseline else others
    found = []
    for detector in main.spec.detectors:
        own = sorted(
            (r for r in records if r.detector == detector and r.key in here),
            key=lambda record: (arms.index(record.loss), record.seed),
        )
        shown: dict[str, Record] = {}
        for record in own:
            shown.setdefault(record.loss, record)
        for record in list(shown.values())[:2]:
            try:
                found.append(gallery_of(here[record.key], record, data, images))
            except (DataError, ValueError) as error:
                missing.append(str(error))
    return found
