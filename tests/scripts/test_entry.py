"""Errors about typos on the command line suggest the nearest name."""

import os
import re
import subprocess
import sys

import pytest

from afl.config import CONF, ConfigError
from scripts.entry import (
    asks_for_help,
    checked,
    groups_help,
    members,
    misplaced,
    options_of,
    own_options,
    printable,
    run_command,
    unknown_choice,
)
from scripts.replay import main as replay


def test_an_error_of_the_system_ends_a_command_with_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda _: (tmp_path / "file").mkdir())
    remedy = "a file has the name of a folder: move it or choose another path"
    assert stopped.value.code == f"{tmp_path}/file: File exists; {remedy}"


def test_unknown_group_member_suggests_the_nearest():
    message = unknown_choice(["detector=retinanett", "loss=fl"])
    assert (
        "no detector 'retinanett'" in message and "detector=retinanet?" in message and "centernet" in message
    )


def test_one_wrong_member_of_a_sweep_is_found():
    assert "loss=afl?" in unknown_choice(["-m", "detector=centernet", "loss=fl,aflx"])


def test_existing_members_are_accepted():
    assert (
        unknown_choice(["detector=glob(*)", "loss=afl", "seed=0", "dataset.root=/x", "experiment=null"])
        is None
    )


def test_launchers_of_plugins_and_of_the_project_are_accepted():
    assert unknown_choice(["-m", "hydra/launcher=joblib"]) is None
    assert unknown_choice(["-m", "hydra/launcher=slurm"]) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset=shapes", "trainer.max_durations=3epochs"], "Did you mean trainer.max_duration?"),
        (["batch_size=3"], "Did you mean trainer.batch_size?"),
        (["trainer.batch_size=abc"], "trainer.batch_size is 'abc'; it needs a number"),
        (["-m", "seed=0,x"], "seed is '0,x'; it needs a number"),
        (["loss=fl,afl"], "loss=fl,afl names several values; only a sweep takes several: scripts.train -m"),
        (["seed=0,1"], "seed=0,1 names several values; only a sweep takes several: scripts.train -m"),
        (["loss=fl,aflx"], "Did you mean loss=afl?"),
        (["--detector", "centernet"], "write detector=centernet"),
        (["--detector=centernet"], "write detector=centernet"),
        (["loss=fl", "--seed", "3"], "write seed=3"),
        (["-m", "detector"], "write detector=VALUE"),
        (["detector=fcoss"], "Did you mean detector=fcos?"),
        (["dataset=birds"], "There is no dataset 'birds'. There are: bccd"),  # no name is near
        (["detector=fcos", "detector.fcos=1"], "There is no detector.fcos"),
        # A group is not a suggestion if a setting of the same name exists elsewhere.
        (["optimizer.lr=0.1"], "Did you mean optimizer.factory.lr?"),
        (["local=no_such_file"], "no file conf/local/no_such_file.yaml"),
        (
            ["--config-dir", "mine", "loss=mine"],
            f"--config-dir cannot be used: configs are read from {CONF} only",
        ),
        (["-cd=mine", "loss=mine"], "-cd cannot be used"),
        (["hydra.searchpath=[file:///mine]", "loss=mine"], "hydra.searchpath cannot be used"),
    ],
)
def test_a_mistake_gives_one_line(arguments, words):
    with pytest.raises(ConfigError) as error:
        checked(arguments, "config")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_hydras_forms_are_accepted():
    for arguments in (
        ["--cfg", "job", "--resolve"],
        ["-m", "seed=0,1", "loss=fl,afl", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["+dataset.extra=1", "~dataset.remedy", "--info"],
        ["-m", "detector=fcos,centernet", "detector.peak_kernel=3"],
        ["--info", "defaults"],
    ):
        assert misplaced(arguments) is None and checked(arguments, "config") == arguments


def test_null_is_only_accepted_for_groups_with_a_null_default():
    assert checked(["experiment=null", "seed=1"], "config") == ["seed=1"]
    with pytest.raises(
        ConfigError, match="There is no logger 'null'. There are: csv, none, tensorboard, wandb"
    ):
        checked(["logger=null"], "config")


def test_the_help_lists_every_group_and_member():
    text = groups_help("config")
    for group in ("detector", "loss", "dataset", "backbone", "experiment"):
        assert f"    {group}=" in text and all(member in text for member in members(group))


def test_options_and_overrides_of_one_command_are_separated():
    options, overrides = own_options(["run=2024", "dataset.root=x", "+seed=1"], {"run": None, "file": None})
    assert options == {"run": "2024", "file": None} and overrides == ["dataset.root=x", "+seed=1"]


def test_control_characters_are_escaped_on_a_terminal():
    assert printable("bolt [m6] \x1b[31m猫\n") == "bolt [m6] \\x1b[31m猫\\n"


DEFAULTS = {
    "run": None,
    "output": "outputs",
    "score": 0.3,
    "images": 4,
    "pictures": True,
    "scales": list,
    "flip": bool,
    "image": int,
    "losses": ["afl"],
}
NOT_GIVEN = {name: None if isinstance(default, type) else default for name, default in DEFAULTS.items()}
HOME = os.path.expanduser("~")


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
        ("run=2024", "2024"),
        ("run=set #2", "set #2"),
        ("run=a: b", "a: b"),
        ("run=null", "null"),
        ("run=no", "no"),
        ("run=true", "true"),
        ("run=[a]", "[a]"),
        ("run=~/birds", f"{HOME}/birds"),
        ("output=~", HOME),
        ("flip=true", True),
        ("image=7", 7),
    ],
)
def test_a_value_has_the_kind_of_its_default(argument, value):
    assert options_of([argument], DEFAULTS) == NOT_GIVEN | {argument.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("pictures=fasle", "pictures is 'fasle'; it must be true or false"),
        ("pictures=1", "it must be true or false"),
        ("images=few", "images is 'few'; it must be a whole number"),
        ("images=1.5", "it must be a whole number"),
        ("images=true", "it must be a whole number"),
        ("losses=fl", "losses is 'fl'; it must be a list"),
        ("score=high", "score is 'high'; it must be a number"),
        ("score=", "it must be a number"),
        (
            "output=",
            "output is empty; give it a value, or leave out output= for outputs",
        ),  # as from output=$UNSET
        ("scor=1", "no option 'scor'. Did you mean score?"),
        ("--score", "does not have the form NAME=VALUE; write score=VALUE"),
        ("--score=0.5", "write score=0.5"),
        ("flip=maybe", "flip is 'maybe'; it must be true or false"),
        ("scales=2", "scales is '2'; it must be a list such as [2]"),
        ("image=1.5", "it must be a whole number"),
    ],
)
def test_a_wrong_option_gives_one_line(argument, words):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        options_of([argument], DEFAULTS)
    assert "\n" not in str(error.value)


