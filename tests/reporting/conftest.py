"""Small sets of records."""

from __future__ import annotations

import pytest

from afl.tracking.record import Record


def make_record(
    detector="fcos", loss="fl", seed=0, status="finished", dataset="shapes", source="aaaaaa", **changes
):
    metrics = changes.pop("metrics", {"AP": 0.3})
    fields = {
        "key": f"{dataset}-{detector}-{loss}-s{seed}-01234567",
        "status": status,
        "dataset": dataset,
        "detector": detector,
        "loss": loss,
        "seed": seed,
        "config": {},
        "protocol": {"backbone": "tiny", "image size": "96", "schedule": "24 epochs"},
        "metrics": metrics if status == "finished" else {},
        "environment": {"device": "Some CPU", "cpu": "Some CPU", "threads": 1},
        "git": {"sha": "0123456789abcdef", "dirty": False, "source": source},
        "train_seconds": 70.0 + seed,
        "eval_seconds": 2.0,
    }
    return Record(**(fields | changes))


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def small_records():
    """Two detectors, three losses and two seeds, with one gain, one failed run, missing runs, and two states of the code."""
    values = {
        ("fcos", "fl"): [(0.300, 0.200), (0.320, 0.220)],
        ("fcos", "afl"): [(0.315, 0.240), (0.335, 0.261)],
        ("centernet", "fl"): [(0.400, 0.300), (0.420, 0.310)],
        ("centernet", "afl"): [None, (0.410, None)],
    }
    records = []
    for (detector, loss), seeds in values.items():
        for seed, pair in enumerate(seeds):
            if pair is None:
                records.append(
                    make_record(detector, loss, seed, "failed", error="loss is nan at step 3 & gone_100%")
                )
            else:
                records.append(
                    make_record(detector, loss, seed, metrics=dict(zip(("AP", "AP_r"), pair, strict=True)))
                )
    records[3] = make_record("fcos", "afl", 1, metrics={"AP": 0.335, "AP_r": 0.261}, source="bbbbbb")
    return records
