"""``python -m scripts.report gallery [runs=outputs] [dataset=shapes_lvis] [loss=afl] [seed=0] [images=4] [output=FILE]``:
what every detector finds in the same validation images."""

from __future__ import annotations

from pathlib import Path

from afl.reporting import load_records
from afl.reporting.gallery import draw_gallery, save_jpeg
from afl.reporting.report.material import in_order
from afl.tracking import FINISHED
from scripts.entry import options_of
from scripts.run_material import data_of, gallery, telling_images

DEFAULTS = {
    "runs": "outputs",
    "dataset": "shapes_lvis",
    "loss": "afl",
    "seed": 0,
    "images": 4,
    "output": None,  # gallery-DATASET-LOSS.jpg beside the runs
}


def write_gallery(arguments: list[str]) -> Path:
    """Draw one column for each detector that has a finished run; returns the picture's path.

    Raises:
        ValueError: no finished run is of this data set, loss and seed.
        DataError: the data set is not here.
    """
    options = options_of(arguments, DEFAULTS)
    runs = Path(options["runs"])
    wanted = tuple(options[name] for name in ("dataset", "loss", "seed"))
    chosen = {
        record.detector: record
        for record in (load_records(runs) if runs.is_dir() else [])
        if record.status == FINISHED
        and (record.dataset, record.loss, record.seed) == wanted
        and (runs / record.key).is_dir()
        and record.config.get("subset") is None
    }
    if not chosen:
        raise ValueError(f"{runs} has no finished run of {wanted[0]} with {wanted[1]} and seed {wanted[2]}")
    records = [chosen[name] for name in in_order(chosen)]
    data = data_of(records[0])
    images = telling_images(data, options["images"])
    columns = [gallery(runs / record.key, record, data, images) for record in records]
    path = Path(options["output"] or runs / f"gallery-{wanted[0]}-{wanted[1]}.jpg")
    save_jpeg(draw_gallery(columns), path)
    print(f"written: {path} ({', '.join(record.detector for record in records)})")
    return path
