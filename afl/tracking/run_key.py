"""The name of a run, computed from the settings that affect its result.

The same configuration gives the same key on every machine and at any time, so that a repeated command finds the run that it started
before. Every setting takes part unless it is in ``EXCLUDED``, so a new setting takes part by default. Some settings take part although
they change only the rounding of the result (``trainer.device``, ``trainer.eval_batch_size``) or its curves
(``trainer.evaluate_every``). They stay, because leaving one out would change the keys of all existing runs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Left out of the digest, because they do not change the result, or only its rounding and its curves.
EXCLUDED = (
    # Folders and services of the machine.
    "paths",
    "logger",
    "hydra",
    # Values that other settings refer to; those take part with the value that they get.
    "in_regime",
    "per_detector",
    # Checks before the run, which may only stop it.
    "preset",
    "strict_code",
    # How the data is found and read; the fingerprint of its content takes part instead. ``remedy`` is a part of an error message.
    "dataset.cache_images",
    "dataset.folder",
    "dataset.images",
    "dataset.remedy",
    "dataset.root",
    "dataset.train",
    "dataset.val",
    # What is displayed and saved, and how often. ``log_every`` sets how many points the curves of the record have.
    "trainer.checkpoint_every",
    "trainer.log_every",
    "trainer.pictures",
    "trainer.progress",
    # Speed. Another number of threads sums floats in another order, and the two evaluators agree to 1e-9.
    "trainer.evaluator",
    "trainer.num_workers",
    "trainer.threads",
)

LATER = ("trainer.fixed_detections",)
"""Settings that were added after the first committed records. They are left out while they are null, so that old keys do not change."""

VARIANT = ("draw", "split", "fold")
"""Settings of a data set that choose one of its variants; the slug names them."""


@dataclass(frozen=True)
class RunKey:
    """Name of a run.

    Attributes:
        slug: readable name: ``dataset-detector-loss-sSEED``, followed by the variant of the data set, such as ``-split0-fold_a``.
        digest: 8 hexadecimal digits of the configuration.
        name: ``slug-digest``, the name of the run's folder.
    """

    slug: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.slug}-{self.digest}"


def run_key(config: Mapping[str, Any], data: str = "") -> RunKey:
    """Key of a resolved configuration.

    Args:
        config: plain dictionary without interpolations. ``dataset``, ``detector`` and ``loss`` are names, or
            dictionaries with a ``name``; ``seed`` is a number. The order of keys does not matter, nor whether
            a whole number is written 1 or 1.0. The keys in ``EXCLUDED`` take no part.
        data: fingerprint of the data set's content, instead of the paths, which are left out; without it, data sets with the same
            name are equal.

    Raises:
        ValueError: one of the four is missing.
        TypeError: a value is neither a number, a string, a list, a dictionary nor None.
    """
    names = [_name(config, key) for key in ("dataset", "detector", "loss")]
    if config.get("seed") is None:
        raise ValueError("the configuration has no seed, and the name of a run needs one; set seed=0")
    slug = "-".join([*map(_plain, names), f"s{config['seed']}", *_variant(config["dataset"])])
    content = json.dumps([_canonical(config, ""), data], sort_keys=True)
    return RunKey(slug=slug, digest=hashlib.sha256(content.encode()).hexdigest()[:8])


def names_run(key: str, dataset: str, detector: str, loss: str, seed: int) -> bool:
    """Whether ``key`` is the name of a run of this cell, or of the runs of its folds, joined by ``+``."""
    slug = "-".join([*map(_plain, (dataset, detector, loss)), f"s{seed}"])
    return all(f"{name}-".startswith(f"{slug}-") for name in key.split("+"))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted names of the keys in which two resolved configurations differ, without those in ``EXCLUDED``."""
    return list(_differing(_canonical(one, ""), _canonical(other, ""), ""))


def _differing(one: Any, other: Any, path: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _differing(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path


def _name(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str) or not name:
        raise ValueError(f"the configuration has no {key}.name, and the name of a run needs one")
    return name


def _variant(dataset: str | Mapping[str, Any]) -> list[str]:
    """``["split0", "fold_a"]``; empty for a data set without variants."""
    chosen = {name: dataset.get(name) for name in VARIANT} if isinstance(dataset, Mapping) else {}
    return [
        f"{name}{value}" if isinstance(value, int) else f"{name}_{_plain(value)}"
        for name, value in chosen.items()
        if isinstance(value, int | str)
    ]


def _plain(name: str) -> str:
    """Letters, digits, dots and underscores only, so that the slug is one word in every shell and file
    system."""
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name)


def _canonical(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        children = {str(key): (child, f"{path}.{key}" if path else str(key)) for key, child in value.items()}
        return {
            key: _canonical(child, at)
            for key, (child, at) in children.items()
            if at not in EXCLUDED and not (at in LATER and child is None)
        }
    if isinstance(value, list | tuple):
        return [_canonical(child, path) for child in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{path} of the configuration is a {type(value).__name__}; a run key needs plain values")
