"""The results of a run: its key, its record, its curves, and their copies in W&B and other trackers."""

from afl.tracking.environment import environment, git_state
from afl.tracking.gradient_summary import mass_curves, summarize
from afl.tracking.local import CsvTracker, TensorBoardTracker
from afl.tracking.metrics_log import MetricsLog, read_metrics
from afl.tracking.overview import OBJECTNESS, overview
from afl.tracking.reconstruction import RECONSTRUCTION, names_afl
from afl.tracking.record import (
    FAILED,
    FINISHED,
    DamagedRecord,
    Record,
    read_record,
    record_from,
    unwritable,
    writable,
    write_record,
)
from afl.tracking.record_summary import RECORD, record_of_summary, summary_of_record
from afl.tracking.run_key import RunKey, differing, run_key
from afl.tracking.tracker import Chart, NullTracker, Picture, Tracker
from afl.tracking.wandb import WandbTracker
from datasets.errors import explained
from datasets.files import files_below, remove_leftovers, sync_folder, write_bytes, write_json, write_text

__all__ = [
    "OBJECTNESS",
    "RECONSTRUCTION",
    "RECORD",
    "Chart",
    "CsvTracker",
    "DamagedRecord",
    "record_from",
    "record_of_summary",
    "summary_of_record",
    "FAILED",
    "FINISHED",
    "MetricsLog",
    "NullTracker",
    "Picture",
    "Record",
    "RunKey",
    "TensorBoardTracker",
    "Tracker",
    "WandbTracker",
    "differing",
    "environment",
    "explained",
    "files_below",
    "git_state",
    "mass_curves",
    "names_afl",
    "overview",
    "read_metrics",
    "read_record",
    "remove_leftovers",
    "run_key",
    "summarize",
    "sync_folder",
    "unwritable",
    "writable",
    "write_bytes",
    "write_json",
    "write_record",
    "write_text",
]
