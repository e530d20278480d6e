"""The trained detectors that come with the repository: list them, create one from a run, train the missing ones.

    python -m scripts.zoo                                           # the detectors and their figures
    python -m scripts.zoo make                                      # train and write the missing entries of conf/zoo.yaml
    python -m scripts.zoo make names=[fcos-foda-fl] paths.data=/data
    python -m scripts.zoo add run=outputs/NAME                      # an entry from a finished run
    python -m scripts.zoo page                                      # write docs/zoo.md from the files
    python -m scripts.zoo features                                  # train the missing files of detectors/pretrained (initial_weights=shapes)

Options:
    names=[A,B]       make: only these entries of conf/zoo.yaml
    run=FOLDER        add: the run directory
    name=NAME         add: name of the entry; default: DETECTOR-DATASET-LOSS
    images=N          add: validation images to keep in the zoo, for demos and checks, if their licence allows copies; default: as
                      conf/zoo.yaml says for the data set, otherwise 0
    zoo=zoo           the folder of the zoo

`make` skips entries whose file exists, continues interrupted runs, and names the entries that failed at its end. Its other arguments
change the config of every run, as in scripts.train. A detector is used by its name: scripts.predict run=zoo:NAME.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from afl.config import CONF, did_you_mean
from scripts.entry import asks_for_help, checked, options_of, own_options, quiet_libraries, run_command

SPEC = CONF / "zoo.yaml"
ROOT = CONF.parent
PAGE = ROOT / "docs" / "zoo.md"
OWN = ROOT / "zoo"
MAKE = {"names": list, "zoo": str(OWN)}
ADD = {"name": None, "run": None, "images": int, "zoo": str(OWN)}
SHOW = {"zoo": str(OWN)}


def main(arguments: list[str]) -> int:
    """Do the action that the first argument names; returns the exit code."""
    if asks_for_help(arguments, __doc__):
        return 0
    action, rest = (
        (arguments[0], arguments[1:]) if arguments and "=" not in arguments[0] else ("list", arguments)
    )
    actions = {"list": _list, "make": _make, "add": _add, "page": _page, "features": _features}
    if action not in actions:
        meant = did_you_mean(action, actions)
        raise ValueError(f"there is no action {action!r}.{meant} There are: {', '.join(actions)}")
    return actions[action](rest)


def _list(arguments: list[str]) -> int:
    options = options_of(arguments, SHOW)
    from afl.zoo.page import table

    print("\n".join(table(_entries(Path(options["zoo"])), columns=6)))
    return 0


def _make(arguments: list[str]) -> int:
    options, overrides = own_options(arguments, MAKE)
    spec = _spec()
    zoo = Path(options["zoo"])
    known = spec["entries"]
    for name in options["names"] or []:
        if name not in known:
            meant = did_you_mean(name, known)
            raise ValueError(f"{SPEC.name} has no entry {name!r}.{meant} It has: {', '.join(known)}")
    wanted = options["names"] or list(known)
    missing = [name for name in wanted if not (zoo / f"{name}.safetensors").is_file()]
    for name in wanted:
        # A mistake ends the command before it loads torch, even if all entries exist.
        checked([*_arguments(known[name]), *overrides], "config")
    print(
        f"{len(wanted) - len(missing)} of {len(wanted)} entries exist; delete the file of one to make it again",
        flush=True,
    )
    if not missing:
        return 0

    import logging
    import sys

    from afl.training import run_cell
    from afl.training.compose import compose_cell
    from afl.zoo.command import command_of
    from afl.zoo.make import make_entry
    from datasets import DataError
    from datasets.errors import explained

    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    failed = []
    for name in missing:
        entry = known[name]
        config = compose_cell(
            detector=entry["detector"],
            loss=entry["loss"],
            overrides=[f"dataset={entry['dataset']}", *overrides],
        )
        try:
            record = run_cell(config, wait=True)
            path = make_entry(
                name,
                Path(config.paths.output) / record.key,
                zoo,
                command=command_of(config),
                images=spec["images"].get(config.cell.dataset, 0),
            )
        except (DataError, OSError, ValueError, RuntimeError) as error:
            failed.append(name)
            print(f"{name} failed: {' '.join(explained(error).split())}", file=sys.stderr, flush=True)
            continue
        _tell(path)
        _write_page(zoo)  # after each entry: the page agrees with the files whenever the command ends
    if failed:
        print(f"not made: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _add(arguments: list[str]) -> int:
    options = options_of(arguments, ADD)
    if not options["run"]:
        raise ValueError("which run? python -m scripts.zoo add run=outputs/NAME")
    from afl.config import read_config
    from afl.zoo.command import command_of
    from afl.zoo.make import make_entry

    run, zoo = Path(options["run"]), Path(options["zoo"])
    config = read_config(run)
    cell = config.cell
    images = options["images"]
    if images is None:
        images = _spec()["images"].get(cell.dataset, 0)
    name = (
        options["name"]
        or f"{cell.detector}-{cell.dataset.removesuffix('_lvis')}-{cell.loss.replace('/', '_')}"
    )
    if "/" in name:
        raise ValueError(f"name={name}: the name of an entry must not contain a slash")
    _tell(make_entry(name, run, zoo, command=command_of(config), images=images))
    _write_page(zoo)
    return 0


def _page(arguments: list[str]) -> int:
    options_of(arguments, {})
    _write_page(OWN)
    return 0


def _features(overrides: list[str]) -> int:
    checked(["loss=fl", *overrides], "config")
    from afl.training.compose import compose_cell
    from afl.training.features import features_file, pretraining_config, write_features
    from afl.training.interruption import Interruption
    from afl.training.run import pretrain

    quiet_libraries()
    for detector in sorted(path.stem for path in (CONF / "detector").glob("*.yaml")):
        config = compose_cell(detector=detector, loss="fl", overrides=overrides)
        path = features_file(config)
        if not path.is_file():
            write_features(pretrain(pretraining_config(config), Interruption(), of_features=True), path)
        print(path, flush=True)
    return 0


def _spec() -> dict[str, Any]:
    return yaml.safe_load(SPEC.read_text(encoding="utf-8"))


def _arguments(entry: Mapping[str, str]) -> list[str]:
    """An entry of conf/zoo.yaml as arguments of scripts.train."""
    return [f"{group}={choice}" for group, choice in entry.items()]


def _tell(path: Path) -> None:
    print(
        f"written: {path} ({path.stat().st_size / 1e6:.1f} MB); use it: python -m scripts.predict run={path}"
    )


def _write_page(zoo: Path) -> None:
    """The page of the repository's zoo; other folders have none."""
    if zoo.resolve() != OWN.resolve():
        return
    from afl.tracking import write_text
    from afl.zoo.page import page

    write_text(
        PAGE, page(_entries(zoo), {path.stem: path.stat().st_size for path in zoo.glob("*.safetensors")})
    )
    print(f"written: {PAGE}")


def _entries(zoo: Path) -> list:
    from afl.zoo.files import names, read_entry

    return [read_entry(zoo / f"{name}.safetensors")[0] for name in names(zoo)]


if __name__ == "__main__":
    run_command(main)
