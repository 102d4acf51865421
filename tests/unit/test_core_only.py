"""The package without its extras: every package outside the core's own needs is hidden from a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from gtl_lightning.errors import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HIDE = '''
import sys

HIDDEN, CORE = set({hidden!r}), set({core!r})


class Hiding:
    """A finder that does not see some packages, and no distribution but the core's."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        found = getattr(self.finder, "find_distributions", lambda *context: ())(*context)
        return (one for one in found if one.name.lower().replace("_", "-").replace(".", "-") in CORE)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
'''
"""Comes before what a process runs."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: list[str]) -> set[str]:
    """Distributions that these requirements install, with what they need in turn."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        wanted, asked = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": asked}):
            continue
        for extra in ("", *wanted.extras):
            key = (canonical(wanted.name), extra)
            if key not in found:
                found.add(key)
                try:
                    needs = metadata.requires(wanted.name) or []
                except metadata.PackageNotFoundError:
                    continue
                waiting += [(Requirement(text), extra) for text in needs]
    return {name for name, _ in found}


@cache
def core() -> set[str]:
    """Distributions of an installation without extras."""
    return closure(PROJECT["dependencies"]) | {"gtl-lightning"}


@cache
def hidden() -> list[str]:
    """Importable packages that are installed here and that the core does not bring."""
    return sorted(
        package
        for package, homes in metadata.packages_distributions().items()
        if not core() & {canonical(home) for home in homes}
    )


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a folder as where the core alone is installed."""
    script = folder / "run.py"
    script.write_text(HIDE.format(hidden=hidden(), core=sorted(core())) + code)
    command = [sys.executable, "-W", "ignore", str(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def gtl(*words: str) -> str:
    return f"import sys\nfrom flows.cli import main\nsys.argv = ['gtl', *{words!r}]\nmain()\n"


def test_what_is_hidden_is_what_the_extras_bring() -> None:
    assert {"dvc", "prefect", "mlflow", "datasets", "pandas", "sklearn", "mauve", "matplotlib"} <= set(hidden())
    assert not {"torch", "pytorch_lightning", "transformers", "pydantic", "numpy", "typer"} & set(hidden())


def test_the_table_of_extras_is_that_of_the_package() -> None:
    """Each package that an extra brings and the core does not is named as it is imported, and no other."""
    homes = {package: {canonical(home) for home in at} for package, at in metadata.packages_distributions().items()}
    for name, packages in EXTRAS.items():
        listed = {canonical(Requirement(text).name) for text in PROJECT["optional-dependencies"][name]}
        assert listed - {"gtl-lightning"} == set().union(*(homes[package] for package in packages)) & listed
        for package in packages:
            assert homes[package] & listed, package


def test_what_the_owner_names_is_named() -> None:
    named = {
        canonical(Requirement(text).name)
        for part in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
        for text in part
    }
    assert {"torch", "pytorch-lightning", "prefect", "mlflow", "dvc", "datasets", "pandas", "mauve-text"} <= named
    locked = (ROOT / "requirements.lock").read_text()
    for package in named - {"gtl-lightning"}:
        assert re.search(rf"^{re.escape(package)}\b", canonical_lines(locked), re.MULTILINE), package


def canonical_lines(text: str) -> str:
    return "\n".join(canonical(line.partition("==")[0].partition("[")[0]) for line in text.splitlines())


def test_the_core_serves_every_public_name_and_the_example_and_names_the_extra_of_the_rest(tmp_path: Path) -> None:
    code = f"""
import importlib.util
sys.path.insert(0, {str(ROOT)!r})
import gtl_lightning
for name in dir(gtl_lightning):
    getattr(gtl_lightning, name)
spec = importlib.util.spec_from_file_location("example", {str(ROOT / "examples/ratio_for_your_own_denoiser.py")!r})
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
found = example.main()
assert found.guided < found.unguided - 0.5, found
print(sorted(HIDDEN & {{name.partition(".")[0] for name in sys.modules}}))
for call in (
    lambda: gtl_lightning.mauve(["a"] * 30, ["b"] * 30),
    lambda: gtl_lightning.mauve(["a"] * 30, ["b"] * 30, featurizer=len),
    lambda: gtl_lightning.advise([[0], [1]], [[1], [1]], mask_index=2),
    lambda: gtl_lightning.load_model("gtl-transfer-ratio@best"),
):
    try:
        call()
    except gtl_lightning.UserError as error:
        print(error)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "mauve needs mauve, which is not installed; pip install 'gtl-lightning[report]'",
        "mauve needs mauve, which is not installed; pip install 'gtl-lightning[report]'",
        "advise needs sklearn, which is not installed; pip install 'gtl-lightning[report]'",
        "load_model needs mlflow, which is not installed; pip install 'gtl-lightning[pipeline]'",
    ]


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("methods",), ("sweep", "--help")], ids=" ".join)
def test_help_version_and_methods_need_no_extra(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(gtl(*words), tmp_path)
    assert done.returncode == 0 and done.stdout and not done.stderr


@pytest.mark.parametrize(
    "words",
    [("sweep",), ("split",), ("configure",), ("train", "source"), ("sample",), ("markov", "cells")],
    ids=" ".join,
)
def test_a_command_of_the_pipeline_names_the_extra_and_does_nothing(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(gtl(*words), tmp_path)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line == f"error: gtl {words[0]} needs dvc, which is not installed; pip install 'gtl-lightning[pipeline]'"
    assert [path.name for path in tmp_path.iterdir()] == ["run.py"]
