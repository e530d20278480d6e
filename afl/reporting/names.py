"""Names and order of detectors, frequency groups and metrics in reports."""

from __future__ import annotations

from collections.abc import Iterable

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
DETECTOR_NAMES = {
    "cornernet": "CornerNet",
    "centernet": "CenterNet",
    "extremenet": "ExtremeNet",
    "retinanet": "RetinaNet",
    "fcos": "FCOS",
    "objectbox": "ObjectBox",
}
METRICS = {
    "AP": "AP, all classes",
    "AP_fixed": "AP without a cap per image",
    "AP_r": "AP of rare classes",
    "AP_c": "AP of common classes",
    "AP_f": "AP of frequent classes",
}


def detector_name(detector: str) -> str:
    """The detector's name as its paper spells it."""
    return DETECTOR_NAMES.get(detector, detector)


def in_order(detectors: Iterable[str]) -> list[str]:
    """Detectors in the order of all tables, unknown ones last and by name."""
    order = list(DETECTOR_NAMES)
    return sorted(detectors, key=lambda name: (order.index(name) if name in order else len(order), name))


def percent(value: float | None, signed: bool = False) -> str:
    """Metric in [0, 1] times 100 with one decimal; a dash if undefined."""
    if value is None:
        return "–"
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    return ("0.0" if text in ("-0.0", "+0.0") else text).replace("-", "−")
