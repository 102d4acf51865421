"""`gtl register`: the best ratio network and the best denoiser of every share, loadable by name from any machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gtl_lightning.data.origin import read_provenance
from gtl_lightning.errors import UserError
from gtl_lightning.files import digest, sha256_file, temporary_folder, write_json
from gtl_lightning.methods import METHODS
from gtl_lightning.records import NUMBER, read_record
from gtl_lightning.sharing.hub import licence_of
from gtl_lightning.sharing.manifest import MANIFEST
from gtl_lightning.workspace.bundle import bundle_files, write_bundle
from gtl_lightning.workspace.card import model_card
from gtl_lightning.workspace.frozen import of_others
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import CELLS, DATA, REPORTS, ROW, Cell, log, study
from gtl_lightning.workspace.registry import BEST

ARTIFACT = "bundle"


def register_best(params: Params) -> None:
    """Register EXPERIMENT-ratio and EXPERIMENT-denoiser, one version for each share of the target data.

    The cell with the lowest validation NELBO of a share gets the alias `best-SHARE` (in percent, `best-5`), that of the
    largest share `best` too. Test data have no part in it. All networks are read before the first is registered.

    Raises:
        UserError: no cell is evaluated, a network is missing or damaged, or the tracker cannot be reached.
    """
    kinds = {
        kind: [name for name in params.sweep.methods if METHODS[name].kind == kind] for kind in ("ratio", "denoiser")
    }
    found = [
        (f"{params.tracking.experiment}-{kind}", fraction, _best(params, methods, fraction))
        for kind, methods in kinds.items()
        for fraction in sorted(params.sweep.fractions)
    ]
    chosen = [(name, fraction, *best) for name, fraction, best in found if best is not None]
    if not chosen:
        raise UserError("no cell of the sweep is evaluated yet; `dvc repro` evaluates them")
    for _, _, cell, _ in chosen:
        bundle_files(params, cell)
    rows = []
    for name, fraction, cell, score in chosen:
        aliases = [alias_of(fraction), *([BEST] if fraction == max(params.sweep.fractions) else [])]
        version = _register(params, name, cell, score, aliases)
        log.info("registered %s version %s: %s (%s)", name, version, cell.name, ", ".join(aliases))
        rows.append({"name": name, "version": version, "aliases": aliases, "cell": cell.name, "nelbo_val": score})
    write_json(REPORTS / "registry.json", rows)


def alias_of(fraction: float) -> str:
    """`best-5` for 5 %; an alias may hold letters, digits, - and _."""
    return f"{BEST}-{100 * fraction:g}".replace(".", "_")


def _best(params: Params, methods: Iterable[str], fraction: float) -> tuple[Cell, float] | None:
    cells = [
        Cell(method, fraction, seed) for method in methods for share, seed in params.sweep.points if share == fraction
    ]
    paths = {cell: CELLS / cell.name / ROW for cell in cells}
    found = {cell: read_record(path, {"nelbo_val": NUMBER}) for cell, path in paths.items() if path.exists()}
    scores = {cell: float(row["nelbo_val"]) for cell, row in found.items()}
    return min(scores.items(), key=lambda item: item[1]) if scores else None


def _register(params: Params, name: str, cell: Cell, score: float, aliases: list[str]) -> str:
    tags = {"method": cell.method, "fraction": cell.fraction, "seed": cell.seed, "nelbo_val": score}
    with temporary_folder() as folder:
        others = of_others()
        licence = licence_of(others.name) if others and Path(others.name).is_dir() else None
        card = model_card(
            cell, read_record(CELLS / cell.name / ROW), read_provenance(DATA), licence=licence, base=others
        )
        key = f"bundle-{cell.name}-{digest(write_bundle(params, cell, folder, card))}"
        anchor = {MANIFEST: sha256_file(folder / MANIFEST)}
        opened = study(params)
        with opened.child("model", f"model {cell.name}", key, tags) as run:
            run.log_folder(folder, ARTIFACT)
        told = {**tags, **anchor, "profile": params.profile}
        return opened.register(name, run.run_id, ARTIFACT, key, told, aliases, card.text())
