"""What is installed: every package has its version and its hashes in the lock, and every package there is needed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CUDA = re.compile(r"nvidia-|cuda-|triton$")
LOCKS = ("requirements.lock", "requirements-cpu.lock")


def locked(name: str) -> dict[str, tuple[Requirement, set[str]]]:
    """Package -> its requirement and its hashes."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text())
    found = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        said, *hashes = (part.strip() for part in entry.replace("\\\n", "\n").splitlines())
        requirement = Requirement(said)
        found[canonicalize_name(requirement.name)] = requirement, set(hashes)
    return found


def test_every_package_has_one_version_and_its_hashes() -> None:
    for name in LOCKS:
        for requirement, hashes in locked(name).values():
            assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement
            assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", value) for value in hashes), requirement


def test_what_the_project_asks_for_is_in_the_lock_and_nothing_that_nobody_asks_for() -> None:
    """From pyproject.toml on, through what each package says that it needs here."""
    here = {n: r for n, (r, _) in locked(LOCKS[0]).items() if r.marker is None or r.marker.evaluate()}
    of_cuda = set() if "+cpu" not in metadata.version("torch") else {n for n in here if CUDA.match(n)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["env"], *chain(*extras)]
    todo = [(Requirement(line), "") for line in asked]
    needed: set[tuple[str, str]] = set()
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name == project["project"]["name"]:  # an extra that takes another in: both are read
            continue
        assert name in here, f"{name} is needed and not locked"
        (version,) = here[name].specifier
        assert requirement.specifier.contains(version.version, prereleases=True), f"{requirement}, locked {version}"
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in needed:
                needed.add((name, wanted))
                todo += [(Requirement(line), wanted) for line in metadata.requires(name) or []]
    assert here.keys() - {name for name, _ in needed} == of_cuda


def test_the_builds_of_torch_are_of_one_version() -> None:
    (public, cpu) = (str(locked(name)["torch"][0].specifier) for name in LOCKS)
    assert cpu == f"{public}+cpu" and locked(LOCKS[1]).keys() == {"torch"}


def test_make_installs_nothing_without_a_hash_and_moves_the_cache_that_dvc_unpickles() -> None:
    command = ["make", "--dry-run", "--always-make", "env"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n", "")
    installs = [line for line in said.splitlines() if re.search(r"\bpip install\b", line)]
    assert len(installs) == 4
    for line in installs:
        own = line.endswith("--no-deps --no-build-isolation --editable .")
        assert own or ("--no-deps" in line and "--require-hashes -r" in line), line
    assert re.search(r"dvc config .*--local core\.site_cache_dir \"\S+/\.dvc/tmp/site\"", said)
