"""Download, convert, check and generate data sets.

    python -m scripts.prepare_data coco|lvis|voc [dataset.root=FOLDER ...] [OPTION ...]
        downloads a data set from the official sites, verifies and unpacks it, and reads the annotations.  Complete parts
        are left alone.  The same command resumes a download that was stopped.
    python -m scripts.prepare_data check dataset=coco [dataset.root=FOLDER ...]
        reads both splits, decodes every image, and reports every kind of defect with its count and first examples.
        Exit code 0: no defects, or the data set's policy is `skip`.  1: defects, and the policy is `error`.  2: the data
        set cannot be read.
    python -m scripts.prepare_data ccp|chula|foda existing=FOLDER [dataset.root=FOLDER ...]
        converts the authors' release in FOLDER, as docs/photographs.md describes, and reads the result.
    python -m scripts.prepare_data instrument [existing=FOLDER] [output=FOLDER]
        writes the splits on which the photographs' protocols are chosen, from the prepared foda and ccp in `existing`
        (paths.data by default), into `output` (data/instrument by default).
    python -m scripts.prepare_data shapes [dataset.seed=1 ...]
        generates LongTail Shapes and prints the folder.

Options of a download:
    existing=FOLDER      a copy on this machine: its parts are linked and its archives are used; nothing is copied
    mirror=URL           a folder with all archives under their names, instead of the official sites
    keep_archives=true   keep the archives in dataset.root/archives after unpacking
    connections=4        simultaneous requests
    verify=false         do not require the published sizes and checksums, for a mirror with repacked archives

The other arguments are Hydra overrides, as for scripts.train.  dataset.root is data/coco, data/lvis or data/VOCdevkit by
default.  coco takes 41 GB of disk while unpacking and 21 GB afterwards, lvis 2 GB in addition to COCO's images, voc 6 GB
and then 3 GB.  Layouts:
    coco   dataset.root/    annotations/instances_{train,val}2017.json  train2017/*.jpg  val2017/*.jpg
    lvis   dataset.root/    annotations/lvis_v1_{train,val}.json
           dataset.images/  train2017/*.jpg  val2017/*.jpg    COCO's; by default data/coco
    voc    dataset.root/    {VOC2007,VOC2012}/{Annotations,ImageSets,JPEGImages,...}
           VOC2007 from both of its archives (trainval and test), VOC2012 from trainval
downloads.json in the same folder contains the checksums of the archives and the numbers of files.  docs/data.md
describes the layouts for your own data.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afl.config import did_you_mean
from scripts.entry import asks_for_help, compose_config, message_of, own_options, printable

if TYPE_CHECKING:
    from datasets import AnnotationIndex, ClassStatistics
    from datasets.defects import Defect

# The functions import `datasets`, and with it torch, after the arguments are read.
DEFECTS_FOUND, UNREADABLE, INTERRUPTED = 1, 2, 130
DOWNLOADS = ("coco", "lvis", "voc")
CONVERSIONS = ("ccp", "chula", "foda")
OPTIONS = {"existing": None, "mirror": None, "keep_archives": False, "connections": 4, "verify": True}


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    commands = {"check": check, "instrument": instrument, "shapes": shapes}
    commands |= {name: functools.partial(fetch, name) for name in DOWNLOADS}
    commands |= {name: functools.partial(convert, name) for name in CONVERSIONS}
    if asks_for_help(arguments, __doc__):
        return 0
    if not arguments or arguments[0] not in commands:
        meant = did_you_mean(arguments[0], commands) if arguments else ""
        message = f"error: there is no command {arguments[0]!r}.{meant}" if meant else __doc__.strip()
        print(message, file=sys.stderr)
        return UNREADABLE
    try:
        return commands[arguments[0]](arguments[1:])
    except OmegaConfBaseException as error:
        print(f"error: {printable(str(error).splitlines()[0])}", file=sys.stderr)
    except (ValueError, OSError) as error:  # DataError and ConfigError among them
        print(f"error: {printable(message_of(error))}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    return UNREADABLE


def fetch(name: str, arguments: list[str]) -> int:
    """Download, link or unpack a published data set, then read its annotations."""
    options, overrides = _options(arguments, OPTIONS)
    if not 1 <= options["connections"] <= 32:
        raise ValueError(f"connections={options['connections']} is not a number from 1 to 32")
    dataset = _dataset([f"dataset={name}", *overrides])

    from rich.console import Console

    from datasets import releases
    from datasets.obtain import Sources, obtain
    from datasets.transfer_progress import transfer_progress

    existing = options.pop("existing")
    sources = Sources(existing=Path(existing) if existing else None, **options)
    wanted = [(Path(dataset[entry]), parts) for entry, parts in releases.PUBLISHED[name].items()]
    folders = " and ".join(dict.fromkeys(str(folder) for folder, _ in wanted))
    with transfer_progress(Console()) as (progress, say):
        changed = obtain(wanted, sources, progress=progress, say=say)
    print(printable(f"{name} is complete in {folders}"))
    return _report(dataset) if changed else 0


def convert(name: str, arguments: list[str]) -> int:
    """Convert the authors' release of a photograph data set, then read its annotations."""
    options, overrides = _options(arguments, {"existing": None})
    if not options["existing"]:
        raise ValueError(f"{name} has no download: set existing=FOLDER to a copy of the authors' release")
    dataset = _dataset([f"dataset={name}", *overrides])
    release, root = Path(options["existing"]), Path(dataset.root)
    if release.resolve() == root.resolve():
        raise ValueError(
            f"existing= and dataset.root are the same folder {root}: set dataset.root to another one"
        )

    from datasets.prepare_ccp import prepare_ccp
    from datasets.prepare_chula import prepare_chula
    from datasets.prepare_foda import prepare_foda

    {"ccp": prepare_ccp, "chula": prepare_chula, "foda": prepare_foda}[name](release, root)
    print(printable(f"{name} is complete in {root}"))
    return _report(dataset)


