"""Add a view to a W&B project: panels that compare losses by frequency group.

    python -m scripts.dashboard entity=ME project=afl

Options:
    entity=ME         the W&B user or team
    project=afl       the W&B project
    dashboard=arms    the file conf/dashboards/NAME.yaml that describes the view

Needs a login (wandb login) and the package wandb-workspaces, which no other command uses:
.venv/bin/python -m pip install wandb-workspaces. Saves a new view and prints its address; runs do not change. The tests build and
check the view without a server; they do not see how a server shows it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml

from scripts.entry import CONF, asks_for_help, options_of, run_command

DEFAULTS = {"entity": None, "project": None, "dashboard": "arms"}
MISSING = "wandb-workspaces is not installed: .venv/bin/python -m pip install wandb-workspaces"


def main(arguments: list[str]) -> None:
    """Save the view that the arguments ask for."""
    if asks_for_help(arguments, __doc__):
        return
    options = options_of(arguments, DEFAULTS)
    if not options["entity"] or not options["project"]:
        sys.exit("which project? python -m scripts.dashboard entity=ME project=afl [dashboard=arms]")
    spec = read_spec(options["dashboard"])
    try:
        view = workspace(spec, entity=options["entity"], project=options["project"])
        view.save()
    except ImportError:
        sys.exit(MISSING)
    except Exception as error:  # of the network, the login or the server
        message = " ".join(str(error).split())[:200]
        sys.exit(f"the view could not be saved ({message}); log in first: wandb login")
    print(view.url)


def read_spec(name: str) -> dict[str, Any]:
    """A file of ``conf/dashboards``; ends with one line where there is none."""
    path = CONF / "dashboards" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in path.parent.glob("*.yaml")))
        sys.exit(f"there is no dashboard {name!r}; there are: {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def workspace(spec: Mapping[str, Any], *, entity: str, project: str) -> Any:
    """The view as an object of wandb-workspaces, not saved yet.

    Raises:
        ImportError: the package is not installed.
    """
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    sections = []
    for section in spec["sections"]:
        panels: list[Any] = []
        for title, metrics in section.get("bars", {}).items():
            panels.append(reports.BarPlot(title=title, metrics=metrics))
        for title, metric in section.get("lines", {}).items():
            panels.append(reports.LinePlot(title=title, x=spec["x"], y=[metric]))
        for title, regex in section.get("regex", {}).items():
            panels.append(reports.LinePlot(title=title, x=spec["x"], metric_regex=regex))
        for title, name in section.get("charts", {}).items():
            query = {"summaryTable": {"tableKey": f"val_charts/{name}_table"}}
            panels.append(reports.CustomChart(query=query, **_chart(name, title)))
        sections.append(workspaces.Section(name=section["name"], panels=panels, is_open=True))
    return workspaces.Workspace(
        name=spec["name"],
        entity=entity,
        project=project,
        sections=sections,
        auto_generate_panels=True,  # everything else below, pictures with boxes among it
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config(key) for key in spec["group_by"]]
        ),
    )


def _chart(name: str, title: str) -> dict[str, Any]:
    """W&B's own chart for one of ``afl.training.diagnostics``."""
    from afl.tracking.wandb import CHARTS
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
