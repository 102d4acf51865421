"""What a registered model says of itself: to people, and to MLflow, which loads it by it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from gtl_lightning.workspace.paths import Cell

CARD = "README.md"
MLMODEL = "MLmodel"
LOADER = "gtl_lightning.stages.pyfunc"
MEASURED = {
    "nelbo": "NELBO of held-out target text, nats per token",
    "nelbo_val": "the same of the texts that chose gamma",
    "mauve": "MAUVE of its samples to real text",
    "domain_score": "domain score of its samples",
}
"""Metric -> what it is, in the order of the card."""


def model_card(cell: Cell, row: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Markdown: what the model is, what it was trained on, how good it is, how it is used, what it is not.

    Args:
        cell: method, share of the target data, seed.
        row: of the evaluated cell.
        provenance: of the data.
    """
    kind = "a generated sample, no real text" if provenance.get("generated") else "real records"
    table = [
        f"| {meaning} | {row[metric]:.4f} |"
        for metric, meaning in MEASURED.items()
        if isinstance(row.get(metric), int | float)
    ]
    return f"""# {cell}

A discrete diffusion model of text, carried from a source to a target domain by `{cell.method}`. It fills masked
positions; from masks alone it writes a text.

- Trained on {row.get("examples", "?")} target examples ({kind}; data {str(provenance.get("sha256", "?"))[:12]}).
- Made with {row.get("trained_with") or row.get("made_with")}.
- Samples at temperature {row.get("temperature")}, guidance strength {row.get("sample_gamma")}, as held-out texts chose.

| measured | |
|---|---|
{chr(10).join(table)}

## Use

```python
import mlflow, pandas as pd

model = mlflow.pyfunc.load_model("models:/NAME@ALIAS")  # where gtl-lightning is installed
texts = model.predict(pd.DataFrame({{"prompt": ["", "we study [MASK] [MASK] of"]}}), params={{"seed": 0, "length": 0}})
```

or `gtl sample --model NAME@ALIAS`, or `gtl_lightning.load_model("NAME@ALIAS")`, whose parts can be put together anew.

## Limits

It is as good as its metrics say, of texts like those that it was trained on, up to its length. What it writes is not
true, and is not checked. Weights are safetensors; nothing in this folder is executed; `bundle.json` has every hash.
"""


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
