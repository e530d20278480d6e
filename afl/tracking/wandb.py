"""A mirror of the run in Weights & Biases: curves, gradient statistics, pictures, charts, the per-class table, the record.

The record and ``metrics.jsonl`` are complete without it. A failure here (no network, no account, a full disk, a process of W&B
that crashes or hangs) is reported once, in one line, and training continues.
"""

from __future__ import annotations

import contextlib
import logging
import math
import netrc
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline")
# Longest time of a call in seconds; W&B itself allows sixty for an upload at the end.
PATIENCE = 90.0
# The charts of W&B that draw ours, and the names of their columns.
CHARTS = {
    "lines": ("wandb/area-under-curve/v0", ("class", "x", "y")),
    "confusion": ("wandb/confusion_matrix/v1", ("Actual", "Predicted", "nPredictions")),
}
# Curves of which W&B keeps the best value and the last one in a run's summary.
BEST = {
    "max": ("val/AP", "val/AP50", "val/AP75", "val/AP_r", "val/AP_c", "val/AP_f", "val/mAP50"),
    "min": ("loss/total",),
}


@dataclass(frozen=True)
class Picture:
    """One image with its n objects and m detections.

    Attributes:
        name: its name in the gallery; the same image has the same name at every step.
        pixels: (H, W, 3) uint8 RGB.
        boxes: (n, 4) xyxy in pixels of ``pixels``; labels: (n,).
        found_boxes: (m, 4); found_scores: (m,); found_labels: (m,).
    """

    name: str
    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    found_boxes: np.ndarray
    found_scores: np.ndarray
    found_labels: np.ndarray


@dataclass(frozen=True)
class Chart:
    """The rows of a chart that W&B draws.

    Attributes:
        kind: ``lines``: rows of line, x, y; ``confusion``: rows of true class, detected class, count.
        title: above it.
        columns: three names, in the order of a row.
        rows: three values each.
    """

    kind: str
    title: str
    columns: tuple[str, str, str]
    rows: Sequence[tuple[Any, Any, Any]]


class Tracker(Protocol):
    """Receives figures and pictures of a run. No method may raise."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers by name; a tensor or array of several values becomes a histogram."""

    def log_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Images with boxes, the same images at every step."""

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, for example of AP by class."""

    def log_charts(self, step: int, charts: Mapping[str, Chart]) -> None:
        """Charts by name."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures."""

    def finish(self, failed: bool = False) -> None:
        """The run is over."""


class NullTracker:
    """Ignores everything: for ``logger=none``, and for all processes but the first. Accepts the arguments of the other
    tracker."""

    def __init__(self, **about: Any) -> None:
        pass

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        pass

    def log_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        pass

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def log_charts(self, step: int, charts: Mapping[str, Chart]) -> None:
        pass

    def summary(self, values: Mapping[str, Any]) -> None:
        pass

    def finish(self, failed: bool = False) -> None:
        pass


