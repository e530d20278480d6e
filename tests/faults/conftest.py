"""Counts the operations of the tests and prints the counts at the end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

COUNTS = pytest.StashKey[Counter]()

# The damages are the same in every run, so that a failure can be reproduced.
settings.register_profile(
    "faults",
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTS] = Counter()


@pytest.fixture
def count(request: pytest.FixtureRequest):
    """``count(what, number=1)`` adds to the line about ``what`` in the summary."""

    def add(what: str, number: int = 1) -> None:
        request.config.stash[COUNTS][what] += number

    return add


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of generated data, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    counts = config.stash[COUNTS]
    if counts:
        terminalreporter.section("faults")
        for what, number in counts.items():
            terminalreporter.write_line(f"{number:6d}  {what}")
