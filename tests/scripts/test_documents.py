"""Commands in the documents compose, names and link targets exist, and code runs."""

from __future__ import annotations

import re
import shlex
from itertools import product

import pytest
import torch

from afl.config import CONF
from afl.training.compose import compose_cell
from scripts import dashboard, export, predict, prepare_data, report
from scripts.entry import options_of, unknown_choice

ROOT = CONF.parent
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (CONF.parent / "docs").glob("*.md")),
)
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
# Files that the documents ask the reader to create.
OWN = re.compile(r"mine|birds|local")
TRAIN = re.compile(r"(?:python|torchrun --nproc-per-node \d+) -m scripts\.train +(.+)")


def commands(pattern: re.Pattern | str) -> list[str]:
    """The text after ``pattern`` in all examples, on separate lines or inside sentences, without comments."""
    found = []
    for text in TEXTS.values():
        joined = re.sub(r"\\\n *", "", text)
        for line in [*joined.splitlines(), *re.findall(r"`([^`\n]+)`", joined)]:
            match = re.match(pattern, line.strip())
            if match and not re.search(r"\.\.\.|scripts\.\w+ NAME", line):
                found.append(re.sub(r"\s#.*| {2,}\S.*", "", match[1]).strip())
    return list(dict.fromkeys(found))


def cells(words: list[str]) -> list[list[str]]:
    """The runs of a sweep with the first and the last value of every list."""
    choices = []
    for word in words:
        name, _, value = word.partition("=")
        values = value.split(",") if re.fullmatch(r"[\w/,]+", value) else [value]
        choices.append([f"{name}={one}" for one in dict.fromkeys((values[0], values[-1]))])
    return [list(one) for one in product(*choices)]


# tests/scripts/test_extending.py runs the commands with a loss that the reader writes.
@pytest.mark.parametrize("arguments", [one for one in commands(TRAIN) if "loss=mine" not in one])
def test_training_commands_compose(arguments):
    words = [word for word in shlex.split(arguments.replace(" --cfg job --resolve", "")) if word != "-m"]
    assert unknown_choice(words) is None
    words = [word for word in words if not re.match(r"hydra[./]", word)]
    for cell in cells(words):
        given = dict(word.partition("=")[::2] for word in cell)
        detector = given.pop("detector", "centernet")
        if "/" in given.get("experiment", ""):
            detector = given["experiment"].rpartition("/")[2]
        loss = given.pop("loss", "fl")
        compose_cell(
            detector=detector, loss=loss, overrides=[f"{name}={value}" for name, value in given.items()]
        )


def test_there_are_commands_of_every_kind():
    assert len(commands(TRAIN)) >= 15
    for module, known in (
        ("predict", predict.DEFAULTS),
        ("export", export.DEFAULTS),
        ("dashboard", dashboard.DEFAULTS),
    ):
        examples = commands(rf"python -m scripts\.{module} (.+)")
        assert examples, module
        for line in examples:
            options_of(
                [word for word in shlex.split(line) if not word.startswith("[") and word != "demo"], known
            )
    for line in commands(r"python -m scripts\.report (.+)"):
        assert line.split()[0] in report.MODULES, line
    for line in commands(r"python -m scripts\.prepare_data (.+)"):
        assert line.split()[0] in {
            "check",
            "instrument",
            "shapes",
            *prepare_data.DOWNLOADS,
            *prepare_data.CONVERSIONS,
        }, line


@pytest.mark.parametrize("name", DOCUMENTS)
def test_targets_modules_and_files_exist(name):
    text = TEXTS[name]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = [line.partition(":")[0] for line in makefile.splitlines() if re.match(r"[a-z%-]+:", line)]
    for target in re.findall(r"(?:`|^ *)make ([a-zA-Z-]+)", text, re.M):
        assert any(re.fullmatch(one.replace("%", ".+"), target) for one in known), target
    for script in re.findall(r"python -m scripts\.(\w+)", text):
        assert (ROOT / "scripts" / f"{script}.py").is_file(), script
    for path in re.findall(r"`((?:afl|conf|detectors|datasets|docs|tests|results)/[\w/.-]+)`", text):
        assert (ROOT / path).exists() or OWN.search(path), path


@pytest.mark.parametrize(
    "name", [*DOCUMENTS, *(f"results/{path.name}" for path in (ROOT / "results").glob("*.md"))]
)
def test_targets_of_links_and_pictures_exist(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            path = (ROOT / name).parent / file if file else ROOT / name
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub creates them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_page_on_training_names_every_member_of_the_listed_groups():
    rows = re.findall(r"^\| (`\w+`.*?) \| (.+) \|$", TEXTS["docs/train.md"], re.M)
    named: dict[str, set[str]] = {}
    for groups, members in rows:
        for group in re.findall(r"`(\w+)`", groups):
            if (CONF / group).is_dir():
                named.setdefault(group, set()).update(re.findall(r"`([\w/]+)`", members))
    assert set(named) == {
        "detector", "loss", "dataset", "backbone", "regime", "optimizer", "schedule", "experiment", "debug",
    }  # fmt: skip
    for group, members in named.items():
        files = {path.stem for path in (CONF / group).glob("*.yaml")} - {"shapes_pretraining"}
        assert files <= members, (group, files - members)


def test_the_ten_lines_for_torchvision_run_unchanged():
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.S) if "AdaptiveHead" in c]
    names: dict = {}
    # No weights are downloaded here.
    exec(
        compile(code.replace('weights_backbone="DEFAULT"', "weights_backbone=None"), "README.md", "exec"),
        names,
    )
    model = names["model"].train()
    model.transform.min_size, model.transform.max_size = (64,), 64
    target = {"boxes": torch.tensor([[5.0, 6.0, 50.0, 60.0]]), "labels": torch.tensor([3])}
    loss = model.head.classification_head.loss
    calls: list = []
    loss.register_forward_hook(lambda *call: calls.append(call))
    found = model([torch.rand(3, 64, 64) for _ in range(2)], [target, target])["classification"]
    found.backward()
    # One call for the batch, or the gate would open faster the more images a step has. Its state is saved with the model.
    assert len(calls) == 1
    assert found.item() > 0 and "head.classification_head.loss.class_weights" in model.state_dict()
    assert loss.class_weights[0] < loss.class_weights[1]
    assert model.head.classification_head.cls_logits.weight.grad.abs().sum() > 0


def test_the_contributing_rules_are_ten():
    assert re.findall(r"^(\d+)\. ", TEXTS["CONTRIBUTING.md"], re.M) == [str(n) for n in range(1, 11)]