def test_a_missing_file_of_replay_is_named():
    with pytest.raises(ValueError, match="^file=nowhere/non_finite_step3.pt: there is no such file$"):
        replay(["file=nowhere/non_finite_step3.pt"])


def test_help_is_the_module_docstring_of_the_command(capsys):
    assert asks_for_help(["run=x", "--help"], "\nWhat it does.\n") and not asks_for_help(["run=x"], "")
    assert capsys.readouterr().out == "What it does.\n"


def test_help_fits_the_terminal_and_names_no_exceptions_of_python(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    document = """Draw the boxes of a run.

    python -m scripts.draw run=outputs/NAME output=found

Writes one picture for each image, and
does not change the images.

Raises:
    ValueError: no run is named.
"""
    asks_for_help(["--help"], document)
    assert capsys.readouterr().out.splitlines() == [
        "Draw the boxes of a run.",
        "",
        "    python -m scripts.draw run=outputs/NAME output=found",
        "",
        "Writes one picture for each",
        "image, and does not change the",
        "images.",
    ]
    assert max(map(len, groups_help("config").splitlines())) <= 44  # the longest name with its indent


def test_a_slurm_sweep_without_slurm_gives_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for launcher in ("slurm", "submitit_slurm"):
        with pytest.raises(ConfigError, match=f"hydra/launcher={launcher}: this machine has no Slurm"):
            checked(["-m", f"hydra/launcher={launcher}", "loss=fl,afl"], "config")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    arguments = ["-m", "hydra/launcher=slurm", "loss=fl,afl"]
    assert checked(arguments, "config") == arguments


@pytest.fixture
def refusing_slurm(monkeypatch, tmp_path):
    """Commands of a Slurm whose ``sbatch`` refuses every job, as Slurm 24 does for an unknown partition."""
    for name, text in {"srun": "", "sbatch": REFUSAL}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


REFUSAL = """echo 'sbatch: error: invalid partition specified: gpu' >&2
echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2
exit 1
"""
REASON = "invalid partition specified: gpu; Batch job submission failed: Invalid partition name specified"


@pytest.mark.parametrize("launcher", ["slurm", "submitit_slurm"])
def test_jobs_that_slurm_refuses_give_one_line(launcher, refusing_slurm, tmp_path):
    words = ["-m", f"hydra/launcher={launcher}", "hydra.launcher.partition=gpu", "loss=fl,afl"]
    words += ["detector=fcos", f"paths.output={tmp_path / 'out'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.train", *words], capture_output=True, text=True, cwd=CONF.parent
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"sbatch refuses the jobs: {REASON}. Change hydra.launcher.partition,")


