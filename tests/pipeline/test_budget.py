"""Budgets: operations that are the same, limits, and equal cost that is equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtl_lightning.fields import Training
from gtl_lightning.methods import METHODS
from gtl_lightning.stages.budget import Budget, at_equal_cost, budgets, equal_steps
from gtl_lightning.workspace.params import Params
from tests.pipeline.conftest import Gtl, inside
from tests.pipeline.test_methods import everything


def params() -> Params:
    """Every method, two learning rates for one of them."""
    return everything("methods.finetune.train.also_lr=[0.001]", "methods.tcsm-reward.samples=5000")


@pytest.fixture(scope="module")
def found(tokenised: Path) -> dict[str, Budget]:
    with inside(tokenised):
        return {budget.method: budget for budget in budgets(params(), 1.0)}


def test_every_method_is_counted_without_a_trained_network(found: dict[str, Budget], tokenised: Path) -> None:
    assert set(found) == set(METHODS)
    assert all(budget.per_step > 0 for budget in found.values())
    assert not (tokenised / "models").exists()


def test_what_does_the_same_counts_the_same(found: dict[str, Budget]) -> None:
    """A pull is no matrix product, and an average and a second member are fine-tunings; two variants are two steps."""
    one = found["finetune"].per_step
    assert found["finetune-averaged"].per_step == found["finetune-two"].per_step == found["vanilla"].per_step == one
    assert found["finetune-pulled"].per_step == 2 * one, "two strengths of the pull"
    assert found["lora"].per_step > one / 2
    assert found["gtl-warm"].per_step > one, "a copy, and the frozen denoiser forward"
    assert found["gtl-head"].per_step < found["gtl-warm"].per_step


def test_rates_and_members_are_fits(found: dict[str, Budget]) -> None:
    assert found["finetune"].fits == 2, "two rates"
    assert found["finetune-two"].fits == found["gtl-warm"].fits == 2, "two members"
    assert found["lora"].fits == 1


def test_a_budget_is_kept_to_a_check(found: dict[str, Budget]) -> None:
    """As many whole checks as fit, at fine-tuning's own cost its own steps; never none."""
    whole = found["finetune"].spent
    assert found["finetune"].equal == found["finetune"].steps
    for budget in found.values():
        check, cost = 3, budget.per_step * budget.fits
        assert budget.equal % check == 0
        assert budget.equal * cost <= whole * (1 + 1e-9) < (budget.equal + check) * cost or budget.equal == check
    training = Training(steps=100, check_every=25, warmup=10)
    assert equal_steps(1000.0, 1.0, training) == 1000
    assert equal_steps(1000.0, 10.1, training) == 75
    assert equal_steps(0.1, 1.0, training) == 25


def test_a_tenth_of_the_cost_is_a_tenth_of_the_steps(found: dict[str, Budget], tokenised: Path) -> None:
    with inside(tokenised):
        (tenth,) = (
            one
            for one in budgets(
                everything(
                    "sweep.baselines=[]",
                    "sweep.with_classifier=[]",
                    "sweep.ratios=[gtl]",
                    "sweep.tuned_ratios=[]",
                    "methods.finetune.train.steps=600",
                ),
                0.1,
            )
            if one.method == "finetune"
        )
    assert (tenth.steps, tenth.equal) == (600, 60)


def test_the_steps_are_written_and_a_warm_up_is_cut_with_them(found: dict[str, Budget]) -> None:
    short = [Budget("gtl", 1.0, 1, 6, 3), Budget("finetune", 1.0, 1, 6, 6)]
    before = everything("methods.gtl.train.warmup=5")
    after = at_equal_cost(before, short)
    assert (after.methods.of("gtl").train.steps, after.methods.of("gtl").train.warmup) == (3, 3)
    assert after.methods.of("finetune") == before.methods.of("finetune")
    assert at_equal_cost(after, short) == after


def test_the_command_says_and_writes(gtl: Gtl, tokenised: Path) -> None:
    before = (tokenised / "params.yaml").read_text()
    try:
        written = gtl("budget", "--share", "2", "--write", cwd=tokenised)
        assert written.returncode == 0, written.stderr
        assert written.stdout.splitlines()[0].split()[0] == "METHOD" and "gtl-warm" in written.stdout
        assert "methods.finetune.train.steps: 6 -> 12" in written.stdout
        assert (tokenised / "params.yaml").read_text() != before
    finally:
        (tokenised / "params.yaml").write_text(before)
