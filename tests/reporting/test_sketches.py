"""The sketches are complete XML, and name every detector and every method of the contract."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

import detectors
from detectors.contract import Detector

NAMESPACE = "{http://www.w3.org/2000/svg}"


def words(path) -> str:
    return " ".join("".join(node.itertext()) for node in ElementTree.parse(path).iter(f"{NAMESPACE}text"))


def test_the_architecture_names_every_detector(repository):
    text = words(repository / "results" / "figures" / "architecture.svg")
    for name in detectors.__all__:
        if "Backbone" not in name:
            assert name in text


@pytest.mark.parametrize("verb", ["losses", "decode"])
def test_one_step_names_the_methods_of_the_contract(repository, verb):
    assert hasattr(Detector, verb)
    assert f"detector.{verb}(" in words(repository / "results" / "figures" / "one_step.svg")
