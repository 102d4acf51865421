"""The stage `tcsm-law`: every form beside its shortcuts, and rewards, on laws that are listed (docs/tcsm.md)."""

from __future__ import annotations

import torch

from gtl_lightning.files import write_json
from gtl_lightning.laws.concrete import tilted
from gtl_lightning.studies.tcsm.listed import Objectives, random_law
from gtl_lightning.studies.tcsm.preferred import Preferences
from gtl_lightning.studies.tcsm.rewarded import Rewarded
from gtl_lightning.studies.tcsm.settings import Law, Tcsm
from gtl_lightning.studies.tcsm.study import LAW, Row
from gtl_lightning.workspace.paths import log
from gtl_lightning.workspace.spread import spread


def measure_law(settings: Tcsm) -> None:
    """tcsm/law.json; repetitions side by side, a core each."""
    found = spread("listed laws", law_rows, [(settings.law, seed) for seed in settings.seeds])
    write_json(LAW, [row for rows in found for row in rows])
    log.info("tcsm law: %s", LAW)


def law_rows(law: Law, seed: int) -> list[Row]:
    """All of one repetition: laws, rewards and samples of this seed."""

    def normal(count: int, stream: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2 * seed + stream + 10)
        return torch.randn(count, generator=generator, dtype=torch.float64)

    two = random_law(law.states, 2, seed)
    whole, table = random_law(law.states, law.length, seed), normal(law.states**law.length, 0)
    rewarded = Rewarded(whole, table, law.beta, law.steps, law.batch, seed)
    rows = [
        *Objectives(law.states, law.length, seed).rows(),
        *Preferences(two, normal(law.states**2, 1), law.beta).rows(),
        *rewarded.targets(),
        *rewarded.strengths(),
        rewarded.row("trained by weight", "trained", rewarded.trained()),
        rewarded.row("ratio of texts, gamma = 1", "trained", rewarded.guided_by_sequences()),
        rewarded.row("ratio of tokens, gamma = 1", "trained", rewarded.guided_by_tokens()),
    ]
    for n in law.best_of:
        rows.append({**rewarded.row(f"best of {n}", "best of n", rewarded.best_of(n)), "n": n})
    for beta in law.betas:
        rows.append({**rewarded.row("p_R", "frontier", tilted(whole, table / beta)), "beta": beta})
    return [{**row, "seed": seed} for row in rows]
