"""Options of the suite."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # how long an example takes says nothing of whether it is right
settings.load_profile("suite")


SHARED = ("trained", "tokenised", "server", "lab", "client", "origin", "database", "study")
"""Fixtures that cost most of a test's time and that several tests share."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share such a fixture go to one worker, which makes it once; a workspace's two stages count as one."""
    for item in items:
        shared = next((name for name in SHARED if name in getattr(item, "fixturenames", ())), None)
        if shared is not None:
            item.add_marker(pytest.mark.xdist_group("trained" if shared == "tokenised" else shared))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=1, help="rounds of every kill of a sweep, each at another moment (docs/lab.md)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kill_round" in metafunc.fixturenames:
        metafunc.parametrize("kill_round", range(metafunc.config.getoption("--kills")))
