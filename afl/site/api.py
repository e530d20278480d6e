"""Pages of the programming interface: the modules that other programs import, read from their docstrings by mkdocstrings."""

from __future__ import annotations

PAGES = {
    "losses": (
        "Losses",
        "`afl.losses` needs only PyTorch and is installed by `pip install .` in a clone.",
        (
            "afl.losses.functional",
            "afl.losses.class_weights",
            "afl.losses.adaptive_gradient",
            "afl.losses.classification_loss",
            "afl.losses.contract",
            "afl.losses.weighting",
            "afl.losses.target",
        ),
    ),
    "predict": (
        "Prediction and zoo",
        "Trained detectors in your own program.",
        ("afl.predict", "afl.zoo.files", "afl.export"),
    ),
    "detectors": (
        "Detectors",
        "The contract and the six detectors.",
        (
            "detectors.contract",
            "detectors.cornernet",
            "detectors.centernet",
            "detectors.extremenet",
            "detectors.retinanet",
            "detectors.fcos",
            "detectors.objectbox",
        ),
    ),
    "data": (
        "Data",
        "Readers, transforms and class statistics.",
        ("datasets.index", "datasets.coco", "datasets.lvis", "datasets.voc", "datasets.yolo", "datasets.transforms", "datasets.statistics"),
    ),
    "evaluation": (
        "Evaluation and records",
        "Official metrics, and the record of a run.",
        ("afl.evaluation.evaluator", "afl.evaluation.coco_evaluator", "afl.evaluation.lvis_evaluator", "afl.evaluation.voc_evaluator", "afl.tracking.record", "afl.tracking.overview"),
    ),
}  # fmt: skip


def api_pages() -> dict[str, str]:
    """Markdown of each page by its file name."""
    return {
        f"{name}.md": f"# {title}\n\n{lead}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
        for name, (title, lead, modules) in PAGES.items()
    }
