"""Checks the values of settings before anything is built or written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afl.config.overrides import ConfigError

_ONE_LENGTH = re.compile(r"\s*[0-9]+(\.[0-9]*)?\s*(steps?|epochs?|images?|percent|%)\s*")
LARGEST_SEED = 2**32 - 1  # of NumPy's generators
SLOWEST_EMA = 0.999999  # with a decay of 1 the average would keep the weights of the first step


@dataclass(frozen=True)
class Number:
    """A number from ``least`` to ``most``.

    Attributes:
        whole: only integers are accepted.
        above: the number must be larger than ``least``.
        optional: null is accepted.
    """

    least: float = 0
    most: float = math.inf
    whole: bool = False
    above: bool = False
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if self.whole and not isinstance(value, int):
            return False
        return (value > self.least if self.above else value >= self.least) and value <= self.most

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.most < math.inf:
            kind += f" {'above' if self.above else 'from'} {self.least:g} {'and at most' if self.above else 'to'} {self.most:.10g}"
        else:
            kind += f" {'above' if self.above else 'of at least'} {self.least:g}"
        return kind + (" or null" if self.optional else "")


@dataclass(frozen=True)
class Word:
    """One of ``known``."""

    known: tuple[Any, ...]

    def accepts(self, value: Any) -> bool:
        return any(value == one and type(value) is type(one) for one in self.known)

    def __str__(self) -> str:
        return " or ".join(str(one).lower() for one in self.known)


@dataclass(frozen=True)
class Text:
    """Text with at least one character."""

    kind: str = "text"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value)

    def __str__(self) -> str:
        return self.kind


@dataclass(frozen=True)
class Length:
    """A duration such as ``600steps``, or a sum of durations; ``afl.training.duration`` converts it.

    Attributes:
        optional: null is accepted.
    """

    optional: bool = False

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.optional
        return all(_ONE_LENGTH.fullmatch(part) for part in str(value).split("+"))

    def __str__(self) -> str:
        return "a duration such as 600steps, 12epochs, 20000images, 10percent or 600steps+12epochs" + (
            " or null" if self.optional else ""
        )


@dataclass(frozen=True)
class Device:
    """``auto`` or a device on which training runs."""

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", value) is not None

    def __str__(self) -> str:
        return "auto, cpu, cuda or a GPU such as cuda:1"


@dataclass(frozen=True)
class Numbers:
    """A list of numbers above 0, not empty."""

    def accepts(self, value: Any) -> bool:
        one = Number(above=True)
        return OmegaConf.is_list(value) and len(value) > 0 and all(one.accepts(number) for number in value)

    def __str__(self) -> str:
        return "a list of numbers above 0, such as [0.75,1.0,1.25]"


COUNT, FOLDER = Number(1, whole=True), Text("a folder")
RULES: dict[str, Number | Numbers | Device | Word | Text | Length] = {
    "seed": Number(0, LARGEST_SEED, whole=True),
    "cell.dataset": Text("the data set's name"),
    "dataset.name": Text("the data set's name"),
    "dataset.root": FOLDER,
    "dataset.policy": Word(("error", "skip")),
    "dataset.image_size": COUNT,
    "dataset.max_detections": COUNT,
    "dataset.repeat_threshold": Number(0, 1, above=True, optional=True),
    "paths.data": FOLDER,
    "paths.cache": FOLDER,
    "paths.output": FOLDER,
    "trainer.batch_size": COUNT,
    "trainer.eval_batch_size": COUNT,
    "trainer.accumulate": COUNT,
    "trainer.clip_norm": Number(above=True, optional=True),
    "trainer.ema": Number(0, SLOWEST_EMA, above=True, optional=True),
    "trainer.num_workers": Number(whole=True),
    "trainer.threads": Number(1, whole=True, optional=True),
    "trainer.pictures": Number(whole=True),
    "trainer.max_duration": Length(),
    "trainer.log_every": Length(optional=True),
    "trainer.checkpoint_every": Length(optional=True),
    "trainer.evaluate_every": Length(optional=True),
    "trainer.compile": Word((True, False, "auto")),
    "trainer.progress": Word(("auto", "bar", "lines", "none")),
    "trainer.fixed_detections": Number(1, whole=True, optional=True),
    "trainer.device": Device(),
    "trainer.test_time.scales": Numbers(),
    "trainer.test_time.nms_iou": Number(0, 1),
    "trainer.evaluator": Word(("official", "fast")),
    "schedule.warmup": Length(),
    "optimizer.factory.lr": Number(),
    "optimizer.weight_decay": Number(optional=True),
}


def check_values(config: DictConfig) -> None:
    """Check every setting of ``RULES`` that ``config`` has.

    Raises:
        ConfigError: a value is not accepted; the message names the setting, its value, and the accepted values.
    """
    for key, rule in RULES.items():
        parent, _, name = key.rpartition(".")
        try:
            node = OmegaConf.select(config, parent) if parent else config
            if not OmegaConf.is_dict(node) or name not in node:
                continue
            value = node[name]
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {' '.join(str(error).split())[:200]}") from None
        if not rule.accepts(value):
            shown = "null" if value is None else repr(value)
            raise ConfigError(f"{key} is {shown}; it needs {rule}")
