"""The command that draws a gallery of detections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from afl.reporting import load_records
from afl.reporting.figures.gallery import draw_gallery
from afl.reporting.figures.style import save_as
from afl.reporting.names import in_order
from afl.reporting.records import Unit, cell_of, variants_of
from afl.tracking import FINISHED, Record
from scripts.reports.material import data_of, gallery_of, telling_images


def gallery(
    runs: str = "outputs",
    dataset: str = "shapes_lvis",
    loss: str = "afl",
    seed: int = 0,
    images: int = 4,
    output: str = "",
) -> Path:
    """The detections of every detector in the same validation images, as a picture for a README or a paper.

        python -m scripts.report gallery [runs=outputs] [dataset=shapes_lvis] [loss=afl] [seed=0] [images=4] [output=FILE]

    A column for each detector that has a finished run. If a data set has draws, splits or folds, all columns show the one with the
    most detectors. Writes RUNS/gallery-DATASET-LOSS.jpg.

    Raises:
        ValueError: no finished run has this data set, loss and seed.
        DataError: the data set is not on this machine.
    """
    folder = Path(runs)
    wanted = (dataset, loss, seed)
    finished = [
        record
        for record in (load_records(folder) if folder.is_dir() else [])
        if record.status == FINISHED
        and (record.dataset, record.loss, record.seed) == wanted
        and (folder / record.key).is_dir()
        and record.config.get("subset") is None
    ]
    chosen = with_common_images(finished)
    if not chosen:
        raise ValueError(
            f"{runs} has no finished run of {wanted[0]} with {wanted[1]} and seed {wanted[2]}; name others with dataset=, loss= and seed=, "
            "or train one"
        )
    records = [chosen[name] for name in in_order(chosen)]
    data = data_of(records[0])
    shown = telling_images(data, images)
    columns = [gallery_of(folder / record.key, record, data, shown) for record in records]
    path = Path(output or folder / f"gallery-{wanted[0]}-{wanted[1]}.jpg")
    save_as(draw_gallery(columns), path)
    print(f"written: {path} ({', '.join(record.detector for record in records)})")
    return path


def with_common_images(records: Sequence[Record]) -> dict[str, Record]:
    """By detector, the records of the variant (draw, split, fold) that the most detectors have, all of one data set.

    Detectors of another variant were evaluated on other images.
    """
    variants = variants_of(records)
    by_unit: dict[Unit, dict[str, Record]] = defaultdict(dict)
    for record in records:
        unit = cell_of(record, variants.get(record.dataset, ()))[-1]
        by_unit[unit][record.detector] = record
    return max(by_unit.values(), key=len, default={})
