"""The package as others meet it: version, licence, citation, types, and what the repository does not hold."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
LOCKS = ("dvc.lock", *(f"gtl_lightning/studies/{study}/dvc.lock" for study in ("markov", "tcsm", "ar2diff")))
PAPERS = {"2512.10877": "Kleutgens", "2504.16431": "Zhang", "2401.17181": "Han", "2406.07524": "Sahoo"}


def test_one_version_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert CITATION["version"] == version
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == version


def test_the_licence_is_apache_2_0_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert [int(n) for n in re.findall(r"^   (\d)\. [A-Z]", text, re.MULTILINE)] == list(range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == CITATION["license"] == "Apache-2.0"
    assert PROJECT["project"]["license-files"] == ["LICENSE"]


def test_the_citation_says_what_the_format_asks_for() -> None:
    """Citation File Format 1.2.0: its required keys, and those of each reference."""
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["message"] and CITATION["title"] and CITATION["authors"]
    for reference in CITATION["references"]:
        assert reference["type"] == "article" and reference["title"]
        assert all(set(author) == {"family-names", "given-names"} for author in reference["authors"])


@pytest.mark.parametrize("number", PAPERS)
def test_the_citation_names_the_papers(number: str) -> None:
    (found,) = [each for each in CITATION["references"] if number in each["url"]]
    assert found["identifiers"][0]["value"] == f"arXiv:{number}"
    assert found["authors"][0]["family-names"] == PAPERS[number]
    assert found["year"] == 2000 + int(number[:2])


@pytest.mark.parametrize("package", ["gtl_lightning", "flows"])
def test_types_travel_with_the_package(package: str) -> None:
    """PEP 561: a marker in the source and in what is installed."""
    assert (ROOT / package / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]
    assert package in PROJECT["tool"]["mypy"]["packages"]


def test_dvc_lock_is_neither_ignored_nor_committed(tmp_path: Path) -> None:
    """DVC refuses to work with a dvc.lock that git ignores; the README says who commits it: nobody here."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    ignored = subprocess.run(["git", "check-ignore", *LOCKS, "mlflow.db"], cwd=tmp_path, capture_output=True, text=True)
    assert ignored.stdout.split() == ["mlflow.db"]
    if (ROOT / ".git").exists():
        held = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", *LOCKS],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert not held.stdout
    assert "commits `dvc.lock`" in (ROOT / "README.md").read_text()


def test_examples_import_what_anyone_can() -> None:
    """Torch, the standard library and the package; nothing of tests, stages, flows or configuration."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [
                n for n in names if re.match(r"tests|flows|gtl_lightning\.(stages|config|cli)|lightning|mlflow", n)
            ]
