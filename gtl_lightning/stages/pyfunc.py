"""What `mlflow.pyfunc.load_model("models:/NAME@ALIAS")` gives: a bundle that samples, a text for every row.

MLflow imports this module, which a registered model's `MLmodel` names, and hands it the downloaded folder. Nothing in
the folder is executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtl_lightning.sharing.manifest import MANIFEST
from gtl_lightning.stages.sample import draw_rows
from gtl_lightning.workspace.bundle import check_manifest, from_bundle, open_bundle
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import Cell
from gtl_lightning.workspace.sampler import Sampler
from gtl_lightning.workspace.versions import DOWNLOADED, registered_tags


@dataclass(frozen=True)
class TextModel:
    """A registered model in MLflow's terms.

    Attributes:
        params: that it was registered with.
        cell: what it is.
        sampler: its networks.
    """

    params: Params
    cell: Cell
    sampler: Sampler

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """A text for every row.

        Args:
            model_input: a table with a column `prompt`: what a text begins with, every `[MASK]` in it a place to fill;
                empty for free text.
            params: `seed`, and `length` in tokens; 0 draws the length of a real text.

        Raises:
            UserError: a prompt, a length or a seed that the model cannot take.
        """
        prompts = _prompts(model_input)
        given = dict(params or {})
        texts: dict[str, list[str]] = {}
        for prompt in dict.fromkeys(prompts):
            asked = SampleRequest(
                count=prompts.count(prompt),
                length=int(given.get("length", 0)) or None,
                prompt=prompt or None,
                seed=int(given.get("seed", 0)),
            )
            texts[prompt] = [row["text"] for row in draw_rows(self.params, self.sampler, self.cell, asked)]
        return [texts[prompt].pop(0) for prompt in prompts]


def _prompts(model_input: Any) -> Sequence[str]:
    """Of a data frame or of rows; what is none is an empty text."""
    rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
    given = [row.get("prompt") if isinstance(row, Mapping) else row for row in rows]
    return [prompt.strip() if isinstance(prompt, str) else "" for prompt in given]


def _load_pyfunc(path: str) -> TextModel:
    """MLflow's hook.

    Raises:
        UserError: a file that is missing, changed or added; a manifest that is not the one that was registered.
    """
    folder = Path(path)
    with from_bundle(folder):
        tags = registered_tags(folder)
        if tags is not None:  # a folder that came from elsewhere than the registry has its hashes alone
            check_manifest(folder, tags.get(MANIFEST))
        params, cell = open_bundle(folder, beside=[DOWNLOADED])
        return TextModel(params, cell, Sampler.open(params, cell, folder))
