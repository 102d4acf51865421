"""Options of the suite."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ["DVC_NO_ANALYTICS"] = "true"  # every command of the repositories that tests make would tell of itself

settings.register_profile("suite", deadline=None)  # how long an example takes says nothing of whether it is right
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=1, help="rounds of every kill of a sweep, each at another moment (docs/lab.md)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kill_round" in metafunc.fixturenames:
        metafunc.parametrize("kill_round", range(metafunc.config.getoption("--kills")))
