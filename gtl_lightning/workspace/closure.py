"""Which of the project's files a module runs: its import closure, read from the source text without importing anything.

DVC's dependencies of a stage have to cover it (`tests/unit/test_dvc_stages.py`), and the resumable state of a training
is keyed by it: a changed loss never resumes from, or returns, what the old one trained.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

PACKAGE = "gtl_lightning"
ROOT = Path(__file__).parents[2]
REGISTRIES, TRAINING = (f"{PACKAGE}.methods", f"{PACKAGE}.sources"), f"{PACKAGE}.stages.train"
"""Packages that find their modules by themselves, and the one module that runs what stands in their functions."""
WITHOUT_RESULT = frozenset(
    f"{PACKAGE}/{name}"
    for name in (
        "__init__.py",  # names for people's own code, imported when used
        "errors.py",  # one exception
        "resources.py",  # memory and threads of the process
        "inputs.py",  # opens regular files, and refuses others
        "records.py",  # refuses JSON of another shape, and gives the rest as it was read
        "fields.py",  # parameters: their values come from params.yaml, by which DVC and the state are keyed one by one
        "sharing/folder.py",
        "sharing/hub.py",  # carries folders there and back
        "sharing/manifest.py",  # refuses a folder that is not what was written
        "sharing/card.py",  # what a model says of itself
        "sharing/shareable.py",  # which file of a folder is what
        "workspace/params.py",
        "workspace/settings.py",
        "workspace/studyfile.py",
        "workspace/stated.py",  # lays what the file states over the default and the method's own, which stand in deps
        "workspace/written.py",
        "workspace/yamlfile.py",
        "studies/markov/settings.py",
        "studies/markov/params.py",
        "studies/tcsm/settings.py",
        "studies/tcsm/params.py",
        "studies/ar2diff/settings.py",
        "studies/ar2diff/params.py",
        "workspace/closure.py",  # names states
        "workspace/watched.py",  # refuses results of what was edited meanwhile
        "workspace/declared.py",
        "workspace/tracking.py",  # tells MLflow what came out
        "workspace/tracked.py",
        "workspace/origin.py",
        "workspace/versions.py",
        "workspace/lost.py",
        "workspace/pages.py",
        "workspace/card.py",  # what a registered model says of itself
        "workspace/artifacts.py",
        "workspace/mlflow_client.py",
        "workspace/addresses.py",  # where MLflow is
        "workspace/options.py",  # refuses what cannot be
        "workspace/browser.py",
        "workspace/progress.py",  # tells a person how far it is
        "workspace/provenance.py",  # says what a result was made with
        # What a folder holds, in a sentence.
        "sharing/__init__.py",
        "workspace/__init__.py",
        "stages/__init__.py",
        "studies/__init__.py",
        "studies/markov/__init__.py",
        "studies/tcsm/__init__.py",
        "studies/ar2diff/__init__.py",
    )
)
"""Files that say something and compute nothing: a change of them makes no result another."""


def closure(module: str) -> frozenset[str]:
    """Paths, relative to the project, of all files of the package that `module` may run, its own included.

    Imports inside functions count, those for type checkers do not; importing a module runs the packages around it. A
    file that computes nothing is not looked into: what it imports serves what it says.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting.append(name.rpartition(".")[0])
        if path in WITHOUT_RESULT and name != module:
            continue
        # A recipe runs in training alone; everything else asks the registry for names and labels.
        waiting += _imports(path, module == TRAINING or not name.startswith(REGISTRIES))
        waiting += _discovered(name) if name in REGISTRIES else []
    return frozenset(found.values())


@cache
def code_hash(module: str) -> str:
    """Short hash of the closure's files that compute something.

    Raises:
        OSError: a file was taken away meanwhile.
    """
    found = hashlib.sha256()
    for path in sorted(closure(module) - WITHOUT_RESULT):
        found.update(f"{path}\0".encode() + (ROOT / path).read_bytes())
    return found.hexdigest()[:12]


def _file_of(module: str) -> str | None:
    """The file of a module of the package; None for anything else, a function's name among it."""
    if module.partition(".")[0] != PACKAGE:
        return None
    path = Path(*module.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if (ROOT / candidate).is_file():
            return candidate.as_posix()
    return None


def _discovered(registry: str) -> list[str]:
    """The modules that a registry finds, without naming them."""
    return [f"{registry}.{path.stem}" for path in sorted((ROOT / Path(*registry.split("."))).glob("*.py"))]


@cache
def _imports(path: str, inside_functions: bool) -> tuple[str, ...]:
    """Dotted names that a file imports; of `from a import b` both a and a.b, as b may be a module."""
    found: list[str] = []

    class Imports(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            for part in node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else ast.iter_child_nodes(node):
                self.visit(part)

        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            if inside_functions:
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.extend(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.module is not None and not node.level, f"{path} imports relatively"
            found.append(node.module)
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)

    Imports().visit(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    return tuple(found)
