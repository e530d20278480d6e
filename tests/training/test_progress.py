"""The progress of a run on a terminal and in a log file, compared with its steps."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from afl.training import progress
from afl.training.progress import ProgressReport, clock


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    """The text that is written to a terminal."""
    text = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=text, force_terminal=True, width=150, color_system=None)
    )
    return text


def shown(terminal: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


def test_the_bar_moves_at_every_step_and_shows_elapsed_and_remaining_time(terminal):
    report = ProgressReport(title="run [a]", total_steps=10, start_step=2, mode="bar")
    for step in (3, 4, 5):
        report.advance(step)
        report._bar.refresh()
        assert f"{step}/10" in shown(terminal).splitlines()[-1]
    report.show(5, 0.5, 20.0)
    report.close()
    line = shown(terminal).splitlines()[-1]
    assert re.search(r"run \[a\] .*5/10 loss 0\.500  20 images/s \d:\d\d:\d\d elapsed, [-\d:]+ left", line), (
        line
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_steps_loss_and_remaining_time_are_complete_on_a_narrow_terminal(monkeypatch, width):
    text = io.StringIO()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda **_: Console(file=text, force_terminal=True, width=width, color_system=None),
    )
    report = ProgressReport(title="shapes_lvis-retinanet-fl-s0", total_steps=90000, start_step=0, mode="bar")
    report.advance(1200)
    report.show(1200, 0.667, 29.0)
    report.close()
    line = shown(text).splitlines()[-1].rstrip()
    assert len(line) <= width and "…" not in line
    assert re.search(r"1200/90000 loss 0\.667.* [-\d]:[-\d]+:[-\d]+ left$", line), line
    assert ("elapsed" in line) == (width > 40) and ("retinanet" in line) == (width > 60), line
    assert ("images/s" in line) == (width > 80), line


def test_a_message_after_a_pause_is_on_a_separate_line_and_the_bar_returns(terminal):
    report = ProgressReport(title="run", total_steps=10, start_step=0, mode="bar")
    report.advance(1)
    report.pause()
    assert shown(terminal).endswith("\n")
    terminal.write("SIGTERM: saved\n")
    report.advance(2)
    report._bar.refresh()
    report.close()
    lines = shown(terminal).splitlines()
    assert "SIGTERM: saved" in lines and "2/10" in lines[-1]


def test_lines_show_step_loss_speed_elapsed_and_remaining_time(capsys):
    report = ProgressReport(title="run", total_steps=10, start_step=0, mode="lines")
    report.advance(1)
    assert capsys.readouterr().out == ""
    report.show(5, 0.5, 20.0)
    assert capsys.readouterr().out == "run  step 5/10  loss 0.500  20 images/s  0:00 elapsed, 0:00 left\n"


def test_clock_formats_durations():
    assert [clock(seconds) for seconds in (0, 65.4, 3599.6, 3725)] == ["0:00", "1:05", "1:00:00", "1:02:05"]
