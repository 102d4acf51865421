"""The samples' temperature and gamma: the ones whose samples look most like held-out texts, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gtl_lightning.core.guidance import Guidance, TokenRatio
from gtl_lightning.workspace.corpus import Corpus
from gtl_lightning.workspace.paths import Cell
from gtl_lightning.workspace.selection import Setting, choose_setting, chosen_setting
from tests.pipeline.conftest import inside, tiny

GRID = ("sampling.also_temperatures=[0.7, 0.8, 0.9]", "sampling.sample_gammas=[1.0, 1.2, 1.4]")


class Mixture:
    """A sampler that returns real texts, the fewer the farther a setting is from one that is best by construction."""

    def __init__(self, texts: list[torch.Tensor], best: Setting) -> None:
        self.texts, self.best = texts, best
        self.guidance = None if best.gamma is None else Guidance(TokenRatio(torch.nn.Identity()))
        self.seeds: list[int] = []

    def draw(self, params: Any, lengths: list[int], *, guidance: Any, seed: int, progress: Any) -> list[torch.Tensor]:
        self.seeds.append(seed)
        off = abs(params.sampling.temperature - self.best.temperature)
        off += abs(guidance.gamma - self.best.gamma) if guidance else 0.0
        spoilt = int(len(lengths) * min(1.0, 2 * off))
        one = self.texts[0][:1]
        real = [self.texts[index % len(self.texts)] for index in range(len(lengths))]
        return [one.repeat(len(text)) if index < spoilt else text for index, text in enumerate(real)]


@pytest.mark.parametrize(
    ("best", "tried"), [(Setting(0.8, 1.4), 4 + 2), (Setting(1.0, 1.0), 4 + 2), (Setting(0.7, None), 4)]
)
def test_the_setting_nearest_to_held_out_texts_is_found(tokenised: Path, best: Setting, tried: int) -> None:
    with inside(tokenised):
        params = tiny(*GRID, "evaluation.trial_samples=40")
        _, val = Corpus.open(params).target(1.0, params.data.min_examples)
        sampler = Mixture(list(val)[:40], best)
        setting, trials = choose_setting(params, sampler, val, None if best.gamma is None else 0.5, seed=3)  # type: ignore[arg-type]
    assert setting == best
    assert len(trials) == len({trial.setting for trial in trials}) == tried
    assert len(set(sampler.seeds)) == 1
    assert sampler.seeds[0] != 3, "what is measured afterwards comes from another seed"


@pytest.mark.parametrize(("gamma", "allowed"), [(0.6, ()), (None, (1.0, 1.4))])
def test_where_one_setting_is_allowed_nothing_is_sampled(
    tokenised: Path, gamma: float | None, allowed: tuple[float, ...]
) -> None:
    with inside(tokenised):
        params = tiny("sampling.also_temperatures=[]", f"sampling.sample_gammas={list(allowed)}")
        setting, trials = choose_setting(params, SimpleNamespace(), None, gamma, seed=0)  # type: ignore[arg-type]
    assert (setting, trials) == (Setting(1.0, gamma), [])


def test_a_cell_is_sampled_as_validation_chose_or_at_gamma_1_before_it_is_evaluated(tmp_path: Path) -> None:
    cell = Cell("gtl", 0.3, 0)
    assert chosen_setting(tiny(), cell, tmp_path) == Setting(1.0, 1.0)
    assert chosen_setting(tiny(), Cell("finetune", 0.3, 0), tmp_path) == Setting(1.0, None)
    folder = tmp_path / "cells" / cell.name
    folder.mkdir(parents=True)
    (folder / "row.json").write_text('{"temperature": 0.7, "gamma": 0.5, "sample_gamma": 1.4}')
    assert chosen_setting(tiny(), cell, tmp_path) == Setting(0.7, 1.4)
    fixed = tiny("sampling.also_temperatures=[]", "sampling.temperature=0.5")
    assert chosen_setting(fixed, cell, tmp_path) == Setting(0.5, 1.4), "no choice of temperature: params.yaml's holds"
