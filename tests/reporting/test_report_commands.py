"""The commands that write pages: the page of a data set compared with manual counts, and the report of real runs in a browser."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import pytest

from afl.reporting.figures.gallery import draw_gallery
from afl.reporting.pages.pictures import correct
from afl.tracking import read_record, write_record
from afl.training import run_cell
from afl.training.compose import compose_cell
from scripts.report import main
from scripts.reports.dataset import REPEATED_BELOW
from scripts.reports.material import data_of, finished_record, gallery_of, telling_images
from tests.reporting.browser import visit

SHAPES = ["dataset=shapes_coco", "dataset.folder.num_train=24", "dataset.folder.num_val=10"]


def test_the_page_of_a_data_set_has_the_counts_of_its_annotations(shared_data, tmp_path, capsys):
    path = tmp_path / "bccd.html"
    main(["dataset", "dataset=bccd", f"dataset.root={shared_data}/bccd", f"output={path}", "images=3",
          f"paths.cache={tmp_path}/cache"])  # fmt: skip
    names = (shared_data / "bccd/ImageSets/Main/train.txt").read_text().split()
    counts = Counter()
    for name in names:
        for node in ElementTree.parse(shared_data / f"bccd/Annotations/{name}.xml").iter("object"):
            x1, y1, x2, y2 = (
                int(node.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            counts[node.find("name").text] += x2 > x1 and y2 > y1
    html = path.read_text()
    for name, count in counts.items():
        assert re.search(rf"<td>{name}</td><td[^>]*>frequent</td><td>{count:,}</td>", html), name
    assert f"{len(names)} training" in capsys.readouterr().out
    seen = visit(path, tmp_path)
    assert seen["errors"] == [] and seen["console"] == [] and seen["requests"] == []
    assert seen["pictures"] == [480, 480, 480] and seen["charts"] == 4 and seen["overflow"] <= 0


def test_the_page_of_a_data_set_says_what_irfs_would_repeat(tmp_path, capsys):
    link = compose_cell(detector="fcos", loss="irfs", overrides=SHAPES).loss.chain.rfs
    assert (REPEATED_BELOW, True) == (link.images, link.count_instances)
    main(["dataset", *SHAPES, f"output={tmp_path}/page.html", f"paths.cache={tmp_path}/cache"])
    assert re.search(r"loss=irfs would show objects of rare classes \d\.\d", capsys.readouterr().out)
    assert "× with irfs" in (tmp_path / "page.html").read_text()


def test_wrong_data_sets_give_one_line(tmp_path):
    for arguments, words in (
        (["dataset=bcd"], "dataset=bccd"),
        (["dataset=shapes", "images=few"], "images is 'few'; it must be a whole number"),
        (["dataset=shapes", "datset.seed=1"], "Did you mean dataset.seed"),
        (["dataset=coco", f"dataset.root={tmp_path}"], "there is no file .*prepare_data coco"),
    ):
        with pytest.raises(ValueError, match=words):
            main(["dataset", *arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two short runs, FL and AFL."""
    folder = tmp_path_factory.mktemp("runs")
    for loss in ("fl", "afl"):
        options = [
            *SHAPES, "initial_weights=null", "logger=none", "trainer.progress=none", "trainer.batch_size=4",
            "trainer.max_duration=6steps", "trainer.log_every=1steps", "trainer.device=cpu",
            f"paths.output={folder}/outputs", f"paths.cache={folder}/cache",
        ]  # fmt: skip
        run_cell(compose_cell(detector="fcos", loss=loss, overrides=options))
    return folder / "outputs"


def test_the_report_of_run_directories_shows_curves_gradients_and_pictures(runs, tmp_path, capsys):
    path = tmp_path / "report.html"
    main(["html", f"results={tmp_path}/none", f"runs={runs}", f"output={path}", "images=2"])
    assert "written" in capsys.readouterr().out
    html = path.read_text()
    for part in ("results-runs", "frequency", "pictures", "curves", "dynamics", "protocol"):
        assert f'<section id="{part}">' in html
    seen = visit(path, tmp_path)
    assert seen["errors"] == [] and seen["console"] == [] and seen["requests"] == []
    assert seen["pictures"] == [96, 96] and seen["uses"] == 0 and seen["overflow"] <= 0


