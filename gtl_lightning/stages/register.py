"""The registry: the best ratio network and the best fine-tuned denoiser, loadable by name from any machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gtl_lightning.core.guidance import Guidance
from gtl_lightning.data.tokenizer import decode
from gtl_lightning.errors import UserError
from gtl_lightning.files import digest, temporary_folder, write_json
from gtl_lightning.networks import MaskedDenoiser
from gtl_lightning.records import NUMBER, read_record
from gtl_lightning.workspace.bundle import open_bundle, write_bundle
from gtl_lightning.workspace.params import PARAMS, Params, load_params
from gtl_lightning.workspace.paths import CELLS, REPORTS, ROW, Cell, log, study
from gtl_lightning.workspace.sampler import Sampler, at_gamma
from gtl_lightning.workspace.selection import chosen_setting
from gtl_lightning.workspace.text import tokenizer
from gtl_lightning.workspace.tracking import fetch_model

BEST = "best"
ARTIFACT = "bundle"


def register_best(params: Params) -> None:
    """Register EXPERIMENT-ratio and EXPERIMENT-denoiser, one version for each share of the target data.

    The cell with the lowest validation NELBO of a share gets the alias `best-SHARE` (in percent, `best-5`), that of the
    largest share `best` too. Test data have no part in it.

    Raises:
        UserError: no cell is evaluated, or the tracker cannot be reached.
    """
    kinds = {"ratio": params.sweep.ratios, "denoiser": params.sweep.baselines}
    rows = []
    for kind, methods in kinds.items():
        name = f"{params.tracking.experiment}-{kind}"
        for fraction in sorted(params.sweep.fractions):
            best = _best(params, methods, fraction)
            if best is None:
                continue
            cell, score = best
            aliases = [alias_of(fraction), *([BEST] if fraction == max(params.sweep.fractions) else [])]
            version = _register(params, name, cell, score, aliases)
            log.info("registered %s version %s: %s (%s)", name, version, cell.name, ", ".join(aliases))
            rows.append({"name": name, "version": version, "aliases": aliases, "cell": cell.name, "nelbo_val": score})
    if not rows:
        raise UserError("no cell of the sweep is evaluated yet; `dvc repro` evaluates them")
    write_json(REPORTS / "registry.json", rows)


def alias_of(fraction: float) -> str:
    """`best-5` for 5 %; an alias may hold letters, digits, - and _."""
    return f"{BEST}-{100 * fraction:g}".replace(".", "_")


@dataclass(frozen=True)
class RegisteredModel:
    """A model of the registry, ready for `gtl_lightning.sample`.

    Attributes:
        denoiser: (x_t, t) -> log-probabilities of the clean token.
        guidance: of the strength that validation chose for samples; None for a denoiser without a ratio.
        temperature: that validation chose.
        mask_index: id of the mask.
        length: most tokens.
        cell: what it is: method, fraction, seed.
        tokenizer: from tokens to text and back.
    """

    denoiser: MaskedDenoiser
    guidance: Guidance | None
    temperature: float
    mask_index: int
    length: int
    cell: Cell
    tokenizer: Any

    def decode(self, x: Iterable[Tensor]) -> list[str]:
        """Long[b,l] -> texts."""

        return [decode(self.tokenizer, sequence.tolist()) for sequence in x]


def load_model(name: str, tracking_uri: str | None = None) -> RegisteredModel:
    """Load NAME@ALIAS from the registry (`gtl-transfer-ratio@best`); NAME alone means NAME@best.

    Weights come as safetensors and are checked against their hashes; nothing of the artifact is executed.

    Args:
        name: of the registered model, and its alias.
        tracking_uri: of the tracker; None takes MLFLOW_TRACKING_URI, else params.yaml's, else the default.

    Raises:
        UserError: no such model or alias, an unreachable tracker, a damaged artifact.
    """

    with fetched(name, tracking_uri) as folder:
        params, cell = open_bundle(folder)
        sampler = Sampler.open(params, cell, folder)
        setting = chosen_setting(params, cell, folder)
        return RegisteredModel(
            denoiser=sampler.denoiser,
            guidance=at_gamma(params, sampler.guidance, setting.gamma),
            temperature=setting.temperature,
            mask_index=sampler.corpus.mask_index,
            length=sampler.corpus.length,
            cell=cell,
            tokenizer=tokenizer(folder),
        )


@contextmanager
def fetched(name: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """A registered model's bundle in a temporary folder.

    Raises:
        UserError: no such model or alias, or the tracker cannot be reached.
    """

    model, at, alias = name.partition("@")
    if not model.strip() or (at and not alias.strip()):
        raise UserError(f"--model {name}: write it as NAME@ALIAS, for example gtl-transfer-ratio@best")
    with temporary_folder() as folder:
        yield fetch_model(tracking_uri or _tracking_uri(), model, alias or BEST, folder)


def _tracking_uri() -> str:
    return (load_params() if PARAMS.exists() else Params()).tracking.uri


def _best(params: Params, methods: Iterable[str], fraction: float) -> tuple[Cell, float] | None:
    cells = [Cell(method, fraction, seed) for method in methods for seed in params.sweep.seeds]
    paths = {cell: CELLS / cell.name / ROW for cell in cells}
    found = {cell: read_record(path, {"nelbo_val": NUMBER}) for cell, path in paths.items() if path.exists()}
    scores = {cell: float(row["nelbo_val"]) for cell, row in found.items()}
    return min(scores.items(), key=lambda item: item[1]) if scores else None


def _register(params: Params, name: str, cell: Cell, score: float, aliases: list[str]) -> str:
    tags = {"method": cell.method, "fraction": cell.fraction, "seed": cell.seed, "nelbo_val": score}
    with temporary_folder() as folder:
        key = f"bundle-{cell.name}-{digest(write_bundle(params, cell, folder))}"
        opened = study(params)
        with opened.child("model", f"model {cell.name}", key, tags) as run:
            run.log_folder(folder, ARTIFACT)
        return opened.register(name, run.run_id, ARTIFACT, key, {**tags, "profile": params.profile}, aliases)
