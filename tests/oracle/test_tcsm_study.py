"""The study of target concrete score matching: what it measures is exact where it says so, and shows what it is for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from gtl_lightning.core.noise import Absorbing
from gtl_lightning.laws import concrete
from gtl_lightning.laws.enumerated import EnumeratedDistribution, all_sequences, model_law
from gtl_lightning.studies.tcsm.chains import examples, gradients
from gtl_lightning.studies.tcsm.listed import Objectives, random_law
from gtl_lightning.studies.tcsm.page import gradient_ratio, shares
from gtl_lightning.studies.tcsm.preferred import Preferences
from gtl_lightning.studies.tcsm.rewarded import Rewarded
from gtl_lightning.studies.tcsm.settings import Chains
from tests.oracle.concrete import marginals, neighbours, posterior, two_sided
from tests.oracle.enumeration import random_laws
from tests.pipeline.conftest import inside

V, LENGTH, BETA = 3, 4, 0.5
LAWS = random_laws(V, LENGTH, seed=0)
LAW = EnumeratedDistribution(LAWS.q.view((V,) * LENGTH))
NORMAL = torch.randn(V**LENGTH, generator=torch.Generator().manual_seed(10), dtype=torch.float64)


def rewarded(**changed: int) -> Rewarded:
    options = {"steps": 1000, "batch": 4096, "seed": 0, **changed}
    return Rewarded(random_law(V, LENGTH, 0), NORMAL, BETA, **options)


def test_a_listed_law_says_what_brute_force_says() -> None:
    """Posteriors, their marginals, two-sided conditionals and the places of one-token changes, at every x_t."""
    x_t = concrete.masked_texts(V, LENGTH)
    assert torch.equal(x_t, LAWS.partial[(LAWS.partial == V).any(-1)])
    weight = posterior(LAWS, LAWS.q, x_t, Absorbing(V), 0.5)
    torch.testing.assert_close(concrete.posteriors(LAW, x_t), weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(concrete.marginals(LAW, weight), marginals(LAWS, weight), rtol=1e-10, atol=1e-12)
    assert torch.equal(concrete.neighbours(V, LENGTH), neighbours(LAWS))
    torch.testing.assert_close(concrete.two_sided(LAW), two_sided(LAWS, LAWS.q), rtol=1e-10, atol=1e-12)


def test_a_table_of_exact_conditionals_is_the_law() -> None:
    values = LAW.posterior(all_sequences(V + 1, LENGTH))[..., :V]
    table = concrete.Table(values, V)
    x_t = concrete.masked_texts(V, LENGTH)[::7]
    torch.testing.assert_close(table.denoiser(x_t, torch.zeros(())), LAW(x_t))
    assert model_law(table.denoiser, V, LENGTH).total_variation(LAW) < 1e-10


@pytest.mark.parametrize("seed", [0, 1])
def test_exact_forms_end_at_the_marginals_and_shortcuts_do_not(seed: int) -> None:
    """Both forms, and teachers that are exact on a Markov chain, within 1e-6; every shortcut is seen to be off."""
    rows = {row["form"]: row for row in Objectives(V, LENGTH, seed).rows()}
    exact = [row for row in rows.values() if row["kind"] == "exact"]
    assert len(exact) == 5
    assert all(row["worst"] < 1e-6 for row in exact)
    others = [row for row in rows.values() if row["kind"] != "exact"]
    assert {row["form"] for row in others} == {
        "teacher, top 2",
        "model first",
        "uniform x_0",
        "causal law as target",
        "gradient by the input alone",
    }
    assert all(row["tv"] > 0.005 and row["worst"] > 0.02 for row in others)
    assert rows["causal law as target"]["tv"] > 0.05 and rows["gradient by the input alone"]["tv"] > 0.05


def test_masks_are_averaged_before_the_sigmoid_in_the_mean_over_laws() -> None:
    found: dict[str, list[float]] = {}
    for seed in (0, 2, 5):
        reward = torch.randn(9, generator=torch.Generator().manual_seed(seed + 5), dtype=torch.float64)
        for row in Preferences(random_law(V, 2, seed), reward, BETA).rows():
            found.setdefault(row["form"], []).append(row["tv"])
    means = {form: sum(values) / 3 for form, values in found.items()}
    assert means["masks averaged first"] < 0.15 < 0.25 < means["mask by mask"] < means["not tuned"]


def test_of_a_rewards_targets_the_exact_ones_are() -> None:
    rows = {row["form"]: row for row in [*rewarded().targets(), *rewarded().strengths()]}
    assert all(row["tv"] < 1e-9 for row in rows.values() if row["kind"] == "exact")
    assert all(row["tv"] > 0.02 for row in rows.values() if row["kind"] != "exact")
    assert sum(row["kind"] == "exact" for row in rows.values()) == 3


@pytest.mark.parametrize("way", ["trained", "guided_by_sequences", "guided_by_tokens"])
def test_a_trained_reward_is_p_r(way: str) -> None:
    """On samples of p_pre alone: total variation within .02 of p_R, E[R] within 1 %; p_pre itself is at .55."""
    given = rewarded()
    row = given.row(way, "trained", getattr(given, way)())
    assert row["tv"] < 0.02
    assert row["reward"] == pytest.approx(row["reward_wanted"], rel=0.01)
    assert given.row("not tuned", "untouched", given.law)["tv"] > 0.3


def test_the_best_of_n_is_the_law_of_a_maximum() -> None:
    """Against all pairs of texts; equal rewards share what the best of them has."""
    table = NORMAL.round()
    given = Rewarded(LAW, table, BETA, 1, 1, 0)
    expected = torch.zeros(V**LENGTH, dtype=torch.float64)
    for a, b in itertools.product(range(V**LENGTH), repeat=2):
        chance = LAW.table[a] * LAW.table[b]
        if table[a] == table[b]:
            expected[a] += chance / 2
            expected[b] += chance / 2
        else:
            expected[a if table[a] > table[b] else b] += chance
    torch.testing.assert_close(given.best_of(2).table, expected)
    torch.testing.assert_close(given.best_of(1).table, LAW.table)
    rewards = [float(given.best_of(n).table @ table) for n in (1, 2, 4, 8)]
    assert rewards == sorted(rewards) and rewards[-1] > rewards[0] + 0.5


def test_no_law_earns_more_for_its_drift_than_p_r() -> None:
    """p_R has the least KL to p_pre of all laws of its reward: the best of n lies below its frontier."""
    given = rewarded()
    picked = given.row("best of 4", "best of n", given.best_of(4))
    for beta in torch.logspace(-1, 1, 60).tolist():
        found = concrete.tilted(given.law, given.table / beta)
        if found.kl(given.law) <= picked["drift"]:
            assert float(found.table @ given.table) >= picked["reward"]
            return
    raise AssertionError("no temperature drifts as little")


def test_distillation_takes_fewer_examples(tmp_path: Path) -> None:
    """V = 5, L = 20, diagonal .5: where cross-entropy ends, distillation is after at most .6 of the examples."""
    chains = Chains()
    small = chains.model_copy(
        update={"held_out": 200, "training": chains.training.model_copy(update={"steps": 240, "check_every": 40})}
    )
    with inside(tmp_path):
        rows = examples(small, 0)
    assert shares(rows)[0] <= 0.6
    first, last = ([row["excess"] for row in rows if row["objective"] == "distillation"][i] for i in (0, -1))
    assert -0.05 < last < 1 < first


def test_distillation_has_the_less_noise_the_less_the_others_tell_of_a_token() -> None:
    chains = Chains().model_copy(update={"gradients": 40})
    rows = gradients(chains, 0)
    ratios = [gradient_ratio(rows, diagonal, 0) for diagonal in (0.3, 0.5, 0.8)]
    assert 0 < ratios[0] < 0.1 < ratios[1] < 0.4 < ratios[2] < 1
