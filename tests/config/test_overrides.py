"""Arguments of the command line, read by Hydra, compared with the text that was typed."""

from __future__ import annotations

import os
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from afl.config import CONF, ConfigError, apply_overrides, hydra_override, quoted
from scripts.entry import compose_config

BASE = OmegaConf.create(
    {
        "root": "data", "nothing": None, "size": 4, "rate": 0.1, "flag": False, "compile": "auto", "classes": ["a"],
        "group": {"x": 1}, "follows": "${size}",
    }
)  # fmt: skip

AWKWARD = [
    "/o/birds (1)", "/o/vögel", "/o/猫", "a=b", "a,b", "[abc]", "{a:1}", "set #2", "a&b", "a'b", 'a"b', "a;b", "a!b", "a~b", "2024",
    "0012", "1e3", "1_000", "true", "False", "no", "a: b", "nan", "x(1)", "range(1,3)", "glob(*)", "photo*", "[x", "(", "a\\b", "a b ",
    " a", "'", '"', "a'b\"c", "\\", "a\\'b", "<a>|$", "é\tè",
]  # fmt: skip


def as_hydra_reads(override: str):
    """The value that Hydra's parser reads."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize("text", AWKWARD)
def test_a_text_setting_keeps_the_text_as_typed(text):
    if text in ("a b ", " a"):
        pytest.skip("Hydra's grammar drops spaces at the ends of unquoted text")
    assert as_hydra_reads(hydra_override(f"root={text}", BASE)) == text


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_quoted_text_is_restored(text):
    assert as_hydra_reads(f"key={quoted(text)}") == text


def test_quoted_values_are_restored():
    for value in (None, True, 3, 0.5, [1, "a,b", "2024"], {"x": "a (1)", "y": [None, "true"]}):
        assert as_hydra_reads(f"key={quoted(value)}") == value


def test_quotes_of_the_user_are_kept_and_the_home_folder_is_expanded():
    home = os.path.expanduser("~")
    for argument in (
        "root=~/birds",
        'root="~/birds"',
        "root='~/birds'",
        "nothing=~/birds",
        "nothing='~/birds'",
    ):
        assert as_hydra_reads(hydra_override(argument, BASE)) == f"{home}/birds"
    assert as_hydra_reads(hydra_override('root="2024"', BASE)) == "2024"
    assert as_hydra_reads(hydra_override("root=a~b", BASE)) == "a~b"


def test_other_forms_are_not_changed():
    for argument in (
        "~root",
        "-m",
        "root=${nothing}",
        "nothing=null",
        "size=8",
        "rate=1",
        "flag=true",
        "compile=true",
        "classes=[b]",
    ):
        assert hydra_override(argument, BASE) == argument
    assert hydra_override("root=null", BASE) == "root=null"


def test_a_list_of_arguments_needs_no_quotes():
    for argument in (
        "classes=[hydra/launcher=slurm,hydra.launcher.gpus_per_node=1]",
        "classes=[logger=none,seed=3]",
    ):
        expected = argument.removeprefix("classes=[").removesuffix("]").split(",")
        assert as_hydra_reads(hydra_override(argument, BASE)) == expected
    with pytest.raises(ConfigError, match="cannot be read as a list"):
        hydra_override("classes=[a=[1,2]]", BASE)


def test_a_comma_is_a_sweep_only_with_the_sweep_option():
    assert hydra_override("root=a,b", BASE, sweep=True) == "root=a,b"
    assert as_hydra_reads(hydra_override("root=a,b", BASE)) == "a,b"
    assert as_hydra_reads(hydra_override("nothing=a,b", BASE)) == "a,b"
    with pytest.raises(ConfigError, match="^size=1,2 names several values; only a sweep takes several"):
        hydra_override("size=1,2", BASE)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("size=abc", "size is 'abc'; it needs a number such as 4"),
        ("size=true", "it needs a number"),
        ("size=a (1)", "it needs a number"),
        ("follows=abc", "follows is 'abc'; it needs a number"),
        ("rate=[1]", "it needs a number such as 0.1"),
        ("flag=maybe", "it needs true or false"),
        ("flag=1", "it needs true or false"),
        ("classes=cat", "it needs a list such as"),
        ("classes=[a (1)]", "cannot be read as a list; put every text with special characters in quotes"),
        ("group=x", "group is a group of settings; set one of them, for example group.x="),
        ("nothing=[a (1)]", "cannot be read as a list"),
    ],
)
def test_a_value_of_the_wrong_kind_gives_one_line(argument, words):
    with pytest.raises(ConfigError) as error:
        hydra_override(argument, BASE)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_each_value_of_a_sweep_is_checked():
    assert hydra_override("size=1,2", BASE, sweep=True) == "size=1,2"
    assert hydra_override("size=range(1,4)", BASE, sweep=True) == "size=range(1,4)"
    with pytest.raises(ConfigError, match="it needs a number"):
        hydra_override("size=1,b", BASE, sweep=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset.root", "/data/birds (1), 2"),
        ("dataset.name", "2024"),
        ("dataset.name", "true"),
        ("paths.output", "out=é"),
    ],
)
def test_the_composed_config_has_the_text(key, value):
    config = compose_config(["dataset=custom", "detector=fcos", "backbone=tiny", f"{key}={value}"])
    assert OmegaConf.select(config, key) == value
    with initialize_config_dir(str(CONF), version_base="1.3"):
        again = compose(
            "config", ["dataset=custom", "detector=fcos", "backbone=tiny", f"{key}={quoted(value)}"]
        )
    assert OmegaConf.select(again, key) == value


def test_overrides_are_applied_in_order_and_an_unknown_one_is_named():
    config = OmegaConf.create({"root": "x", "file": "${root}/a", "trainer": {"batch_size": 1}})
    apply_overrides(config, ["root=/a (1)", "trainer.batch_size=2", "root=/b #2"])
    assert config.file == "/b #2/a" and config.trainer.batch_size == 2
    for argument, words in (
        ("trainer.batch_sise=2", "Did you mean trainer.batch_size?"),
        ("batch_size=2", "Did you mean trainer.batch_size?"),
        ("trainr.batch_sise=2", "Did you mean trainer.batch_size?"),
        ("trainer.zebra=2", "There is no trainer.zebra. There are: trainer.batch_size"),
        ("zebra.batch=2", "There is no zebra.batch. There are: root, file, trainer"),
        ("trainer", "'trainer' does not have the form NAME=VALUE"),
        ("trainer=cpu", "trainer is a group of settings"),
    ):
        with pytest.raises(ConfigError) as error:
            apply_overrides(config, [argument])
        assert words in str(error.value)


def test_the_quoted_form_in_a_message_works_in_a_shell():
    with pytest.raises(ConfigError) as error:
        hydra_override("classes=[a (1)]", BASE)
    (argument,) = shlex.split(str(error.value).split("quotes: ")[1])
    assert as_hydra_reads(argument) == ["text", "text"]
