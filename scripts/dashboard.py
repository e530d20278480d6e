"""Prepare a W&B project: a view that compares losses by frequency group, the tables of results/, a report.

    python -m scripts.dashboard entity=ME project=afl                        # save the view
    python -m scripts.dashboard project=afl tables=[shapes,foda]             # log results/NAME as W&B Tables, in one run
    python -m scripts.dashboard entity=ME project=afl report=true tables=[shapes]   # and save a draft report on them

Options:
    entity=ME         the W&B user or team
    project=afl       the W&B project
    dashboard=arms    the file conf/dashboards/NAME.yaml that describes the view
    tables=[NAME]     folders of results/ whose table and cells become W&B Tables; works offline, where `wandb sync` uploads them
    report=true       save a report with the panels of the view and these tables, as a draft
    results=results   the folder of the tables

View and report need a login (wandb login) and the package wandb-workspaces, which no other command uses:
.venv/bin/python -m pip install wandb-workspaces. The command saves new objects and prints their addresses; runs do not change. The tests
build and check view and report without a server; they do not see how a server shows them.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scripts.entry import CONF, asks_for_help, options_of, quiet_libraries, run_command

DEFAULTS = {
    "entity": None,
    "project": None,
    "dashboard": "arms",
    "tables": list,
    "report": False,
    "results": "results",
}
MISSING = "wandb-workspaces is not installed: .venv/bin/python -m pip install wandb-workspaces"
FILES = ("table", "cells")
OUTPUT = Path("outputs")  # W&B's own folder goes here
NOTE = "AFL here is a reconstruction: the paper's formula is not public."
QUESTIONS = """From top to bottom, the panels answer:

1. Does the loss move the rare classes (AP_r), and what do the frequent classes lose (AP_f)? Lines are means over seeds.
2. Does AFL's gate open? Kappa starts at 1. If it ends near 0, the gate has opened; if it ends near 1, the gate has stayed closed.
3. Why? A rare class whose negatives push harder than its positives (a ratio below 1) is suppressed."""


def main(arguments: list[str]) -> None:
    """Save or log what the arguments ask for."""
    if asks_for_help(arguments, __doc__):
        return
    options = options_of(arguments, DEFAULTS)
    tables = options["tables"] or []
    wants_server = options["report"] or not tables
    needed = ["project", "entity"] if wants_server else ["project"]
    if missing := [name for name in needed if not options[name]]:
        sys.exit(f"which {missing[0]}? python -m scripts.dashboard entity=ME project=afl [dashboard=arms]")
    place = {"entity": options["entity"], "project": options["project"]}
    spec = read_spec(options["dashboard"])
    contents = {name: read_table(Path(options["results"]), name) for name in tables}
    if contents:
        print(log_tables(contents, **place))
    if wants_server:
        try:
            saved = report(spec, tables, **place) if options["report"] else workspace(spec, **place)
            if options["report"]:
                saved.save(draft=True)
            else:
                saved.save()
        except ImportError:
            sys.exit(MISSING)
        except Exception as error:  # of the network, the login or the server
            message = " ".join(str(error).split())[:200]
            what = "report" if options["report"] else "view"
            sys.exit(f"the {what} could not be saved ({message}); log in first: wandb login")
        print(saved.url)


def read_spec(name: str) -> dict[str, Any]:
    """A file of ``conf/dashboards``; ends with one line where there is none."""
    path = CONF / "dashboards" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in path.parent.glob("*.yaml")))
        sys.exit(f"there is no dashboard {name!r}; there are: {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_table(results: Path, name: str) -> dict[str, list[list[str]]]:
    """The rows of ``table.csv`` and ``cells.csv`` of a folder of ``results``, the first row being the header.

    Raises:
        ValueError: the folder has no such files.
    """
    found = {}
    for file in FILES:
        path = results / name / f"{file}.csv"
        if not path.is_file():
            known = sorted(one.parent.name for one in results.glob(f"*/{file}.csv"))
            raise ValueError(f"{path} does not exist; there are tables: {', '.join(known) or 'none'}")
        with open(path, newline="", encoding="utf-8") as text:
            found[file] = list(csv.reader(text))
    return found


def log_tables(
    contents: Mapping[str, Mapping[str, Sequence[Sequence[str]]]], *, entity: str | None, project: str
) -> str:
    """Log each table as ``NAME/table`` and ``NAME/cells`` in a separate run; returns the run's address or folder."""
    quiet_libraries()
    import wandb

    from afl.tracking.wandb import usual_mode

    OUTPUT.mkdir(exist_ok=True)
    mode = usual_mode()
    run = wandb.init(
        project=project,
        entity=entity,
        mode=mode,
        name="tables",
        job_type="tables",
        tags=["tables", "reconstruction"],
        notes=NOTE,
        dir=str(OUTPUT.resolve()),
        settings=wandb.Settings(silent=True, console="off", disable_code=True, disable_git=True),
    )
    for name, files in contents.items():
        for file, rows in files.items():
            header, *data = rows
            values = [[_value(cell) for cell in row] for row in data]
            run.log(
                {f"{name}/{file}": wandb.Table(columns=list(header), data=values, allow_mixed_types=True)}
            )
    folder = Path(run.dir).parent
    address = str(run.url) if mode == "online" else f"{folder}; wandb sync uploads it"
    run.finish()
    return address


