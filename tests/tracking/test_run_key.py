"""Run keys change exactly if a setting changes that affects the result."""

from __future__ import annotations

import copy
import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afl.tracking.run_key import EXCLUDED, differing, run_key

CONFIG = {
    "dataset": {"name": "shapes_lvis", "root": "/data/shapes", "size": 96},
    "detector": {"name": "centernet", "head": {"channels": 32}},
    "loss": {"name": "afl", "chain": ["class_weights", "gate"], "tau": 1.0},
    "optimizer": {"lr": 0.005},
    "trainer": {"max_duration": "24epochs", "threads": 1},
    "paths": {"output": "/somewhere"},
    "seed": 3,
}


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    place = config
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return config


def shuffled(value, rng):
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return {key: shuffled(value[key], rng) for key in keys}
    return value


def test_digest_equals_sha256_of_the_canonical_text():
    config = {
        "seed": 0,
        "loss": "fl",
        "detector": "fcos",
        "dataset": "voc",
        "paths": {"a": 1},
        "lr": 0.5,
        "n": 2.0,
    }
    text = '[{"dataset": "voc", "detector": "fcos", "loss": "fl", "lr": 0.5, "n": 2, "seed": 0}, ""]'
    key = run_key(config)
    assert key.digest == hashlib.sha256(text.encode()).hexdigest()[:8]
    assert key.name == f"voc-fcos-fl-s0-{key.digest}"


def test_the_slug_names_the_run_in_one_word():
    assert run_key(CONFIG).slug == "shapes_lvis-centernet-afl-s3"
    assert run_key(changed("loss.name", "afl, tau = 0.5/x")).slug == "shapes_lvis-centernet-afl_tau_0.5_x-s3"


def test_the_slug_names_the_variant_of_a_data_set():
    assert run_key(changed("dataset.draw", 1)).slug == "shapes_lvis-centernet-afl-s3-draw1"
    folds = {}
    for fold in "ab":
        config = changed("dataset.fold", fold)
        config["dataset"]["split"] = 0
        folds[fold] = run_key(config).slug
    assert folds == {fold: f"shapes_lvis-centernet-afl-s3-split0-fold_{fold}" for fold in "ab"}


@given(st.randoms(use_true_random=False))
def test_order_of_keys_does_not_matter(rng: random.Random):
    assert run_key(shuffled(CONFIG, rng)) == run_key(CONFIG)


@pytest.mark.parametrize("path", EXCLUDED)
def test_settings_without_effect_on_the_result_do_not_change_the_key(path):
    assert run_key(changed(path, "other")) == run_key(CONFIG)


@pytest.mark.parametrize(
    "path, value",
    [
        ("seed", 4),
        ("loss.tau", 0.5),
        ("loss.chain", ["gate", "class_weights"]),
        ("detector.head.channels", 64),
        ("trainer.max_duration", "12epochs"),
        ("optimizer.root", "x"),
        ("optimizer.momentum", None),
    ],
)
def test_settings_that_affect_the_result_change_the_key(path, value):
    assert run_key(changed(path, value)).digest != run_key(CONFIG).digest


def test_integral_floats_equal_integers_and_booleans_are_not_numbers():
    assert run_key(changed("loss.tau", 1)) == run_key(CONFIG)
    assert run_key(changed("loss.tau", True)) != run_key(CONFIG)
    assert run_key(changed("loss.tau", "1")) != run_key(CONFIG)


def test_other_data_change_the_key():
    assert run_key(CONFIG, data="a") != run_key(CONFIG, data="b")


@pytest.mark.parametrize("key", ["dataset", "detector", "loss", "seed"])
def test_a_config_without_names_is_rejected(key):
    config = {name: value for name, value in CONFIG.items() if name != key}
    with pytest.raises(ValueError, match=key):
        run_key(config)


def test_objects_are_rejected_with_their_place():
    with pytest.raises(TypeError, match=r"detector\.head\.channels .* object"):
        run_key(changed("detector.head.channels", object()))


def test_the_keys_that_differ_are_those_that_change_the_run_key():
    other = copy.deepcopy(CONFIG)
    other["loss"]["tau"] = 2
    other["detector"]["head"]["channels"] = 64.0
    other["dataset"]["root"] = "/elsewhere"
    other["paths"] = {"output": "there"}
    other["new"] = True
    assert differing(CONFIG, other) == ["detector.head.channels", "loss.tau", "new"]
    assert differing(CONFIG, copy.deepcopy(CONFIG)) == []
    assert differing({"a": 1, "b": [1.0]}, {"a": 1.0, "b": [1]}) == []
