"""The table command: its runs have the keys of the training command, and building twice gives the same bytes."""

import dataclasses
import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from afl.config import CONF
from afl.tables import actions
from afl.tables import sweep as sweeping
from afl.tables.cells import cells_of, compose_cells
from afl.tables.committed import portable
from afl.tables.plan import FEATURES, Plan, Row
from afl.tracking import FAILED, FINISHED, Record, read_record, write_record
from afl.training import run_cell
from afl.training.compose import compose_cell
from afl.training.initial_weights import identity
from scripts.table import main

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


def published(config: DictConfig) -> DictConfig:
    return OmegaConf.merge(config, {"publish": True})


@pytest.fixture
def finished(tmp_path) -> DictConfig:
    """A table of four runs with committed records."""
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


def test_runs_have_the_keys_of_the_training_command(finished):
    cells = cells_of(finished, [0])
    assert len(cells) == 4
    assert all(cell.record() is not None and cell.record().status == "finished" for cell in cells)
    assert len({cell.folder for cell in cells_of(finished, [0, 1])}) == 8


def test_every_seed_can_have_different_data(tmp_path):
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


def test_a_committed_record_names_no_folder_of_its_machine(finished, tmp_path):
    record = cells_of(finished, [0])[0].record()
    assert str(tmp_path) in str(record.config)
    kept = portable(record)
    assert str(tmp_path) not in str(kept.config)
    assert kept.config["dataset"]["folder"]["root"] == ".cache/shapes"
    assert kept.config["paths"] == {"data": "data", "cache": ".cache", "output": "outputs"}
    assert portable(kept) == kept
    assert kept.metrics == record.metrics and kept.config["dataset"]["seed"] == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset=foda", "dataset.root={}/foda", "initial_weights={}/start.pt"],
        ["dataset=foda", "dataset.train.annotations={}/other/train.json", "paths.data={}/data/"],
        ["dataset=custom", "dataset.name=birds", "dataset.root={}/birds"],
        ["dataset=shapes", "dataset.folder.root={}/generated"],
    ],
)
def test_a_committed_record_has_no_absolute_path(tmp_path, overrides):
    overrides = [text.format(tmp_path) for text in overrides]
    plain = OmegaConf.to_container(
        compose_cell(detector="fcos", loss="fl", overrides=overrides), resolve=True
    )
    error = f"image {tmp_path}/data/a-b.jpg (id 3) cannot be read: a/b; see https://example.org/x"
    record = Record("", FAILED, plain["cell"]["dataset"], "fcos", "fl", 0, plain, error=error)
    assert str(tmp_path) in str(plain)
    kept = portable(record)
    assert str(tmp_path) not in str(kept) and portable(kept) == kept
    assert kept.error == "image a-b.jpg (id 3) cannot be read: a/b; see https://example.org/x"
    if record.dataset == "birds":
        assert kept.config["dataset"]["val"]["annotations"] == "data/birds/val.json"


def test_building_twice_gives_the_same_bytes_and_names_the_reconstruction(finished, tmp_path, capsys):
    folder = tmp_path / "results" / "shapes"
    main(published(finished))
    first = {path.name: path.read_bytes() for path in folder.glob("table.*")}
    main(published(finished))
    assert first == {path.name: path.read_bytes() for path in folder.glob("table.*")} and len(first) == 3
    assert "reconstruction" in first["table.md"].decode()
    assert "centernet" in capsys.readouterr().out


