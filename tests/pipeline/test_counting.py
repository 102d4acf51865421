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
from gtl_lightning.methods.gtl_counts import HELD, CountRatio, counted, frequent, ratio_of
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.networks import BackboneConfig, CountTokenRatio, Ids, MaskedDenoiser, Plain, load_network
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
        recipe = METHODS[name].recipe(context_of(params, corpus, cell, train, val, set(), {}), settings)
        with pytest.raises(UserError, match="there is 1 text; raise the fraction"):
            METHODS[name].recipe(context_of(params, corpus, cell, train.subset(1), val, set(), {}), settings)
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


def test_of_more_pairs_than_may_be_kept_the_most_frequent_stay() -> None:
    """Of all places together; where they are as frequent, at the nearer places."""
    texts = TokenDataset.from_arrays(np.array([1, 2, 1, 2, 1, 2, 3]), np.array([0, 7]), 0)
    pairs = counted(texts, V, 2).pairs
    beside = [
        (place, key, count)
        for place, one in pairs.items()
        for key, count in zip(one.keys.tolist(), one.counts.tolist(), strict=True)
    ]
    for most in range(len(beside) + 2):
        kept = frequent(pairs, most)
        found = {(place, key) for place in kept for key in kept[place].keys.tolist()}
        left = [(count, abs(place)) for place, key, count in beside if (place, key) not in found]
        stay = [(count, abs(place)) for place, key, count in beside if (place, key) in found]
        assert len(stay) == min(most, len(beside))
        assert all(count > other or (count == other and near <= far) for count, near in stay for other, far in left)
    assert all(len(one.keys) == 0 for one in frequent(pairs, -3).values())


def test_a_function_has_no_weights_of_which_tables_may_be_a_share() -> None:
    """Else every pair would be left out and nothing said."""
    source = Plain(lambda x_t, t: torch.zeros(*x_t.shape, V), Ids(V - 1, 0), V)
    counts = counted(TokenDataset.from_arrays(np.array([1, 2, 1, 2]), np.array([0, 4]), 0), V, 2)
    assert len(ratio_of(counts, counts, source, CountRatio()).values) > 1
    with pytest.raises(UserError, match="no weights of its own to take a share of; leave table_share out"):
        ratio_of(counts, counts, source, CountRatio(table_share=1.0))


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0, 1e6])
def test_tables_hold_no_more_numbers_than_their_share_of_the_denoisers_weights(share: float) -> None:
    ids = {"vocab_size": V, "mask_index": V - 1, "pad_index": 0}
    denoiser = MaskedDenoiser(BackboneConfig(**ids, width=8, depth=1, heads=2, length=8))
    texts = TokenDataset.from_arrays(
        torch.randint(0, 7, (4000,), generator=torch.Generator().manual_seed(0)).numpy(), np.arange(0, 4001, 8), 0
    )
    counts = counted(texts, V, 2)
    whole = ratio_of(counts, counts, denoiser, CountRatio())
    part = ratio_of(counts, counts, denoiser, CountRatio(table_share=share))
    weights, numbers = (sum(one.numel() for one in net.state_dict().values()) for net in (denoiser, part))
    assert numbers <= share * weights or len(part.values) == 1
    assert len(whole.values) == len(part.values) or share * weights - numbers < 2
    rows = dict(zip(whole.keys.tolist(), whole.values.tolist(), strict=True))
    assert all(
        rows[key] == value for key, value in zip(part.keys[:-1].tolist(), part.values[:-1].tolist(), strict=True)
    )