class WandbTracker:
    """One W&B run.

    W&B's step is the optimiser step. All attempts of an interrupted run have one id, its ``run_id``: online a later attempt continues the
    run, and offline each attempt leaves a separate folder, which ``wandb sync`` uploads in their order as one run.
    """

    def __init__(
        self,
        *,
        project: str,
        directory: str | Path,
        name: str,
        run_id: str,
        entity: str | None = None,
        mode: str = "auto",
        group: str | None = None,
        job_type: str = "train",
        tags: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        class_names: Sequence[str] = (),
        system_metrics: bool = False,
    ) -> None:
        """
        Args:
            project, entity, group, job_type, tags, config, name: as in ``wandb.init``.
            directory: W&B's files go to a folder ``wandb`` in it.
            run_id: digest of the run key.
            mode: ``online``, ``offline``, or ``auto``: the value of WANDB_MODE, otherwise online for users who are logged
                in.
            class_names: (C,) for the boxes of pictures.
            system_metrics: let W&B sample processor, memory and GPU.

        Raises:
            ValueError: an unknown mode. No other failure stops a run.
        """
        if mode not in MODES:
            raise ValueError(f"the W&B mode is one of {', '.join(MODES)}, not {mode!r}")
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        self._class_names = {label: str(class_name) for label, class_name in enumerate(class_names)}
        self._run: Any = None
        self._wandb: Any = None
        self._aside = _Aside()
        try:
            import wandb  # two seconds of import, only where it is used

            self._wandb = wandb
            Path(directory).mkdir(parents=True, exist_ok=True)
            settings = _settings(wandb, system_metrics)
            # Silent from here on: offline, ``init`` warns that it cannot resume; the id and the mark of a resumed run are what
            # ``wandb sync`` needs.
            wandb.setup(settings=settings)
            self._run = wandb.init(
                project=project,
                entity=entity,
                mode=mode,
                group=group,
                job_type=job_type,
                tags=list(tags),
                name=name,
                id=run_id,
                resume="allow",
                dir=str(directory),
                config=dict(config or {}),
                settings=settings,
            )
            for best, names in BEST.items():
                for name in names:
                    self._run.define_metric(name, summary=f"last,{best}")
            log.info(
                "W&B %s run in %s%s", mode, directory, "; wandb sync uploads it" if mode == "offline" else ""
            )
        except Exception as error:
            self._give_up("start", error)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers by name; a tensor or array of several values becomes a histogram of its finite ones."""
        self._safely("log", lambda run: run.log(self._plain(values), step=step))

    def log_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Images with ground-truth and predicted boxes, under ``images/NAME``."""

        def send(run: Any) -> None:
            images = {f"images/{picture.name}": self._image(picture) for picture in pictures}
            run.log(images, step=step)

        self._safely("log pictures", send)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table under ``name``."""

        def send(run: Any) -> None:
            table = self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            run.log({name: table}, step=step)

        self._safely("log a table", send)

    def log_charts(self, step: int, charts: Mapping[str, Chart]) -> None:
        """Charts under ``val_charts/NAME``."""

        def send(run: Any) -> None:
            drawn = {}
            for name, chart in charts.items():
                spec, fields = CHARTS[chart.kind]
                drawn[f"val_charts/{name}"] = self._wandb.plot_table(
                    vega_spec_name=spec,
                    data_table=self._wandb.Table(
                        columns=list(chart.columns), data=[list(row) for row in chart.rows]
                    ),
                    fields=dict(zip(fields, chart.columns, strict=True)),
                    string_fields={"title": chart.title},
                )
            run.log(drawn, step=step)

        self._safely("log charts", send)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures, by which W&B sorts runs."""
        self._safely("write the summary", lambda run: run.summary.update(self._plain(values)))

    def finish(self, failed: bool = False) -> None:
        """Close the W&B run; an upload gets a minute."""
        self._safely("finish", lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _safely(self, action: str, call: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            self._aside.do(partial(call, self._run))
        except Exception as error:
            self._give_up(action, error)

    def _give_up(self, action: str, error: Exception) -> None:
        self._run = None
        message = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        log.warning("W&B could not %s (%s); the run goes on without it", action, message)
        if isinstance(error, TimeoutError):
            _kill_service()
        # otherwise its own exit hook fails once more, with a traceback
        with contextlib.suppress(Exception):
            _Aside().do(self._wandb.teardown)

    def _plain(self, values: Mapping[str, Any]) -> dict[str, Any]:
        plain = {}
        for name, value in values.items():
            if value is None or isinstance(value, str):
                plain[name] = value
                continue
            numbers = np.asarray(
                value.detach().float().cpu() if hasattr(value, "detach") else value, float
            ).ravel()
            finite = numbers[np.isfinite(numbers)]
            if numbers.size == 1:
                plain[name] = float(numbers[0])
            elif finite.size:
                plain[name] = self._wandb.Histogram(finite)
        return plain

    def _image(self, picture: Picture) -> Any:
        truth = [
            _box(box, label, self._class_names.get(int(label), str(int(label))))
            for box, label in zip(picture.boxes, picture.labels, strict=True)
        ]
        found = [
            _box(box, label, f"{self._class_names.get(int(label), int(label))} {float(score):.2f}")
            | {"scores": {"score": float(score)}}
            for box, label, score in zip(
                picture.found_boxes, picture.found_labels, picture.found_scores, strict=True
            )
        ]
        names = {"class_labels": self._class_names} if self._class_names else {}
        return self._wandb.Image(
            np.asarray(picture.pixels),
            caption=picture.name,
            boxes={
                "ground_truth": {"box_data": truth, **names},
                "predictions": {"box_data": found, **names},
            },
        )


class _Aside:
    """Makes calls in another thread, one after the other, and waits for each of them for a limited time."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, call: Callable[[], None]) -> None:
        """Make the call.

        Raises:
            TimeoutError: it has not returned in time; it is not waited for any longer.
            Exception: what the call raises.
        """
        if self._thread is None:
            # A daemon: a call that never returns must not keep the process alive.
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        done: Future = Future()
        self._calls.put((call, done))
        try:
            done.result(PATIENCE)
        except TimeoutError:
            raise TimeoutError(f"no answer in {PATIENCE:g} s") from None

    def _work(self) -> None:
        while True:
            call, done = self._calls.get()
            try:
                call()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)


def _kill_service() -> None:
    """Kill W&B's process, which hangs; otherwise this process would wait for it at its end."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            name, rest = path.read_text().rsplit(")", 1)
            if int(rest.split()[1]) == os.getpid() and "wandb" in name:
                os.kill(int(path.parent.name), signal.SIGKILL)


def logged_in() -> bool:
    """Whether W&B would find a key: WANDB_API_KEY is set, or ``wandb login`` has left an entry in the netrc
    file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, ValueError, netrc.NetrcParseError):  # ValueError: the file is not text
        return False


def _settings(wandb: Any, system_metrics: bool) -> Any:
    """No output on the terminal, no copy of code, console or packages (the record has them), and limited waiting."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_save_requirements=False,
        x_disable_stats=not system_metrics,
        init_timeout=60,
        finish_timeout=60,
    )


def _box(box: Sequence[float], label: int, caption: str) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box)
    if not all(map(math.isfinite, (x1, y1, x2, y2))):
        raise ValueError(f"a box is not finite: {(x1, y1, x2, y2)}")
    return {
        "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
        "domain": "pixel",
        "class_id": int(label),
        "box_caption": caption,
    }
