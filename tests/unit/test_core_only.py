"""The package without its extras, in an environment of its own that has the core's distributions and no others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from gtl_lightning.errors import EXTRAS

ROOT = Path(__file__).parents[2]
OWN = "gtl-lightning"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
    return closure(PROJECT["dependencies"]) | {OWN}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment: what the core installs is linked into it, file by file, from this one."""
    home = tmp_path_factory.mktemp("core")
    venv.create(home, symlinks=True)
    here, site = (Path(sysconfig.get_path("purelib", vars={"base": str(base)})) for base in (sys.prefix, home))
    for name in core() - {OWN}:
        with suppress(metadata.PackageNotFoundError):  # needed on another system alone
            for file in metadata.files(name) or []:
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    (site / file).parent.mkdir(parents=True, exist_ok=True)
                    (site / file).symlink_to(file.locate())
    # An editable installation lists no files of its own.
    for folder in (ROOT / "gtl_lightning", ROOT / "flows", *here.glob("gtl_lightning-*.dist-info")):
        (site / folder.name).symlink_to(folder)
    return home / "bin/python"


def run(python: Path, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a folder as where the core alone is installed."""
    script = folder / "run.py"
    script.write_text(code)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(python), "-W", "ignore", str(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def gtl(*words: str) -> str:
    return f"import sys\nfrom flows.cli import main\nsys.argv = ['gtl', *{words!r}]\nmain()\n"


def test_what_is_there_is_the_core_without_what_the_extras_bring(python: Path, tmp_path: Path) -> None:
    done = run(
        python, "from importlib import metadata\nprint(*(one.name for one in metadata.distributions()))", tmp_path
    )
    found = {canonical(name) for name in done.stdout.split()}
    assert {"torch", "pytorch-lightning", "transformers", "pydantic", "numpy", "typer", "gtl-lightning"} <= found
    assert found <= core()
    assert not {"dvc", "prefect", "mlflow", "datasets", "pandas", "scikit-learn", "mauve-text", "matplotlib"} & found


def test_the_table_of_extras_is_that_of_the_package() -> None:
    """Each package that an extra brings and the core does not is named as it is imported, and no other."""
    homes = {package: {canonical(home) for home in at} for package, at in metadata.packages_distributions().items()}
    for name, packages in EXTRAS.items():
        listed = {canonical(Requirement(text).name) for text in PROJECT["optional-dependencies"][name]}
        assert listed - {OWN} == set().union(*(homes[package] for package in packages)) & listed
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
    for package in named - {OWN}:
        assert re.search(rf"^{re.escape(package)}\b", canonical_lines(locked), re.MULTILINE), package


def canonical_lines(text: str) -> str:
    return "\n".join(canonical(line.partition("==")[0].partition("[")[0]) for line in text.splitlines())


def test_the_core_serves_every_public_name_and_the_example_and_names_the_extra_of_the_rest(
    python: Path, tmp_path: Path
) -> None:
    code = f"""
import importlib.util, sys
sys.path.insert(0, {str(ROOT)!r})
import gtl_lightning
for name in dir(gtl_lightning):
    getattr(gtl_lightning, name)
spec = importlib.util.spec_from_file_location("example", {str(ROOT / "examples/ratio_for_your_own_denoiser.py")!r})
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
found = example.main()
assert found.guided < found.unguided - 0.5, found
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
    done = run(python, code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "mauve needs mauve, which is not installed; pip install 'gtl-lightning[report]'",
        "mauve needs mauve, which is not installed; pip install 'gtl-lightning[report]'",
        "advise needs sklearn, which is not installed; pip install 'gtl-lightning[report]'",
        "load_model needs mlflow, which is not installed; pip install 'gtl-lightning[pipeline]'",
    ]


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("methods",), ("sweep", "--help")], ids=" ".join)
def test_help_version_and_methods_need_no_extra(words: tuple[str, ...], python: Path, tmp_path: Path) -> None:
    done = run(python, gtl(*words), tmp_path)
    assert done.returncode == 0 and done.stdout and not done.stderr


@pytest.mark.parametrize(
    "words",
    [("sweep",), ("split",), ("configure",), ("train", "source"), ("sample",), ("markov", "cells")],
    ids=" ".join,
)
def test_a_command_of_the_pipeline_names_the_extra_and_does_nothing(
    words: tuple[str, ...], python: Path, tmp_path: Path
) -> None:
    done = run(python, gtl(*words), tmp_path)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line == f"error: gtl {words[0]} needs dvc, which is not installed; pip install 'gtl-lightning[pipeline]'"
    assert [path.name for path in tmp_path.iterdir()] == ["run.py"]
