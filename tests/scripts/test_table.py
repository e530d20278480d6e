"""The table command: its cells have the keys that training gives them, and building twice gives the same bytes."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from afl.tracking import write_record
from afl.training import run_cell
from afl.training.compose import CONF, compose_cell
from afl.training.initial_weights import identity
from scripts.kept import portable
from scripts.table import cells_of, main

SMALL = [
    "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null", "logger=none",
    "trainer.max_duration=1steps", "trainer.batch_size=4", "trainer.device=cpu", "trainer.pictures=0",
]  # fmt: skip


def tables(tmp_path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "tables",
            overrides=[
                "table.detectors=[retinanet,centernet]", "table.losses=[fl,ablation/afl_tau025]", f"results={tmp_path}/results",
                f"paths.output={tmp_path}/outputs", f"paths.cache={tmp_path}/cache",
                "overrides=[" + ",".join(f"'{text}'" for text in SMALL) + "]", *overrides,
            ],
        )  # fmt: skip


@pytest.fixture
def finished(tmp_path) -> DictConfig:
    """A table of four cells with their records kept."""
    config = tables(tmp_path)
    for loss in config.table.losses:
        for detector in config.table.detectors:
            paths = [f"paths.output={config.paths.output}", f"paths.cache={config.paths.cache}"]
            record = run_cell(
                compose_cell(detector=detector, loss=loss, overrides=["dataset=shapes_lvis", *paths, *SMALL])
            )
            name = f"{detector}-{loss.replace('/', '_')}.json"
            write_record(f"{config.results}/shapes/records/{name}", record)
    return config


def test_cells_have_the_keys_that_training_gives_them(finished):
    cells = cells_of(finished, [0])
    assert len(cells) == 4
    assert all(cell.record() is not None and cell.record().status == "finished" for cell in cells)
    assert len({cell.folder for cell in cells_of(finished, [0, 1])}) == 8


def test_every_seed_can_have_data_of_its_own(tmp_path):
    config = tables(tmp_path, "table=data_seeds", "table.losses=[fl]", "table.detectors=[fcos]")
    paths = [f"paths.output={config.paths.output}", f"paths.cache={config.paths.cache}"]
    options = ["dataset=shapes_lvis", *paths, *SMALL]
    records = [
        run_cell(
            compose_cell(
                detector="fcos", loss="fl", overrides=[*options, f"seed={seed}", f"dataset.seed={seed}"]
            )
        )
        for seed in (1, 2)
    ]
    assert [cell.record() for cell in cells_of(config, [1, 2])] == records
    assert records[0].data_hash != records[1].data_hash
    assert [record.config["dataset"]["seed"] for record in records] == [1, 2]


def test_a_kept_record_names_no_folder_of_the_machine_that_made_it(finished, tmp_path):
    record = cells_of(finished, [0])[0].record()
    assert str(tmp_path) in str(record.config)
    kept = portable(record)
    assert str(tmp_path) not in str(kept.config)
    assert kept.config["dataset"]["folder"]["root"] == ".cache/shapes"
    assert kept.config["paths"] == {"data": "data", "cache": ".cache", "output": "outputs"}
    assert portable(kept) == kept
    assert kept.metrics == record.metrics and kept.config["dataset"]["seed"] == 0


def test_building_twice_gives_the_same_bytes_and_names_the_reconstruction(finished, tmp_path, capsys):
    folder = tmp_path / "results" / "shapes"
    main(finished)
    first = {path.name: path.read_bytes() for path in folder.glob("table.*")}
    main(finished)
    assert first == {path.name: path.read_bytes() for path in folder.glob("table.*")} and len(first) == 3
    assert "reconstruction" in first["table.md"].decode()
    assert "centernet" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_leaves_the_table_that_was(finished, tmp_path, monkeypatch):
    folder = tmp_path / "results" / "shapes"
    main(finished)
    first = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    (next((folder / "records").iterdir())).unlink()  # another table than before

    def no_space(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("datasets.files.os.fsync", no_space)
        with pytest.raises(SystemExit, match=r"No space left on device.*table\.md") as stopped:
            main(finished)
    assert "\n" not in stopped.value.code
    assert first == {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_a_damaged_record_is_one_that_is_missing(finished):
    cells = cells_of(finished, [0])
    (cells[0].folder / "record.json").write_text('{"schema": 1, "key"')
    assert cells[0].record() is None and not cells[0].is_finished and cells[1].is_finished


def test_a_table_without_records_says_how_to_make_them(tmp_path):
    with pytest.raises(SystemExit, match="action=run"):
        main(tables(tmp_path))


def test_pretrained_features_are_told_apart_by_what_decides_them():
    def features(*overrides: str) -> str:
        return identity(
            compose_cell(detector="centernet", loss="afl", overrides=["dataset=shapes", *overrides])
        )

    assert features() == features(
        "paths.output=/elsewhere", "seed=3", "trainer.threads=2", "trainer.device=cpu"
    )
    assert features() != features("detector.head_channels=64")
    assert features("initial_weights=null") == ""
