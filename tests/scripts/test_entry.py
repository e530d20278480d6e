"""Typos on the command line get the nearest name."""

from scripts.entry import unknown_choice, unknown_key


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
