"""The import closure of a module: what it may run, no more and no less; and the state that is keyed by it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gtl_lightning.workspace import closure as subject
from gtl_lightning.workspace.closure import ROOT, WITHOUT_RESULT, closure, code_hash
from gtl_lightning.workspace.paths import state_dir

FILES = {
    "__init__.py": "",
    "a.py": "from gtl_lightning.b import f\n",
    "b.py": "def f():\n    import gtl_lightning.c.d\n",
    "c/__init__.py": "from gtl_lightning.e import x\n",
    "c/d.py": "import os\n",
    "e.py": "if TYPE_CHECKING:\n    import gtl_lightning.g\nelse:\n    import gtl_lightning.h\n",
    "g.py": "",
    "h.py": "",
    "i.py": "",
}


def served(module: str) -> frozenset[str]:
    """The closure, and what serves its files that compute nothing: parameters ask the registry for settings."""
    found, waiting = closure(module), closure(module) & WITHOUT_RESULT
    while waiting:
        more = frozenset().union(*(closure(path.removesuffix(".py").replace("/", ".")) for path in waiting))
        waiting = (more - found) & WITHOUT_RESULT
        found |= more
    return found


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "gtl_lightning"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(subject, "ROOT", tmp_path)
    monkeypatch.setattr(subject, "WITHOUT_RESULT", frozenset({"gtl_lightning/e.py"}))
    subject._imports.cache_clear()
    yield folder
    subject._imports.cache_clear()


def test_imports_in_functions_and_packages_around_a_module_count_and_those_for_type_checkers_do_not(
    package: Path,
) -> None:
    named = {"__init__.py", "a.py", "b.py", "c/__init__.py", "c/d.py", "e.py", "h.py"}
    assert closure("gtl_lightning.a") == {f"gtl_lightning/{name}" for name in named - {"h.py"}}
    # e.py computes nothing: what it imports is of no account, unless something else runs it.
    assert closure("gtl_lightning.h") == {"gtl_lightning/__init__.py", "gtl_lightning/h.py"}


def test_the_hash_changes_with_every_file_that_computes_something_and_with_no_other(package: Path) -> None:
    def fresh() -> str:
        code_hash.cache_clear()
        return code_hash("gtl_lightning.a")

    before = fresh()
    for name in FILES:
        path = package / name
        text = path.read_text()
        path.write_text(text + "# changed\n")
        runs = name in ("__init__.py", "a.py", "b.py", "c/__init__.py", "c/d.py")
        assert (fresh() != before) == runs, name
        path.write_text(text)
    assert fresh() == before
    code_hash.cache_clear()


def test_state_of_other_code_is_another_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed loss must neither resume from nor return what the old one trained."""
    train = "gtl_lightning.stages.train"
    before = state_dir("gtl", {"steps": 3}, code=train)
    assert state_dir("gtl", {"steps": 3}, code=train) == before
    monkeypatch.setattr("gtl_lightning.workspace.paths.code_hash", lambda module: "changed")
    assert state_dir("gtl", {"steps": 3}, code=train) != before


@pytest.mark.parametrize("stage", ["train", "evaluate", "real", "report", "register", "data"])
def test_nothing_is_loaded_that_the_closure_does_not_name(stage: str) -> None:
    """All imports of a stage's files, made for real: also those that happen only while a module is being imported."""
    module = f"gtl_lightning.stages.{stage}"
    named = sorted(path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in closure(module))
    program = (
        "import importlib, json, sys\n"
        f"for name in {named!r}: importlib.import_module(name)\n"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'gtl_lightning']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {Path(path).relative_to(ROOT).as_posix() for path in json.loads(done.stdout)}
    assert closure(module) <= loaded <= served(module)
    assert loaded - WITHOUT_RESULT