def test_a_table_whose_jobs_slurm_refuses_ends_with_the_reason(refusing_slurm, tmp_path):
    words = ["table=shapes", "action=run", "launch=[hydra/launcher=slurm,hydra.launcher.partition=gpu]"]
    words += [f"paths.output={tmp_path / 'out'}", f"tables={tmp_path / 'tables'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.table", *words], capture_output=True, text=True, cwd=CONF.parent
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stdout + ended.stderr
    first, *log = ended.stderr.splitlines()
    path = tmp_path / "out" / "sweeps" / "shapes.log"
    assert first == f"no run of the table was trained; the end of {path}:"
    assert log[-1].startswith(f"sbatch refuses the jobs: {REASON}.")
    assert not (tmp_path / "tables").exists()  # no table without a figure


def test_an_unknown_setting_of_hydra_gives_one_line():
    for argument, message in {
        "hydra.sweeper.max_batch=2": "There is no hydra.sweeper.max_batch. Did you mean hydra.sweeper.max_batch_size?",
        "hydra.launcher.njobs=2": "There is no hydra.launcher.njobs. Did you mean hydra.launcher.n_jobs?",
        "hydra/launcher=jobli": "There is no hydra/launcher 'jobli'. Did you mean joblib?",
        "hydra/lancher=joblib": "Could not override 'hydra/lancher'.",
    }.items():
        launcher = [] if "lancher" in argument or "jobli" in argument else ["hydra/launcher=joblib"]
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            checked(["-m", *launcher, argument, "loss=fl,afl"], "config")
    good = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "loss=fl,afl"]
    assert checked(good, "config") == good


def test_a_setting_of_a_launcher_names_the_launcher_it_needs():
    for setting, launcher in {"n_jobs=3": "joblib", "timeout_min=60": "slurm"}.items():
        key = f"hydra.launcher.{setting.partition('=')[0]}"
        message = f"{key} needs a launcher: add hydra/launcher={launcher}"
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            checked(["-m", f"hydra.launcher.{setting}", "loss=fl,afl"], "config")


def test_a_setting_of_hydra_of_the_wrong_kind_gives_one_line():
    for launcher, setting, message in (
        ("submitit_slurm", "timeout_min=soon", "hydra.launcher.timeout_min is 'soon'; it needs a number"),
        ("submitit_slurm", "timeout_min=1.5", "hydra.launcher.timeout_min cannot be set: Value '1.5'"),
        ("submitit_slurm", "mem_gb=much", "hydra.launcher.mem_gb cannot be set: Value 'much'"),
        ("joblib", "n_jobs=two", "hydra.launcher.n_jobs is 'two'; it needs a number"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}[^\n]*$"):
            _refused(launcher, setting)


def _refused(launcher: str, setting: str) -> list[str]:
    return checked(["-m", f"hydra/launcher={launcher}", f"hydra.launcher.{setting}", "loss=fl,afl"], "config")


def test_flags_of_hydra_that_exclude_one_another_give_one_line():
    message = "-m and --cfg cannot be used together; leave out one of them"
    with pytest.raises(ConfigError, match=message):
        checked(["-m", "loss=fl,afl", "--cfg", "job"], "config")
    assert checked(["--cfg", "job", "--resolve"], "config") == ["--cfg", "job", "--resolve"]
