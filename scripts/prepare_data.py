"""Look after data sets.

    python -m scripts.prepare_data check dataset=coco [dataset.root=FOLDER ...]
        reads both splits, decodes every image and reports every kind of defect with its count and first
        examples.  Exit code 0 when there is none or the data set's policy is `skip`, 1 when there are some
        and it is `error`, 2 when the data set cannot be read at all.
    python -m scripts.prepare_data shapes [dataset.seed=1 ...]
        generates LongTail Shapes and says where.

What follows the command are Hydra overrides, as for scripts.train.
"""

from __future__ import annotations

import sys

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datasets import (
    AnnotationIndex,
    ClassStatistics,
    DataError,
    check_images,
    generate_shapes,
    require_same_classes,
)
from datasets.defects import Defect
from scripts.entry import CONF, unknown_choice

DEFECTS_FOUND, UNREADABLE = 1, 2


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    commands = {"check": check, "shapes": shapes}
    if not arguments or arguments[0] not in commands:
        print(__doc__.strip(), file=sys.stderr)
        return UNREADABLE
    try:
        return commands[arguments[0]](arguments[1:])
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {_data_error(error) or error}", file=sys.stderr)
    return UNREADABLE


def check(overrides: list[str]) -> int:
    """Report on both splits of a data set."""
    dataset = _dataset(overrides)
    policy = dataset.policy
    # Count everything: under `error` reading would end at the first defect.
    dataset.policy = "skip"
    splits = {split: instantiate(dataset[split]) for split in ("train", "val")}
    found = 0
    for split, index in splits.items():
        defects = index.defects | check_images(index)
        found += sum(defect.count for defect in defects.values())
        _print_split(split, index, defects)
    require_same_classes(splits["train"], splits["val"])
    train_files, val_files = ({i.image_path(n) for n in range(len(i))} for i in splits.values())
    shared = train_files & val_files
    if shared:
        print(f"warning: {len(shared)} images are in both splits, for example {min(shared)}")
    print(f"{found} defects; policy: {policy}")
    return DEFECTS_FOUND if found and policy == "error" else 0


def shapes(overrides: list[str]) -> int:
    """Generate LongTail Shapes."""
    settings = OmegaConf.to_container(_dataset(["dataset=shapes", *overrides]).folder, resolve=True)
    del settings["_target_"]
    print(generate_shapes(**settings))
    return 0


def _dataset(overrides: list[str]) -> DictConfig:
    """The resolved `dataset` part of the configuration."""
    problem = unknown_choice(overrides)
    if problem:
        raise DataError(problem)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        dataset = compose("config", overrides).dataset
    OmegaConf.set_struct(dataset, False)
    return dataset


def _data_error(error: BaseException) -> DataError | None:
    """What was wrong with the data, when that is why building it from the configuration failed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DataError):
        cause = cause.__cause__
    return cause


def _print_split(split: str, index: AnnotationIndex, defects: dict[str, Defect]) -> None:
    statistics = ClassStatistics.from_index(index)
    groups = ", ".join(f"{list(statistics.groups).count(group)} {group}" for group in "rcf")
    print(f"{split}: {', '.join(index.sources)}")
    print(f"  {len(index)} images, {len(index.labels)} objects, {index.num_classes} classes ({groups})")
    print(f"  {int(index.crowd.sum())} crowd regions, {int(index.difficult.sum())} difficult objects")
    absent = [name for name, n in zip(statistics.names, statistics.instances, strict=True) if n == 0]
    if absent:
        more = ", ..." if len(absent) > 5 else ""
        print(f"  {len(absent)} classes without an object: {', '.join(absent[:5])}{more}")
    for kind, defect in sorted(defects.items()):
        print(f"  {defect.count} x {kind}")
        for example in defect.examples:
            print(f"      {example}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
