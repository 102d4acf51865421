"""What a registered model says of itself: to people, and to MLflow, which loads it by it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gtl_lightning.methods import METHODS
from gtl_lightning.sharing.card import Card
from gtl_lightning.workspace.paths import Cell

if TYPE_CHECKING:
    from gtl_lightning.networks.adapters.origin import Origin

MLMODEL = "MLmodel"
LOADER = "gtl_lightning.stages.pyfunc"
MEASURED = {
    "nelbo": "NELBO of held-out target text, nats per token",
    "nelbo_val": "the same of the texts that chose gamma",
    "mauve": "MAUVE of its samples to real text",
    "domain_score": "domain score of its samples",
}
"""Metric -> what it is, in the order of the card."""
GENERATED = "apache-2.0"
"""Licence of texts that this project generates: its own."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
ABOUT = (
    "A discrete diffusion model of text, carried from a source to a target domain by `{method}`. It fills masked "
    "positions; from masks alone it writes a text."
)
USE = """
from gtl_lightning import Draw, GuidedModel, sample  # the package gtl-lightning

model = GuidedModel.from_pretrained("{name}")
x = sample(model.denoiser, batch=4, length=model.length, mask_index=model.mask_index, guidance=model.guidance,
           draw=Draw(model.temperature), schedule=model.noise)
print(model.decode(x))
"""
ALSO = (
    "On the command line `gtl sample --model {name} --prompt 'we study [MASK] [MASK] of'`, with the sampler's settings "
    'as it was measured. Registered, it is `gtl_lightning.load_model("NAME@ALIAS")`, or MLflow\'s '
    '`mlflow.pyfunc.load_model("models:/NAME@ALIAS")`.'
)
LIMITED = (
    "It is as good as its metrics say, of texts like those that it was trained on, up to its length, and not beyond: "
    "it follows no instruction and knows no fact. What it writes is not true, and is not checked; it may repeat what "
    "it was trained on. Weights are safetensors; nothing in this folder is executed; `bundle.json` has every hash."
)


def model_card(
    cell: Cell,
    row: Mapping[str, Any],
    provenance: Mapping[str, Any],
    *,
    name: str = "FOLDER",
    commit: str = "",
    licence: str | None = None,
    base: Origin | None = None,
) -> Card:
    """What the model is, what it was trained on, how good it is, how it is used, what it is not.

    Args:
        cell: method, share of the target data, seed.
        row: of the evaluated cell.
        provenance: of the data.
        name: folder, or OWNER/NAME, that it is loaded by.
        commit: of the project's checkout; empty where the registry says it.
        licence: of the source, where somebody said it; None takes what the data say of themselves, where the source
            was trained on them here.
        base: model of other people that the source is; None for one trained here.
    """
    generated = bool(provenance.get("generated"))
    kind = "a generated sample, no real text" if generated else f"real records ({provenance.get('kind', 'unknown')})"
    guided = row.get("sample_gamma") is not None
    strength = (("gamma, of samples", f"{row.get('sample_gamma')}"), ("gamma, of the NELBO", f"{row.get('gamma')}"))
    weights = f"weights {row['source']}" if row.get("source") else "none"
    facts = [
        ("method", f"`{cell.method}`: {METHODS[cell.method].help}"),
        ("data", f"{kind}; {_of_records(provenance)}; sha256 {str(provenance.get('sha256', '?'))[:12]}"),
        ("target examples", f"{row.get('examples', '?')}, {100 * (cell.fraction or 1):g} % of the target data"),
        *(strength if guided else ()),
        ("temperature", f"{row.get('temperature')}"),
        ("seed", f"{cell.seed}, of weights, order and noise"),
        ("source denoiser", f"{base.published}; {weights}" if base else weights),
        ("made with", str(row.get("trained_with") or row.get("made_with"))),
        *((("commit", commit),) if commit else ()),
    ]
    dataset = provenance.get("dataset")
    return Card(
        title=str(cell),
        about=ABOUT.format(method=cell.method),
        facts=tuple(facts),
        measured=tuple((meaning, row[metric]) for metric, meaning in MEASURED.items() if _is_number(row.get(metric))),
        use=USE.format(name=name),
        also=ALSO.format(name=name),
        limits=LIMITED,
        license=licence or (None if base else provenance.get("license") or (GENERATED if generated else None)),
        base=base.name if base and base.revision and REPOSITORY.fullmatch(base.name) else None,
        datasets=(dataset,) if isinstance(dataset, str) and REPOSITORY.fullmatch(dataset) else (),
        tags=("guided", cell.method) if guided else (cell.method,),
    )


def _of_records(provenance: Mapping[str, Any]) -> str:
    counted = f"{provenance.get('records', '?')} records"
    return f"{counted} of {provenance['dataset']}" if provenance.get("dataset") else counted


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def mlmodel() -> str:
    """MLflow's file: which module loads the folder, and what goes in and comes out. JSON is YAML."""
    version = ".".join(str(part) for part in sys.version_info[:2])
    params = [{"name": name, "type": "long", "default": 0, "shape": None} for name in ("seed", "length")]
    content = {
        "flavors": {"python_function": {"loader_module": LOADER, "python_version": version}},
        "signature": {
            "inputs": json.dumps([{"type": "string", "name": "prompt", "required": False}]),
            "outputs": json.dumps([{"type": "string", "required": True}]),
            "params": json.dumps(params),
        },
    }
    return json.dumps(content, indent=2) + "\n"
