"""Logs a run to Weights & Biases: curves, gradient statistics, pictures, charts, the per-class table and the record.

The record and ``metrics.jsonl`` do not depend on W&B. A failure (no network, no account, a full disk, a process of W&B that crashes or
hangs) is reported once, in one line, and training continues.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from afl.tracking import wandb_values
from afl.tracking.tracker import Chart, Picture, Tracker
from afl.tracking.wandb_service import TimedCalls, kill_service
from datasets.errors import explained

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline")
# Curves of which W&B keeps the best value and the last one in a run's summary.
BEST = {
    "max": ("val/AP", "val/AP50", "val/AP75", "val/AP_r", "val/AP_c", "val/AP_f", "val/mAP50"),
    "min": ("loss/total",),
}


class WandbTracker(Tracker):
    """One W&B run.

    W&B's step is the optimiser step. All attempts of an interrupted run share one id, ``run_id``. Online, the next attempt continues
    the W&B run. Offline, each attempt writes a separate folder, and ``wandb sync`` uploads the folders in order as one run.
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
            mode = usual_mode()
        self._class_names = {label: str(class_name) for label, class_name in enumerate(class_names)}
        self._run: Any = None
        self._wandb: Any = None
        self._calls = TimedCalls()
        try:
            import wandb  # takes two seconds

            self._wandb = wandb
            Path(directory).mkdir(parents=True, exist_ok=True)
            settings = _settings(wandb, system_metrics)
            # Offline, ``init`` would warn that it cannot resume; ``wandb sync`` needs only the id and the mark of a resumed run.
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
        """Numbers by name; a tensor or array of several values becomes a histogram of its finite values."""
        self._safely("log", lambda run: run.log(wandb_values.plain_values(self._wandb, values), step=step))

    def log_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Images with ground-truth and predicted boxes, under ``images/NAME``."""

        def send(run: Any) -> None:
            images = {
                f"images/{picture.name}": wandb_values.image(self._wandb, picture, self._class_names)
                for picture in pictures
            }
            run.log(images, step=step)

        self._safely("log pictures", send)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table under ``name``."""
        self._safely(
            "log a table",
            lambda run: run.log({name: wandb_values.table(self._wandb, columns, rows)}, step=step),
        )

    def log_charts(self, step: int, charts: Mapping[str, Chart]) -> None:
        """Charts under ``val_charts/NAME``."""

        def send(run: Any) -> None:
            drawn = {
                f"val_charts/{name}": wandb_values.drawn_chart(self._wandb, chart)
                for name, chart in charts.items()
            }
            run.log(drawn, step=step)

        self._safely("log charts", send)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures, by which W&B sorts runs."""
        self._safely(
            "write the summary",
            lambda run: run.summary.update(wandb_values.plain_values(self._wandb, values)),
        )

    def finish(self, failed: bool = False) -> None:
        """Close the W&B run; an upload may take up to a minute."""
        self._safely("finish", lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _safely(self, action: str, call: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            self._calls.do(partial(call, self._run))
        except Exception as error:
            self._give_up(action, error)

    def _give_up(self, action: str, error: Exception) -> None:
        self._run = None
        message = " ".join(f"{type(error).__name__}: {explained(error)}".split())[:200]
        log.warning("W&B could not %s (%s); the run continues without it", action, message)
        if isinstance(error, TimeoutError):
            kill_service()
        # Without this, W&B's exit hook fails again, with a traceback.
        with contextlib.suppress(Exception):
            TimedCalls().do(self._wandb.teardown)


def usual_mode() -> str:
    """The value of WANDB_MODE; without it, ``online`` for users who are logged in and ``offline`` for others."""
    return os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")


def logged_in() -> bool:
    """Whether W&B would find a key: WANDB_API_KEY is set, or ``wandb login`` has written an entry to the netrc file."""
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