def instrument(arguments: list[str]) -> int:
    """Write the splits on which the photographs' protocols are chosen, then print how to train on them."""
    options, overrides = _options(arguments, {"existing": None, "output": "data/instrument"})
    existing = options["existing"] or compose_config(overrides).paths.data
    output = Path(options["output"])

    from datasets.prepare_instrument import NUMBER, prepare_instrument

    prepare_instrument(Path(existing).expanduser(), output)
    print(printable(f"dataset=foda dataset.root={output / 'foda'} dataset.draw={NUMBER}"))
    print(printable(f"dataset=ccp dataset.root={output / 'ccp'} dataset.split={NUMBER}"))
    return 0


def check(overrides: list[str]) -> int:
    """Report on both splits of a data set."""
    return _report(_dataset(overrides))


def _report(dataset: DictConfig) -> int:
    """Read both splits, which decodes the images that were not checked before, and print their defects."""
    from afl.training.build import instantiate
    from datasets import require_usable_splits

    policy = dataset.policy
    # Under the policy `error`, reading would stop at the first defect.
    dataset.policy = "skip"
    splits = {split: instantiate(dataset[split]) for split in ("train", "val")}
    found = 0
    for split, index in splits.items():
        defects = index.defects
        found += sum(defect.count for defect in defects.values())
        _print_split(split, index, defects)
    require_usable_splits(splits["train"], splits["val"])
    train_files, val_files = ({i.image_path(n) for n in range(len(i))} for i in splits.values())
    shared = train_files & val_files
    if shared:
        print(
            printable(f"warning: in both splits: {_count(len(shared), 'image')}, for example {min(shared)}")
        )
    print(f"{_count(found, 'defect')}; policy: {policy}")
    return DEFECTS_FOUND if found and policy == "error" else 0


def shapes(overrides: list[str]) -> int:
    """Generate LongTail Shapes."""
    settings = OmegaConf.to_container(_dataset(["dataset=shapes", *overrides]).folder, resolve=True)
    del settings["_target_"]

    from datasets import generate_shapes

    print(printable(generate_shapes(**settings)))
    return 0


def _options(arguments: list[str], defaults: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options of a command, and the arguments for Hydra.

    Raises:
        ValueError: an option has a value of the wrong kind, or a misspelt name.
    """
    options, overrides = own_options(arguments, defaults)
    for key in (argument.partition("=")[0] for argument in overrides):
        meant = did_you_mean(key, defaults)
        if meant and "." not in key:
            raise ValueError(f"there is no option {key!r}.{meant}")
    return options, overrides


def _dataset(overrides: list[str]) -> DictConfig:
    """The resolved `dataset` part of the configuration."""
    dataset = compose_config(overrides).dataset
    OmegaConf.set_struct(dataset, False)
    return dataset


def _groups(split: str, statistics: ClassStatistics) -> str:
    """Number of classes in each frequency group; training images define the groups."""
    if split != "train":
        return ""
    words = {"r": "rare", "c": "common", "f": "frequent"}
    return (
        f" ({', '.join(f'{list(statistics.groups).count(group)} {word}' for group, word in words.items())})"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def _print_split(split: str, index: AnnotationIndex, defects: dict[str, Defect]) -> None:
    from datasets import ClassStatistics

    statistics = ClassStatistics.from_index(index)
    print(printable(f"{split}: {', '.join(index.sources)}"))
    counts = [(len(index), "image"), (len(index.labels), "object"), (index.num_classes, "class")]
    print(f"  {', '.join(_count(*one) for one in counts)}{_groups(split, statistics)}")
    ignored = [(int(index.crowd.sum()), "crowd region"), (int(index.difficult.sum()), "difficult object")]
    print(f"  {', '.join(_count(*one) for one in ignored)}")
    absent = [name for name, n in zip(statistics.names, statistics.instances, strict=True) if n == 0]
    if absent:
        more = ", ..." if len(absent) > 5 else ""
        print(printable(f"  {_count(len(absent), 'class')} without an object: {', '.join(absent[:5])}{more}"))
    for kind, defect in sorted(defects.items()):
        print(f"  {defect.count} x {kind}")
        for example in defect.examples:
            print(printable(f"      {example}"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
