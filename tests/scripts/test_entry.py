"""Typos on the command line get the nearest name."""

import re

import pytest

from scripts.entry import asks_for_help, options_of, unknown_choice, unknown_key


def test_unknown_group_member_suggests_the_nearest():
    message = unknown_choice(["detector=retinanett", "loss=fl"])
    assert (
        "no detector 'retinanett'" in message and "detector=retinanet?" in message and "centernet" in message
    )


def test_one_wrong_member_of_a_sweep_is_found():
    assert "loss=afl?" in unknown_choice(["-m", "detector=centernet", "loss=fl,aflx"])


def test_what_exists_passes():
    assert (
        unknown_choice(["detector=glob(*)", "loss=afl", "seed=0", "dataset.root=/x", "experiment=null"])
        is None
    )


def test_launchers_of_plugins_and_of_the_project_pass():
    assert unknown_choice(["-m", "hydra/launcher=joblib"]) is None
    assert unknown_choice(["-m", "hydra/launcher=slurm"]) is None


def test_unknown_key_suggests_the_nearest():
    assert "trainer.max_duration" in unknown_key(
        ["dataset=shapes", "trainer.max_durations=3epochs"], "config"
    )
    assert unknown_key(["trainer.max_duration=3epochs"], "config") is None


DEFAULTS = {
    "run": None,
    "output": "outputs",
    "score": 0.3,
    "images": 4,
    "pictures": True,
    "scales": None,
    "losses": ["afl"],
}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("score=0", 0),
        ("score=1e-1", 0.1),
        ("images=12", 12),
        ("pictures=false", False),
        ("scales=[0.5,1.0]", [0.5, 1.0]),
        ("losses=[fl,cbl]", ["fl", "cbl"]),
        ("run=0012", "0012"),  # a folder's name, not a number
        ("output=1e3", "1e3"),
        ("output=true", "true"),
        ("run=*.pt", "*.pt"),  # an alias in YAML
        ("run=a=b", "a=b"),
        ("run=photos [1", "photos [1"),
        ("run=${HOME}", "${HOME}"),
        ("run=", None),
    ],
)
def test_a_value_is_read_as_the_kind_of_its_default(argument, value):
    assert options_of([argument], DEFAULTS) == DEFAULTS | {argument.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("pictures=fasle", "pictures is 'fasle'; it is true or false"),
        ("pictures=1", "it is true or false"),
        ("images=few", "images is 'few'; it is a whole number"),
        ("images=1.5", "it is a whole number"),
        ("images=true", "it is a whole number"),
        ("losses=fl", "losses is 'fl'; it is a list"),
        ("score=high", "score is 'high'; it is a number"),
        ("score=", "it is a number"),
        ("scor=1", "no option 'scor'. Did you mean score?"),
        ("--score", "not of the form NAME=VALUE"),
    ],
)
def test_a_wrong_option_is_answered_in_one_line(argument, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        options_of([argument], DEFAULTS)
    assert "\n" not in str(error.value)


def test_help_is_the_text_at_the_top_of_the_command(capsys):
    assert asks_for_help(["run=x", "--help"], "\nWhat it does.\n") and not asks_for_help(["run=x"], "")
    assert capsys.readouterr().out == "What it does.\n"
