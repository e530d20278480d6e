"""The page of the zoo, docs/zoo.md: every figure in it comes from the files of the zoo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from afl.zoo.files import NOTE, Entry

FIGURES = ("AP", "AP_r", "AP_c", "AP_f")


def _figure(name: str, entry: Entry) -> str:
    return percent(entry.metrics.get(name))


COLUMNS: dict[str, Callable[[Entry], str]] = {
    "model": lambda entry: f"`{entry.name}`",
    "data": lambda entry: entry.about["config"]["cell"]["dataset"],
    **{name: partial(_figure, name) for name in FIGURES},
    "parameters, M": lambda entry: f"{entry.run['parameters'] / 1e6:.2f}",
    "ms per image": lambda entry: f"{entry.speed['milliseconds']:.0f}",
    "training, min": lambda entry: f"{entry.run['train_seconds'] / 60:.1f}",
}
HEAD = """# Trained detectors

These detectors come with the repository, in `zoo/`. A name is enough to use one; nothing is downloaded.

```
python -m scripts.zoo             # their names
python -m scripts.predict demo    # a picture in a few seconds
python -m scripts.predict run=zoo:{example} images=photos
```

```python
from afl.predict import load_predictor

predictor = load_predictor("zoo:{example}")
found = predictor("street.jpg")  # boxes, scores, labels

import torch

predictor = torch.hub.load(".", "detector", "{example}", source="local")  # the same, in a clone
```

**Detectors of LongTail Shapes (`shapes_lvis`) know generated shapes of 96 pixels only**, and find nothing useful in photographs. They show
how the detectors and losses behave, and serve as test subjects. Detectors of `foda` find debris on photographs of runways.

"""
NOTES = """
AP is x 100, of the stored weights on the whole validation set, with the data set's own metric; AP_r, AP_c and AP_f are its means over
rare, common and frequent classes. One seed each: these figures describe the files and do not compare losses. The
[results](../results/README.md) do, over seeds and with intervals. {note}

*ms per image* is the processor time of one image on one core ({speeds}), with decoding: the median over 20 images of the fastest of five passes. *Training* is the wall time of
the training on one thread ({devices}), while other programs ran. Training of Shapes detectors starts from features that
are learnt once for each detector, in two to four minutes, which are not counted. Training on `foda` starts from ImageNet features.
"""
FORMAT = """
## The files

A file is in the [safetensors](https://huggingface.co/docs/safetensors) format and is read without pickle. It holds the weights (bfloat16;
biases, norms and statistics in float32) and, as text, the config, the classes with their counts, the data set's hash, the commit, the
protocol, the figures above and a SHA-256 over all of it, which is checked when the file is read. `zoo/images` holds a few validation images of
each data set whose licence allows copies, with that licence. A test loads each file and reproduces its AP on them.

| file | size | AP on the kept images | trained by |
|---|---:|---:|---|
"""
OWN = """
## Your own entry

```
python -m scripts.zoo add run=outputs/NAME name=mine      # zoo/mine.safetensors from a finished run
python -m scripts.zoo make                                # train and write the missing detectors of conf/zoo.yaml
```
"""


def page(entries: Sequence[Entry], sizes: Mapping[str, int]) -> str:
    """The whole page.

    Args:
        sizes: bytes of each file by the name of its entry.
    """
    photographs = [one for one in entries if not one.about["config"]["cell"]["dataset"].startswith("shapes")]
    example = max(photographs or entries, key=lambda one: one.metrics["AP"] or 0.0).name
    speeds = sorted({f"{entry.speed['device']}" for entry in entries})
    devices = sorted({f"{entry.run['device']}" for entry in entries})
    files = [
        f"| [{entry.name}](../zoo/{entry.name}.safetensors) | {sizes[entry.name] / 1e6:.1f} MB | {kept(entry)} | `{entry.command}` |"
        for entry in entries
    ]
    return "\n".join(
        [
            HEAD.format(example=example).rstrip("\n"),
            "",
            *table(entries),
            NOTES.format(note=NOTE, speeds=", ".join(speeds), devices=", ".join(devices)).rstrip("\n"),
            FORMAT.rstrip("\n"),
            *files,
            OWN,
        ]
    )


def table(entries: Sequence[Entry], columns: int | None = None) -> list[str]:
    """The figures as lines of a Markdown table.

    Args:
        columns: the first of ``COLUMNS``; None: all.
    """
    chosen = list(COLUMNS.items())[:columns]
    rule = ["---" if name in ("model", "data") else "---:" for name, _ in chosen]
    rows = [[name for name, _ in chosen], rule, *([show(entry) for _, show in chosen] for entry in entries)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def kept(entry: Entry) -> str:
    """AP on the kept images and their number."""
    return f"{percent(entry.kept['AP'])} on {entry.kept['images']}" if entry.kept else "none kept"


def percent(value: float | None) -> str:
    """x 100 with one decimal; a dash for a figure that is not defined."""
    return "–" if value is None else f"{100 * value:.1f}"
