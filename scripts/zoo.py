"""The trained detectors that come with the repository: list them, make one from a run, train the missing ones.

    python -m scripts.zoo                                           # the detectors and their figures
    python -m scripts.zoo make                                      # train and write the missing entries of conf/zoo.yaml
    python -m scripts.zoo make names=[fcos-foda-afl] paths.data=/data
    python -m scripts.zoo add name=mine run=outputs/NAME            # an entry from a finished run of your own
    python -m scripts.zoo page                                      # write docs/zoo.md from the files

Options:
    names=[A,B]       make: these entries of conf/zoo.yaml; default: all that are missing
    name=NAME         add: name of the new entry
    run=FOLDER        add: the run directory
    images=0          add: validation images to keep in the zoo, for demos and checks; only if their licence allows copies
    zoo=zoo           the folder of the zoo

Other arguments of `make` change the config of every run, as in scripts.train. A detector is used by its name:
scripts.predict run=zoo:NAME.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from afl.config import CONF
from scripts.entry import asks_for_help, checked, options_of, own_options, quiet_libraries, run_command

SPEC = CONF / "zoo.yaml"
ROOT = CONF.parent
PAGE = ROOT / "docs" / "zoo.md"
MAKE = {"names": list, "zoo": str(ROOT / "zoo")}
ADD = {"name": None, "run": None, "images": 0, "zoo": str(ROOT / "zoo")}
SHOW = {"zoo": str(ROOT / "zoo")}


def main(arguments: list[str]) -> int:
    """Do what the first argument says; returns the exit code."""
    if asks_for_help(arguments, __doc__):
        return 0
    action, rest = (
        (arguments[0], arguments[1:]) if arguments and "=" not in arguments[0] else ("list", arguments)
    )
    actions = {"list": _list, "make": _make, "add": _add, "page": _page}
    if action not in actions:
        near = difflib.get_close_matches(action, actions, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no action {action!r}.{meant} There are: {', '.join(actions)}")
    actions[action](rest)
    return 0


def _list(arguments: list[str]) -> None:
    options = options_of(arguments, SHOW)
    from afl.zoo.page import table

    print("\n".join(table(_entries(Path(options["zoo"])), columns=6)))


def _make(arguments: list[str]) -> None:
    options, overrides = own_options(arguments, MAKE)
    spec = yaml.safe_load(SPEC.read_text(encoding="utf-8"))
    zoo = Path(options["zoo"])
    known = spec["entries"]
    for name in options["names"] or []:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"{SPEC.name} has no entry {name!r}.{meant} It has: {', '.join(known)}")
    wanted = options["names"] or [name for name in known if not (zoo / f"{name}.safetensors").is_file()]
    commands = {name: [f"{group}={choice}" for group, choice in known[name].items()] for name in wanted}
    for arguments_of_one in commands.values():
        checked([*arguments_of_one, *overrides], "config")  # mistakes end the command before it loads torch

    import logging
    import sys

    from afl.training import run_cell
    from afl.training.compose import compose_cell
    from afl.zoo.make import make_entry

    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for name, command in commands.items():
        choices = known[name]
        config = compose_cell(
            detector=choices["detector"],
            loss=choices["loss"],
            overrides=[f"dataset={choices['dataset']}", *overrides],
        )
        record = run_cell(config, wait=True)
        path = make_entry(
            name,
            Path(config.paths.output) / record.key,
            zoo,
            command=f"python -m scripts.train {' '.join(command)}",
            images=spec["images"].get(config.cell.dataset, 0),
        )
        print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    _write_page(zoo)


def _add(arguments: list[str]) -> None:
    options = options_of(arguments, ADD)
    for name in ("name", "run"):
        if not options[name]:
            raise ValueError(f"which {name}? python -m scripts.zoo add name=NAME run=outputs/NAME")
    from afl.config import read_config
    from afl.zoo.make import make_entry

    config = read_config(Path(options["run"]), [])
    cell = config.cell
    path = make_entry(
        options["name"],
        Path(options["run"]),
        Path(options["zoo"]),
        command=f"python -m scripts.train detector={cell.detector} loss={cell.loss} dataset={cell.dataset} seed={config.seed}",
        images=options["images"],
    )
    print(
        f"written: {path} ({path.stat().st_size / 1e6:.1f} MB); use it: python -m scripts.predict run={path}"
    )


def _page(arguments: list[str]) -> None:
    _write_page(Path(options_of(arguments, SHOW)["zoo"]))


def _write_page(zoo: Path) -> None:
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
