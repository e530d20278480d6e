"""Pictures have boxes and score maps in the right places."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from afl.tracking import Picture
from afl.training import lettering
from afl.training.load import load_run
from afl.training.pictures import (
    FOUND_COLOR,
    SIDE,
    STRIP,
    TRUTH_COLOR,
    _free_place,
    contact_sheet,
    draw_found,
    draw_maps,
    draw_picture,
)
from detectors.contract import Detections


def picture(height: int = 48, width: int = 96) -> Picture:
    return Picture(
        name="1",
        pixels=np.full((height, width, 3), 128, np.uint8),
        boxes=np.array([[12.0, 24.0, 48.0, 36.0]]),
        labels=np.array([0]),
        found_boxes=np.array([[48.0, 24.0, 72.0, 36.0], [0.0, 0.0, 9.0, 9.0]]),
        found_scores=np.array([0.9, 0.1]),
        found_labels=np.array([1, 1]),
    )


def test_boxes_are_drawn_at_their_scaled_sides_except_those_with_low_scores():
    drawn = draw_picture(picture(), ["a", "b"])
    scale = SIDE // 96
    assert drawn.shape == (SIDE, 2 * SIDE, 3)
    assert close_to(drawn[30 * scale, 48 * scale], TRUTH_COLOR)  # right side of the true box
    assert close_to(drawn[30 * scale, SIDE + 72 * scale], FOUND_COLOR)
    assert not close_to(drawn[: 12 * scale, SIDE : SIDE + 12 * scale], FOUND_COLOR).any()


def close_to(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Lines are anti-aliased, so their colour is slightly mixed with the background."""
    return (np.abs(pixels.astype(int) - color) < 40).all(-1)


def test_a_sheet_contains_every_picture():
    assert contact_sheet([picture(96)] * 3, ["a", "b"]).shape == (2 * SIDE + 2 * STRIP, 4 * SIDE, 3)


def test_a_sheet_of_wide_pictures_has_the_height_of_the_tallest_one():
    assert contact_sheet([picture(48), picture(32)], ["a", "b"]).shape == (SIDE // 2 + 2 * STRIP, 4 * SIDE, 3)


def test_labels_do_not_overlap_and_those_without_a_place_are_left_out():
    room, taken = (100, 200), []
    while (place := _free_place((60, 40, 120, 60), 50, 12, room, taken)) is not None:
        taken.append((*place, place[0] + 50, place[1] + 12))
    assert len(taken) == 3  # above and below, left and right; inside is too low for a second line
    for i, (left, top, right, bottom) in enumerate(taken):
        assert 0 <= left and right <= 200 and 0 <= top and bottom <= 100
        for other in taken[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_a_sheet_has_a_title_above_and_a_legend_below():
    plain, titled = (contact_sheet([picture()], ["a", "b"], title) for title in ("", "run"))
    differ = (plain != titled).any(axis=(1, 2))
    assert differ[:STRIP].any() and not differ[STRIP:].any()
    for color in (TRUTH_COLOR, FOUND_COLOR):
        assert (titled[-STRIP:] == color).all(-1).any()


def test_the_best_of_several_detections_in_one_place_is_legible():
    twice = np.array([[24.0, 24.0, 48.0, 36.0]] * 2)
    alone, both = (
        replace(picture(), found_boxes=twice[:n], found_scores=np.array([0.9, 0.5])[:n], found_labels=np.array([1, 0])[:n])
        for n in (1, 2)
    )  # fmt: skip
    # Its label is above the box, as without the other detection, whose label is below.
    drawn, best = (draw_picture(which, ["name", "name"]).astype(int) for which in (both, alone))
    scale = SIDE // 96
    assert np.abs(drawn - best)[: 24 * scale].max() < 40
    assert np.abs(drawn - best)[37 * scale :].max() > 100


def test_score_maps_are_bright_where_the_score_is():
    scores = np.zeros((6, 12), np.float32)
    scores[1, 9] = 1.0
    sheet = draw_maps(picture(), {"heat": scores}, ["a", "b"])
    cell = SIDE // 12
    bright = sheet[: SIDE // 2, :SIDE].astype(int).sum(-1)
    y, x = np.unravel_index(bright.argmax(), bright.shape)
    assert (y // cell, x // cell) == (1, 9)
    assert sheet.shape[1] == 3 * SIDE


@pytest.mark.parametrize(
    "detector", ["cornernet", "centernet", "extremenet", "retinanet", "fcos", "objectbox"]
)
def test_the_score_maps_of_every_detector_can_be_drawn(small_cell, detector, tmp_path):
    from afl.training import run_cell
    from scripts.report import main

    config = small_cell(detector, "fl", "trainer.max_duration=1steps")
    record = run_cell(config)
    folder = f"{config.paths.output}/{record.key}"
    path = main(["heads", f"run={folder}", f"results={tmp_path}/results"])
    assert path == tmp_path / "results" / "heads" / f"{detector}.jpg" and path.stat().st_size > 1000
    # Only one image is read, and without `results` the picture is written to the run's directory.
    with pytest.raises(ValueError, match="no image 12345; one of them is"):
        main(["heads", f"run={folder}", "image=12345"])
    last = load_run(Path(folder)).data.val.image_ids[-1]
    assert main(["heads", f"run={folder}", f"image={last}"]) == Path(folder) / "heads.jpg"


def drawn(name: str) -> np.ndarray:
    found = Detections(
        boxes=torch.tensor([[40.0, 60.0, 300.0, 300.0]]),
        scores=torch.tensor([0.87]),
        labels=torch.tensor([1]),
    )
    return draw_found(np.full((600, 600, 3), 128, np.uint8), found, ["x", name])


def test_letters_outside_ascii_are_drawn():
    pictures = [drawn(name) for name in ("vögel", "vogel", "птица", "???")]
    for i, one in enumerate(pictures):
        assert all((one != other).any() for other in pictures[:i])
    # The first two only differ in the dots of the umlaut, which are above the letter and inside the strip.
    rows, _ = np.nonzero((pictures[0] != pictures[1]).any(-1))
    assert 0 < len(rows) < 60 and rows.max() - rows.min() <= 4


def test_a_class_name_without_a_font_is_replaced_by_its_number(monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    lettering._font_file.cache_clear()
    assert lettering.legible("猫", 7) == "7" and lettering.legible("cat", 7) == "cat"
    assert lettering.legible(" ", 7) == "7" and lettering.legible("a\nb", 7) == "7"
    np.testing.assert_array_equal(drawn("猫"), drawn("1"))
    lettering._font_file.cache_clear()


def test_text_is_cut_off_at_the_border_of_the_canvas():
    for corner in ((-5, -5), (15, 5), (-500, 0), (0, 500)):
        canvas = np.zeros((20, 30, 3), np.uint8)
        lettering.write(canvas, "word", corner, 12, (255, 0, 0))
        assert canvas[..., 1:].max() == 0 and (canvas.max() > 0) == (abs(corner[0]) + abs(corner[1]) < 100)