def test_local_runs_are_shown_with_the_tables_of_results_and_are_drawn(runs, tmp_path, capsys):
    # A table whose runs are on another machine, as in a fresh checkout.
    results = tmp_path / "results" / "elsewhere" / "records"
    for folder in sorted(runs.iterdir()):
        record = read_record(folder / "record.json")
        write_record(results / f"{record.loss}.json", replace(record, key=f"{record.key}-other"))
    path = tmp_path / "report.html"
    main(["html", f"results={tmp_path}/results", f"runs={runs}", f"output={path}", "images=2"])
    html = path.read_text()
    assert re.findall(r'<section id="([\w-]+)"', html)[:2] == ["results-runs", "results-elsewhere"]
    assert '<section id="pictures">' in html and '<section id="curves">' in html
    assert "have no directory" not in capsys.readouterr().out
    # Runs of a table of results are not shown twice.
    for folder in sorted(runs.iterdir()):
        record = read_record(folder / "record.json")
        write_record(results / f"{record.loss}.json", record)
    main(["html", f"results={tmp_path}/results", f"runs={runs}", f"output={path}", "images=2"])
    assert "results-runs" not in path.read_text()


def test_the_page_of_all_committed_tables_has_a_section_for_each(repository, tmp_path):
    path = tmp_path / "report.html"
    main(["html", f"results={repository}/results", f"runs={tmp_path}/none", f"output={path}"])
    shown = set(re.findall(r'<section id="results-([\w-]+)"', path.read_text()))
    assert shown == {folder.parent.name for folder in (repository / "results").glob("*/records")}
    seen = visit(path, tmp_path)
    assert seen["errors"] == [] and seen["console"] == [] and seen["requests"] == [] and seen["overflow"] <= 0


def test_an_empty_report_names_the_next_command(tmp_path):
    with pytest.raises(ValueError, match="train something first"):
        main(["html", f"results={tmp_path}", f"runs={tmp_path}/none"])
    with pytest.raises(ValueError, match="Did you mean results"):
        main(["html", "result=x"])


def test_the_gallery_has_a_row_for_each_image_and_a_column_for_each_detector(runs, tmp_path):
    options = ["gallery", f"runs={runs}", "dataset=shapes_coco", f"output={tmp_path / 'found.jpg'}"]
    main([*options, "images=3"])
    picture = cv2.imread(str(tmp_path / "found.jpg"))
    # Square images in two columns and three rows, and a legend.
    assert picture.shape[0] / picture.shape[1] == pytest.approx(1.5, rel=0.1)
    with pytest.raises(ValueError, match="no finished run of shapes_coco with cbl"):
        main([*options, "loss=cbl"])
    with pytest.raises(ValueError, match="images is 0; at least 1"):
        main([*options, "images=0"])


def test_boxes_of_a_gallery_are_drawn_in_their_places(runs):
    folder = next(runs.glob("*-fl-*"))
    record = finished_record(folder)
    data = data_of(record)
    found = gallery_of(folder, record, data, telling_images(data, 2))
    figure = draw_gallery([found])
    truth = {tuple(patch.get_xy()) for patch in figure.axes[0].patches}
    assert truth == {tuple(box[:2].tolist()) for box in found.pictures[0].boxes}
    right = correct(found.pictures[0])[found.pictures[0].found_scores >= 0.3]
    # A coloured line on a white one; wrong detections have a thin line.
    assert len(figure.axes[1].patches) == 2 * right.sum() + (~right).sum()
    with pytest.raises(ValueError, match="the same images"):
        draw_gallery([found, replace(found, pictures=found.pictures[:1])])


def test_of_two_runs_with_equal_names_the_later_one_is_shown_and_the_other_is_named(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*-afl-*")
    record = read_record(folder / "record.json")
    again = replace(record, key=f"{folder.name[:-8]}01234567", metrics=record.metrics | {"AP": 0.987})
    write_record(tmp_path / "runs" / again.key / "record.json", again)
    os.utime(folder / "record.json", (1, 1))
    main(["html", f"results={tmp_path}/none", f"runs={tmp_path}/runs", f"output={tmp_path}/report.html"])
    assert f"are not shown: {folder.name}" in capsys.readouterr().out
    assert "<b>98.7</b>" in (tmp_path / "report.html").read_text()