def test_a_full_disk_gives_one_line_and_keeps_the_old_table(finished, tmp_path, monkeypatch):
    folder = tmp_path / "results" / "shapes"
    main(published(finished))
    first = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    (next((folder / "records").iterdir())).unlink()  # another table than before

    def no_space(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("datasets.files.os.fsync", no_space)
        with pytest.raises(
            SystemExit, match=r"table\.md could not be written: No space left on device"
        ) as stopped:
            main(published(finished))
    assert "\n" not in stopped.value.code
    assert first == {path.name: path.read_bytes() for path in folder.glob("*.*")}


def test_a_table_that_is_being_filled_names_its_missing_runs(finished, tmp_path, capsys):
    next((tmp_path / "results" / "shapes" / "records").iterdir()).unlink()
    main(published(finished))
    assert "Not run yet (1 of 4)" in capsys.readouterr().out
    assert "Not run yet (1 of 4)" in (tmp_path / "results" / "shapes" / "table.md").read_text()


def test_a_damaged_record_counts_as_missing(finished):
    cells = cells_of(finished, [0])
    (cells[0].folder / "record.json").write_text('{"schema": 1, "key"')
    assert cells[0].record() is None and not cells[0].is_finished and cells[1].is_finished


def test_a_table_without_records_names_the_command_that_trains_them(tmp_path):
    with pytest.raises(SystemExit, match="action=run"):
        main(tables(tmp_path))


def test_pretrained_features_are_identified_by_the_settings_that_affect_them():
    def features(*overrides: str) -> str:
        config = compose_cell(detector="centernet", loss="afl", overrides=["dataset=shapes", *overrides])
        return identity(OmegaConf.to_container(config, resolve=True))

    assert features() == features(
        "paths.output=/elsewhere", "seed=3", "trainer.threads=2", "trainer.device=cpu"
    )
    assert features() != features("detector.head_channels=64")
    assert features("initial_weights=null") == ""


def folder_of(path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_does_not_change_the_committed_table_and_is_compared_with_it(finished, tmp_path, capsys):
    main(published(finished))
    committed = folder_of(tmp_path / "results")
    fewer = OmegaConf.merge(finished, {"action": "run", "table": {"detectors": ["retinanet"]}})
    capsys.readouterr()
    main(fewer)
    assert folder_of(tmp_path / "results") == committed
    own = folder_of(tmp_path / "outputs" / "tables" / "shapes")
    assert set(own) == {"table.md", "table.tex", "table.csv", "cells.csv", "committed.md"}
    assert "centernet" not in own["table.md"].decode()
    lines = own["committed.md"].decode().splitlines()[2:]
    assert lines and all("| retinanet |" in line and line.endswith("| equal |") for line in lines)
    shown = capsys.readouterr().out
    assert "all 2 cells are finished" in shown and "committed" in shown
    pin = "The committed records were trained at commit c9f1f42, d765e99; new runs use today's configuration."
    assert pin in " ".join(shown.split())


def test_only_figures_with_a_verdict_can_be_outside_the_noise(finished, tmp_path, capsys):
    """One committed seed gives no noise, and equal runs cannot differ: chance puts none of them outside."""

    def shown() -> str:
        main(OmegaConf.merge(finished, {"action": "run", "table": {"expected": []}}))
        lines = " ".join(capsys.readouterr().out.split())
        return lines[lines.index("figures compared") - 4 :][:200]

    text = shown()
    number = re.search(r"(\d+) figures compared", text)[1]
    assert f"(seeds 0): {number} equal" in text and "chance" not in text
    paths = list((tmp_path / "results" / "shapes" / "records").iterdir())
    for path in paths:
        record = read_record(path)
        write_record(path, dataclasses.replace(record, metrics=dict.fromkeys(record.metrics, 0.1)))
    text = shown()
    assert f"(seeds 0): {number} noise unknown" in text and "chance" not in text
    for path in paths:
        record = read_record(path)
        key, metrics = record.key.replace("-s0-", "-s1-"), dict.fromkeys(record.metrics, 0.2)
        record = dataclasses.replace(record, key=key, seed=1, metrics=metrics)
        write_record(path.with_stem(f"{path.stem}-s1"), record)
    # Both losses have the squares 2 x 0.05^2, so 0.15 may differ from figures near 0 by 4.3 x 0.07 x sqrt(1 + 1 / 2) = 0.37.
    assert f"(seeds 0, 1): {number} within noise; chance alone puts about 1 outside" in shown()


def test_a_published_table_keeps_every_variant_of_the_committed_one(tmp_path):
    """Without a draw, the table would be written from half of the committed records."""
    smaller = tables(
        tmp_path, "table=foda", "table.variants.foda.draw=[0]", "table.detectors=[fcos]", "table.losses=[fl]"
    )
    for draw in (0, 1):
        config = {"dataset": {"name": "foda", "draw": draw, "root": "data/foda"}}
        metrics = dict.fromkeys(smaller.table.metrics, 0.5)
        record = Record(
            f"foda-fcos-fl-s0-draw{draw}", FINISHED, "foda", "fcos", "fl", 0, config, metrics=metrics
        )
        write_record(f"{smaller.results}/foda/records/{record.key}.json", record)
    with pytest.raises(SystemExit, match="would drop 1 of the records .*foda-fcos-fl-draw1-s0"):
        main(published(smaller))
    assert not (tmp_path / "results" / "foda" / "table.md").exists()


def test_a_published_table_keeps_every_run_of_the_committed_one(finished, tmp_path):
    main(published(finished))
    committed = folder_of(tmp_path / "results")
    for change in ({"table": {"losses": ["fl"]}}, {"seeds": [1]}):
        for action in ("build", "run"):
            if action == "run" and "seeds" in change:  # trains another seed; the table then has both
                continue
            smaller = OmegaConf.merge(published(finished), {"action": action}, change)
            with pytest.raises(SystemExit, match="would drop .* of the records"):
                main(smaller)
    assert folder_of(tmp_path / "results") == committed


def test_a_failed_run_does_not_replace_a_finished_record(finished, tmp_path, capsys, monkeypatch):
    for path in (tmp_path / "results" / "shapes" / "records").iterdir():
        path.unlink()
    main(published(OmegaConf.merge(finished, {"action": "run"})))
    committed = folder_of(tmp_path / "results" / "shapes" / "records")
    monkeypatch.setattr(
        actions,
        "run",
        lambda *_: [
            dataclasses.replace(record, status=FAILED, metrics={}, error="x")
            for record in finished_records(finished)
        ],
    )
    with pytest.raises(SystemExit):
        main(published(OmegaConf.merge(finished, {"action": "run"})))
    assert folder_of(tmp_path / "results" / "shapes" / "records") == committed
    assert "failed; its committed record is kept" in capsys.readouterr().out


def test_a_seed_can_be_added_to_a_published_table(finished, tmp_path, monkeypatch):
    """The table then has the committed seeds, which this command does not train, and the new one."""
    for path in (tmp_path / "results" / "shapes" / "records").iterdir():
        path.unlink()
    main(published(OmegaConf.merge(finished, {"action": "run"})))
    second = [
        dataclasses.replace(record, seed=1, key=record.key.replace("-s0-", "-s1-"))
        for record in finished_records(finished)
    ]
    monkeypatch.setattr(actions, "run", lambda *_: second)
    more = published(OmegaConf.merge(finished, {"action": "run", "seeds": [1]}))
    main(more)
    kept = folder_of(tmp_path / "results" / "shapes" / "records")
    assert len(kept) == 8 and not any(str(tmp_path) in text.decode() for text in kept.values())
    monkeypatch.setattr(actions, "run", lambda *_: second[1:])
    with pytest.raises(SystemExit):
        main(more)


def finished_records(config: DictConfig) -> list[Record]:
    return [cell.record() for cell in cells_of(config, [0])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": "0,1"}, "seeds is '0,1'; it needs a list of whole numbers"),
        ({"seeds": [0, "a"]}, "it needs a list of whole numbers"),
        ({"seeds": [-1]}, "it needs a list of whole numbers"),
        ({"jobs": 0}, "jobs is 0; it needs a whole number of at least 1"),
        ({"jobs": "two"}, "jobs is 'two'"),
        ({"source": "wandb", "publish": True}, "leave out source=wandb, or leave out publish=true"),
    ],
)
def test_impossible_settings_of_a_table_give_one_line(tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        main(OmegaConf.merge(tables(tmp_path), changes))
    assert "\n" not in stopped.value.code


def test_a_table_that_cannot_be_built_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(actions, "run", lambda *_: pytest.fail("trained"))
    with pytest.raises(SystemExit, match="baseline 'fl' of table 'shapes' is not among its losses"):
        main(OmegaConf.merge(tables(tmp_path), {"action": "run", "table": {"losses": ["afl"]}}))


def test_a_single_seed_is_a_list_of_one(finished, capsys):
    main(OmegaConf.merge(finished, {"action": "plan", "seeds": 0, "measure": False}))
    assert "seeds 0" in capsys.readouterr().out


def test_a_table_of_folds_is_not_built_from_a_server(tmp_path):
    with pytest.raises(SystemExit, match="two folds together, which a W&B server does not have"):
        main(tables(tmp_path, "table=ccp", "source=wandb"))


@pytest.mark.parametrize("folder", ["out (1)", "vögel, #2", "it's = {a} & b;!", 'say "no"', "~x"])
def test_any_folder_can_hold_the_runs_of_a_table(tmp_path, monkeypatch, folder):
    commands = []
    monkeypatch.setattr(sweeping.subprocess, "Popen", lambda command, **_: commands.append(command))
    config = OmegaConf.merge(
        tables(tmp_path, "table.detectors=[fcos]", "table.losses=[fl]"),
        {"paths": {"output": f"{tmp_path}/{folder}"}},
    )
    (cell,) = compose_cells(config).values()
    assert cell.paths.output == f"{tmp_path}/{folder}"
    sweeping.sweep(config, [0], tmp_path / "sweep.log")
    (override,) = [word for word in commands[0] if word.startswith("paths.output=")]
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert not parsed.is_sweep_override() and parsed.value() == f"{tmp_path}/{folder}"


def test_a_line_shows_the_result_of_a_run_and_the_remaining_time(finished, monkeypatch):
    record = cells_of(finished, [0])[0].record()
    record = dataclasses.replace(
        record, metrics={"AP": 0.5812, "AP_r": None}, train_seconds=50.0, eval_seconds=12.0
    )
    assert sweeping.result(record, ["AP", "AP_r", "AP_f"]) == "AP 58.1, AP_r undefined in 62 s"
    failed = dataclasses.replace(record, status="failed", error="no room")
    assert sweeping.result(failed, ["AP"]) == "failed: no room"


def test_a_pretraining_that_failed_before_is_noticed_when_it_finishes(tmp_path):
    def write(detector: str, status: str) -> None:
        key = f"shapes_pretraining-{detector}-fl-s0-0a1b2c3d"
        metrics = {"AP": 0.5} if status == FINISHED else {}
        record = Record(key, status, "shapes_pretraining", detector, "fl", 0, {}, metrics=metrics)
        write_record(tmp_path / key / "record.json", record)

    write("fcos", FINISHED)
    write("retinanet", FAILED)
    runs = sweeping.FeatureRuns(tmp_path)
    assert runs.new() == []
    write("centernet", FAILED)
    assert runs.new() == []
    for detector in ("centernet", "retinanet"):
        write(detector, FINISHED)
    assert {record.detector for record in runs.new()} == {"centernet", "retinanet"} and runs.new() == []


def test_the_outlook_names_another_machine_whose_speed_it_takes(monkeypatch):
    rows = [Row("fcos", 3, 1, 0.5, 1.0, 0.0, "GPU", "")]
    clock = sweeping.Clock(Plan("", rows, []), 1)
    monkeypatch.setattr(sweeping, "this_device", lambda: "CPU")
    (line,) = clock.outlook()
    assert (
        line
        == "About 60 min at the speed of GPU; the speed of this machine (CPU) is known after the first run."
    )
    monkeypatch.setattr(sweeping, "this_device", lambda: "GPU")
    assert clock.outlook() == ["About 60 min on this machine (GPU)."]


def test_the_remaining_time_follows_from_finished_runs_of_the_same_detector(monkeypatch):
    monkeypatch.setattr(sweeping, "this_device", lambda: "X")

    def after(detector: str, seconds: float, dataset: str = "shapes_lvis", status: str = FINISHED) -> str:
        clock.ended(
            Record("", status, dataset, detector, "fl", 0, {}, train_seconds=seconds - 10, eval_seconds=10.0)
        )
        return clock.left()

    hour, second = 1.0, 1 / 3600
    rows = [
        Row("fcos", 6, 1, hour, 5 * hour, 0.0, "X", ""),
        Row("retinanet", 3, 0, 120 * second, 360 * second, 0.0, "X", ""),
        Row(FEATURES, 2, 1, 120 * second, 120 * second, 0.0, "X", ""),
    ]
    clock = sweeping.Clock(Plan("", rows, []), 2)
    assert clock.outlook() == [
        "First, features are trained once per detector (1 of 2 to train, about 2.0 min each on one X); every loss starts from them.",
        "About 2.6 h on this machine (X).",  # (5 hours + 360 s + 120 s) / 2
    ]
    assert after("fcos", 90.0, "shapes_pretraining") == "about 2.5 h left"  # no features are missing
    assert (
        after("fcos", 100.0) == "about 6 min left"
    )  # (4 x 100 s + 360 s) / 2: the hours of the plan were wrong
    assert after("fcos", 300.0) == "about 8 min left"  # (3 x 200 s + 360 s) / 2
    assert after("fcos", 900.0, status=FAILED) == "about 6 min left"  # (2 x 200 s + 360 s) / 2
    assert after("fcos", 200.0) == "about 5 min left"  # (200 s + 360 s) / 2
    assert after("retinanet", 40.0) == "about 2 min left"  # (200 s + 2 x 40 s) / 2
    assert after("fcos", 200.0) == "about 40 s left"
    assert after("retinanet", 40.0) == "about 20 s left"
    assert after("retinanet", 40.0) == "done"
