"""`gtl-counts`: which pairs of texts are counted, and which texts when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.errors import UserError
from gtl_lightning.files import read_json
from gtl_lightning.methods import METHODS
from gtl_lightning.methods.gtl_counts import HELD, counted
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.networks import CountTokenRatio, load_network
from gtl_lightning.stages.train import context_of, train_cell
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.paths import Cell
from tests.pipeline.conftest import inside
from tests.pipeline.test_methods import everything

V = 9


def test_pairs_are_those_of_one_text() -> None:
    """By hand: every pair of places of a text, none across two texts, each side the mirror of the other."""
    rows = [[1, 2, 1, 2], [3], [2, 2, 4]]
    flat, ends = np.concatenate(rows).astype(np.int64), np.cumsum([0, *map(len, rows)])
    found = counted(TokenDataset.from_arrays(flat, ends, 0), V, 2)
    assert found.tokens.tolist() == [0, 2, 4, 1, 1, 0, 0, 0, 0]
    for place, pairs in found.pairs.items():
        wanted = np.zeros((V, V))
        for row in rows:
            for at, token in enumerate(row):
                if 0 <= at + place < len(row):
                    wanted[row[at + place], token] += 1
        table = torch.zeros(V * V).index_put((pairs.keys,), pairs.counts).view(V, V)
        assert table.tolist() == wanted.tolist()


@pytest.mark.parametrize("name", ["gtl-counts", "gtl-counts-finetuned"])
def test_strengths_are_learned_on_texts_that_are_not_counted_and_then_all_are(
    name: str, trained: Path, tmp_path: Path
) -> None:
    workspace = Path(shutil.copytree(trained, tmp_path / "workspace"))
    with inside(workspace):
        params = everything()
        corpus, cell = Corpus.open(params), Cell(name, 0.3, 0)
        train, val = corpus.target(0.3, params.data.min_examples)
        settings = params.methods.of(name)
        recipe = METHODS[name].recipe(context_of(params, corpus, cell, train, val, set()), settings)
        with pytest.raises(UserError, match="there is 1 text; raise the fraction"):
            METHODS[name].recipe(context_of(params, corpus, cell, train.subset(1), val, set()), settings)
        part = cast(CountTokenRatio, recipe.builds["network"](OptimiserConfig(), 0).network)
        train_cell(params, name, 0.3, 0)
        whole = cast(CountTokenRatio, load_network(Path("models") / cell.name / "network.safetensors"))
        result = read_json(Path("models") / cell.name / "result.json")
        everything_counted = counted(train, corpus.backbone(params.networks.denoiser).vocab_size, part.reach)
    held = len(recipe.target)
    assert held == len(train) // HELD
    assert [text.tolist() for text in recipe.target] == [text.tolist() for text in train.tail(len(train) - held)]
    pairs = sum(len(table.keys) for table in everything_counted.pairs.values())
    assert len(part.values) - 1 < len(whole.values) - 1 == pairs, "what is kept is counted of all"
    assert not torch.equal(whole.strengths, part.strengths), "the strengths are trained"
    kept = [whole.strengths, whole.tokens, whole.keys, whole.values]
    assert result["trainable_parameters"] == sum(one.numel() for one in kept)
    assert result["kept_bytes"] == sum(one.nbytes for one in kept)
    assert set(result["tried"]) == {"network", "all-counted"}


def test_texts_of_one_token_have_no_pairs_and_are_counted_all_the_same() -> None:
    texts = TokenDataset.from_arrays(np.array([1, 2, 2]), np.array([0, 1, 2, 3]), 0)
    found = counted(texts, V, 3)
    assert found.tokens.sum() == 3 and all(len(pairs.keys) == 0 for pairs in found.pairs.values())