def _value(cell: str) -> float | str | None:
    """A cell of a CSV file: a number where it is one, None where it is empty."""
    try:
        return float(cell)
    except ValueError:
        return cell or None


def workspace(spec: Mapping[str, Any], *, entity: str, project: str) -> Any:
    """The view as an object of wandb-workspaces, not saved yet.

    Raises:
        ImportError: the package is not installed.
    """
    import wandb_workspaces.workspaces as workspaces

    return workspaces.Workspace(
        name=spec["name"],
        entity=entity,
        project=project,
        sections=[
            workspaces.Section(name=section["name"], panels=panels(section, spec["x"]), is_open=True)
            for section in spec["sections"]
        ],
        auto_generate_panels=True,  # everything else below, pictures with boxes among it
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config(key) for key in spec["group_by"]]
        ),
    )


def report(spec: Mapping[str, Any], tables: Sequence[str], *, entity: str, project: str) -> Any:
    """A report with the panels of the view and the logged tables, as an object of wandb-workspaces, not saved yet.

    Raises:
        ImportError: the package is not installed.
    """
    import wandb_workspaces.reports.v2 as reports

    arms = {"entity": entity, "project": project, "name": "arms", "groupby": list(spec["group_by"])}
    blocks: list[Any] = [reports.MarkdownBlock(f"{NOTE}\n\n{QUESTIONS}"), reports.TableOfContents()]
    for section in spec["sections"]:
        grid = reports.PanelGrid(runsets=[reports.Runset(**arms)], panels=panels(section, spec["x"]))
        blocks += [reports.H2(section["name"]), grid]
    for name in tables:
        shown = [reports.WeavePanelSummaryTable(table_name=f"{name}/{file}") for file in FILES]
        own = reports.Runset(entity=entity, project=project, name="tables", query="tables")
        blocks += [reports.H2(f"Table: {name}"), reports.PanelGrid(runsets=[own], panels=shown)]
    return reports.Report(
        project=project, entity=entity, title=spec["name"], description=NOTE, blocks=blocks, width="fluid"
    )


def panels(section: Mapping[str, Any], x: str) -> list[Any]:
    """The panels of a section of a file in ``conf/dashboards``.

    Args:
        x: the horizontal axis of curves.
    """
    import wandb_workspaces.reports.v2 as reports

    found: list[Any] = []
    for title, metrics in section.get("bars", {}).items():
        found.append(reports.BarPlot(title=title, metrics=metrics))
    for title, metric in section.get("lines", {}).items():
        found.append(reports.LinePlot(title=title, x=x, y=[metric]))
    for title, regex in section.get("regex", {}).items():
        found.append(reports.LinePlot(title=title, x=x, metric_regex=regex))
    for title, name in section.get("charts", {}).items():
        query = {"summaryTable": {"tableKey": f"val_charts/{name}_table"}}
        found.append(reports.CustomChart(query=query, **_chart(name, title)))
    return found


def _chart(name: str, title: str) -> dict[str, Any]:
    """W&B's own chart for one of ``afl.training.diagnostics``."""
    from afl.tracking.wandb_values import CHARTS
    from afl.training.diagnostics import CONFUSION_COLUMNS, PRECISION_COLUMNS

    kind, columns = (
        ("confusion", CONFUSION_COLUMNS) if name.startswith("confusion") else ("lines", PRECISION_COLUMNS)
    )
    spec, fields = CHARTS[kind]
    return {
        "chart_name": spec,
        "chart_fields": dict(zip(fields, columns, strict=True)),
        "chart_strings": {"title": title},
    }


if __name__ == "__main__":
    run_command(main)
