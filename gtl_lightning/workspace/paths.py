"""Where everything lies, the cells of the grid, and the study that a stage is tracked in."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtl_lightning.data.origin import read_provenance
from gtl_lightning.files import digest, sha256_file, write_json
from gtl_lightning.records import AMOUNT, Each, Row, Shape, Values, Within, read_lines, read_record
from gtl_lightning.workspace.closure import code_hash
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.watched import check_inputs

if TYPE_CHECKING:
    from gtl_lightning.workspace.tracking import Study

log = logging.getLogger("gtl")

DATA = Path("data")
SNAPSHOT = DATA / "snapshot.jsonl.gz"
SPLITS = Path("splits")
TOKENS = Path("tokens")
MODELS = Path("models")
REAL = Path("real")
CELLS = Path("cells")
ABLATION = Path("ablation")
REPORTS = Path("reports")
STATE = Path(".state")
RUNS = Path("runs")
"""What making a result took, by the result's path: seconds, memory, its tracked run. No result depends on it."""
TOOK: Shape = {
    **dict.fromkeys(("seconds?", "compute_seconds?", "prepare_seconds?"), AMOUNT),
    "peak_bytes?": Within(0, 1e18, null=True),
    "rows?": Each(Row()),
}

NETWORK = "network.safetensors"
SOURCE = MODELS / "source" / NETWORK
CAUSAL = MODELS / "causal" / NETWORK
RESULT = "result.json"
ROW = "row.json"
ROWS = "rows.json"
SAMPLES = "samples.jsonl"
LENGTHS = "lengths.json"
"""Of a bundle: lengths of target texts, in place of the texts."""
REAL_VALUES = REAL / "values.json"
REAL_TEXTS = REAL / "texts.json"


@dataclass(frozen=True)
class Cell:
    """One point of the grid: a method on a fraction of the target data, one repetition.

    The name is also the folder below models/ and cells/, spelled as DVC spells the matrix values.
    """

    method: str
    fraction: float | None
    seed: int

    @property
    def name(self) -> str:
        """For example `gtl-0.05-0`; `source-0` for the untouched source denoiser."""
        return "-".join(str(part) for part in (self.method, self.fraction, self.seed) if part is not None)

    def __str__(self) -> str:
        """For people: `gtl on 5 % of the target data, seed 0`."""
        share = "" if self.fraction is None else f" on {100 * self.fraction:g} % of the target data"
        return f"{self.method}{share}, seed {self.seed}"


def study(params: Params) -> Study:
    """The MLflow study of this profile on this data.

    Raises:
        UserError: the tracker cannot be reached.
    """
    from gtl_lightning.workspace.tracking import Study

    return Study(params.tracking.uri, params.tracking.experiment, {"profile": params.profile, "data_hash": data_hash()})


def data_hash() -> str:
    """Short hash of the snapshot that data/ holds."""
    return str(read_provenance(DATA)["sha256"])[:12]


def state_dir(name: str, settings: dict[str, Any], *inputs: Path, code: str) -> Path:
    """Folder of a training run's resumable state, outside of what DVC manages (it deletes outputs before a run).

    It is named by all that the run depends on, so that a change never resumes from another run's state.

    Args:
        name: for people.
        settings: values that the run depends on.
        inputs: files that it reads; their contents count.
        code: module that it starts in; all project files that this may run count, and torch's version.

    Raises:
        UserError: code, data or parameters were edited since the command started, so that no key would be right.
    """
    read = {str(path): sha256_file(path) for path in inputs}
    key = digest({"settings": settings, "inputs": read, "code": code_hash(code), "torch": version("torch")})
    check_inputs()  # what has been opened so far is what has been hashed now
    return STATE / f"{name}-{key}"


def note_run(result: Path, values: dict[str, Any]) -> None:
    """Note beside the results what making `result` took: what is made twice alike differs in nothing else."""
    write_json(RUNS / result, values)


def run_of(result: Path, root: Path = Path()) -> dict[str, Any]:
    """What `note_run` noted; empty for a result that came without it."""
    path = root / RUNS / result
    return read_record(path, TOOK) if path.exists() else {}


def with_times(result: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a result, each with what making it took."""
    took = run_of(result).get("rows", [])
    return [row | took[number] for number, row in enumerate(rows)] if len(took) == len(rows) else rows


def fraction_of(cell: Cell) -> float:
    """The cell's share of the target data; every cell but the source's has one."""
    assert cell.fraction is not None
    return cell.fraction


def changed_since(cell: Cell) -> Path | None:
    """A network that is another by now than when the cell was evaluated; None where all are the same.

    Raises:
        UserError: the cell's samples, which name them, are damaged.
    """
    samples = CELLS / cell.name / SAMPLES
    first = next(iter(read_lines(samples, {"models?": Values(str)})), {}) if samples.is_file() else {}
    used = {Path(name): version for name, version in first.get("models", {}).items()}
    return next((path for path, version in used.items() if sha256_file(path)[:12] != version), None)


def read_samples(folder: Path) -> list[str]:
    """The texts of a samples.jsonl."""
    return [row["text"] for row in read_lines(folder / SAMPLES, {"text": str})]
