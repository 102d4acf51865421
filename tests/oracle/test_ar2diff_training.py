"""Continuing a decoder as a denoiser: what is noised and read at each step, and that it beats starting from nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gtl_lightning.core.forward import uniform_sample
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.laws.chains import MarkovChain, stationary
from gtl_lightning.laws.enumerated import any_order_kl
from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.continuation import (
    ContinuationModule,
    by_draw,
    counted,
    masked,
    sundae,
)
from gtl_lightning.modules.denoiser import DenoiserModule, noised_uniformly
from gtl_lightning.modules.fit import fit
from gtl_lightning.networks import BackboneConfig, CausalLM, MaskedDenoiser, UniformDenoiser, seeded
from gtl_lightning.networks.block import NO_PAD
from gtl_lightning.papers.ar2diff import (
    at,
    causal_mask,
    full_mask,
    likeliest,
    prefix_mask,
    random_prefix,
    sundae_loss,
    targets,
    unrolled,
)
from tests.oracle.enumeration import total_variation_bound
from tests.oracle.looking import shaken

MASK, PAD, L = 0, 1, 6
CONFIG = BackboneConfig(vocab_size=8, length=L, width=16, depth=2, heads=2, mask_index=MASK, pad_index=PAD)


def seed(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def denoiser(cls: type[MaskedDenoiser] = MaskedDenoiser, shift: bool = True) -> MaskedDenoiser:
    with seeded(1):
        return cls.from_causal(shaken(CausalLM(CONFIG)), shift=shift).eval()


def batch(n: int = 16, prefix: bool = False) -> dict[str, Tensor]:
    x_0 = torch.randint(2, 8, (n, L), generator=seed(2))
    x_0[: n // 2, 4:] = PAD
    return {"x_0": x_0} | ({"prefix": torch.arange(n) % 4} if prefix else {})


def test_to_count_the_masks_gives_the_bound_of_the_masked_loss_with_less_noise() -> None:
    network, x_0 = denoiser(), batch()["x_0"]
    target = targets(x_0, PAD, torch.arange(len(x_0)) % 4)
    values = {}
    for objective in (masked, counted):
        with torch.no_grad():
            found = [objective(network, x_0, target, None, LogLinear(), seed(draw)) for draw in range(400)]
        assert {int(count) for _, count in found} == {int(target.sum())}
        values[objective] = torch.stack([total for total, _ in found]) / target.sum()
    one, other = values[masked], values[counted]
    error = ((one.var() + other.var()) / len(one)).sqrt()
    assert abs(one.mean() - other.mean()) < 4 * error < 0.1 * one.mean()
    assert other.std() < 0.3 * one.std()
    row = x_0[:1]
    alone = counted(network, row, targets(row, PAD, torch.tensor([4])), None, LogLinear(), seed(0))
    assert [float(value) for value in alone] == [0, 0]  # nothing is left to learn


class Watched(ContinuationModule):
    """Keeps what the objective was given."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.given: list[tuple[Tensor, Tensor | None]] = []
        inner = self.objective

        def objective(network: Any, x_0: Tensor, target: Tensor, attention: Any, schedule: Any, g: Any) -> Any:
            self.given.append((target, attention))
            return inner(network, x_0, target, attention, schedule, g)

        self.objective = objective


def test_with_everything_a_target_it_is_the_denoisers_training_to_the_bit() -> None:
    slopes = []
    for kind in (DenoiserModule, ContinuationModule):
        network = denoiser()
        module = kind(network)
        loss = module.loss(batch(), seed(3))
        loss.backward()
        slopes.append([loss, *(weight.grad for weight in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


def test_what_is_given_stays_clean_and_is_not_learned() -> None:
    """The loss of a uniform denoiser is the log of its alphabet for each target; a prefix is seen as it is."""
    network, seen = denoiser(), []
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias.zero_()
    network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rows, totals = batch(400, prefix=True), []
    target = targets(rows["x_0"], PAD, rows["prefix"])
    assert not target[rows["x_0"] == PAD].any() and target.any() and not target[1::4, 0].any()
    module = ContinuationModule(network)
    for index in range(60):
        total, count = module.held_out_loss(rows, seed(index))
        assert count == target.sum()
        totals.append(float((total / count).detach()))
    assert sum(totals) / 60 == pytest.approx(math.log(6), rel=0.02)
    for x_t in seen:
        assert torch.equal(x_t[~target], rows["x_0"][~target])
        assert (x_t[target] == MASK).any()
    uniform = ContinuationModule(denoiser(UniformDenoiser), sundae)
    uniform.network.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    seen.clear()
    uniform.held_out_loss(rows, seed(0))
    assert len(seen) == 2
    for x_t in seen:
        assert torch.equal(x_t[~target], rows["x_0"][~target]) and (x_t[target] != rows["x_0"][target]).any()
        assert not ((x_t == MASK) | (x_t == PAD))[target].any()


@pytest.mark.parametrize("shift", [True, False])
def test_the_sundae_objective_is_the_papers_loss(shift: bool) -> None:
    """Hidden states at the targets, the vocabulary in parts, and whole tables of log-probabilities give one value."""
    network, rows = denoiser(UniformDenoiser, shift), batch(prefix=True)
    x_0, target = rows["x_0"], targets(rows["x_0"], PAD, rows["prefix"])
    attention = causal_mask(network.backbone.reads(L))
    total, count = sundae(network, x_0, target, attention, LogLinear(), seed(5))
    generator = seed(5)
    t = torch.rand(1, generator=generator)
    t = ((t + torch.arange(16) / 16) % 1)[torch.randperm(16, generator=generator)]
    x_t = noised_uniformly(network, x_0, t, target, LogLinear(), generator)

    def read(x: Tensor) -> Tensor:
        return network(x, t, attention)

    terms = unrolled(read, at, likeliest, x_0, x_t, target)
    torch.testing.assert_close((total, count), sundae_loss(terms, target))
    assert not torch.allclose(terms[:, 0], terms[:, 1])
    drawn, _ = sundae(network, x_0, target, attention, LogLinear(), seed(5), again=by_draw)
    assert drawn != total
    assert ContinuationModule(network, partial(sundae, again=by_draw)).loss(rows, seed(1)).isfinite()


def test_noise_is_uniform_over_the_tokens_wherever_mask_and_padding_stand() -> None:
    """With the special ids last it is core's own noise, draw by draw."""
    x_0 = torch.randint(2, 8, (20_000, 2), generator=seed(0))
    target = torch.tensor([[True, False]]).expand_as(x_0)
    t = torch.full((len(x_0),), 0.6)
    x_t = noised_uniformly(denoiser(), x_0, t, target, LogLinear(), seed(1))
    assert torch.equal(x_t[:, 1], x_0[:, 1])
    law = torch.full((6, 6), 0.6 / 6, dtype=torch.float64) + 0.4 * torch.eye(6, dtype=torch.float64)
    found = torch.bincount((x_0[:, 0] - 2) * 6 + x_t[:, 0] - 2, minlength=36).double() / len(x_0)
    starts = torch.bincount(x_0[:, 0] - 2, minlength=6).double() / len(x_0)
    expected = (starts[:, None] * law).flatten()
    assert 0.5 * (found - expected).abs().sum() < total_variation_bound(expected, len(x_0))
    last = replace(CONFIG, mask_index=6, pad_index=7)
    with seeded(0):
        network = UniformDenoiser(last)
    everything = torch.ones_like(target)
    x_t = noised_uniformly(network, x_0 - 2, t, everything, LogLinear(), seed(1))
    assert torch.equal(x_t, uniform_sample(x_0 - 2, t, LogLinear(), 6, seed(1)))


@pytest.mark.parametrize("shift", [True, False])
def test_a_prefix_may_be_kept_from_reading_the_rest(shift: bool) -> None:
    rows = batch(prefix=True)
    network = denoiser(shift=shift)
    module = Watched(network, visible=prefix_mask)
    module.held_out_loss(rows, seed(0))
    ContinuationModule.held_out_loss(module, batch(), seed(0))
    n = L + shift
    assert torch.equal(module.given[0][1], prefix_mask(full_mask(n), rows["prefix"] + shift))
    assert module.given[1][1] is None
    open_to_all = Watched(network)
    open_to_all.loss(rows, seed(0))
    assert open_to_all.given[0][1] is None


def test_a_prefix_model_learns_the_targets_alone_and_reads_the_prefix_from_both_sides() -> None:
    """Of a batch's own prefixes, or of drawn ones; without any it is the plain model to the bit."""
    with seeded(1):
        causal = shaken(CausalLM(CONFIG)).eval()
    rows = batch(prefix=True)
    x_0, target = rows["x_0"], targets(rows["x_0"], PAD, rows["prefix"])
    total, count = CausalLMModule(causal).held_out_loss(rows, seed(0))
    assert count == target.sum()
    mask = prefix_mask(causal_mask(L), rows["prefix"] + 1)
    torch.testing.assert_close(total, -causal.log_prob(x_0, attention=mask)[target].sum())
    plain, everything = CausalLMModule(causal).held_out_loss(batch(), seed(0))
    assert torch.equal(plain, -causal.log_prob(x_0).sum()) and everything == (x_0 != PAD).sum()
    assert not torch.allclose(total, -causal.log_prob(x_0)[target].sum())
    drawn = CausalLMModule(causal, prefix=random_prefix)
    lengths = (x_0 != PAD).sum(-1)
    own = {"x_0": x_0, "prefix": random_prefix(lengths, seed(3))}
    assert own["prefix"].unique().numel() > 2
    assert all(map(torch.equal, drawn.held_out_loss(batch(), seed(3)), drawn.held_out_loss(own, seed(0))))


V, LENGTH = 24, 8
TRANSITION = torch.softmax(3 * torch.randn(V, V, generator=seed(0), dtype=torch.float64), -1)
CHAIN = MarkovChain(stationary(TRANSITION), TRANSITION)
SIZE = BackboneConfig(V + 1, LENGTH, 32, 2, 2, mask_index=V, pad_index=NO_PAD, cond_dim=0)


class Chains(pl.LightningDataModule):
    def __init__(self, steps: int, start: int) -> None:
        super().__init__()
        self.steps, self.start = steps, start

    def train_dataloader(self) -> Any:
        generator = seed(self.start + self.trainer.current_epoch)
        rows = [{"x_0": CHAIN.sample(64, LENGTH, generator)} for _ in range(self.steps)]
        return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader([{"x_0": CHAIN.sample(200, LENGTH, seed(9))}], batch_size=None)  # type: ignore[arg-type]


def trained(module: TrainedModule, steps: int, folder: Path, start: int = 1000, checks: int = 1) -> Any:
    each = steps // checks
    fit(
        module, Chains(each, start), steps=steps, check_every=each, patience=9, state_dir=folder,
        precision="32-true", accelerator="cpu", progress=False,
    )  # fmt: skip
    return module.network.eval()


def test_attention_is_let_in_step_by_step(tmp_path: Path) -> None:
    """By the number of the step, over the checks; then, and in every score, all is read, and no mask is made."""
    with seeded(0):
        network = MaskedDenoiser.from_causal(CausalLM(replace(SIZE, width=8, depth=1)))
    module = Watched(network, anneal_steps=10, optimiser=OptimiserConfig(warmup_steps=1), draws=1)
    trained(module, 14, tmp_path, checks=2)
    attention = [mask for _, mask in module.given]
    assert len(attention) == 14 + 2
    assert [mask is None for mask in attention] == [False] * 7 + [True] + [False] * 2 + [True] * 6
    upper = ~causal_mask(LENGTH + 1)
    shares = [float(mask[upper].double().mean()) for mask in attention if mask is not None]
    for step, share in enumerate(shares):
        p = (step + 1) / 10
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / int(upper.sum()))
    with pytest.raises(UserError, match="negative"):
        ContinuationModule(network, anneal_steps=-1)


def gap(network: Any) -> float:
    """Nats per token above the entropy, by the exact conditionals."""
    with torch.no_grad():
        value, _ = any_order_kl(CHAIN, network, n=1000, length=LENGTH, generator=seed(0))
    return value / LENGTH


def test_steps_from_an_autoregressive_model_beat_as_many_from_nothing(tmp_path: Path) -> None:
    """Of a chain with something to learn, for few steps; from nothing both with the shift and without."""
    with seeded(0):
        causal = CausalLM(SIZE)
    optimiser = OptimiserConfig(lr=5e-3, warmup_steps=10)
    trained(CausalLMModule(causal, optimiser), 200, tmp_path / "ar", 0)
    for steps in (20, 80):
        gaps = {}
        for name in ("continued", "plain", "shifted"):
            with seeded(5):
                network = MaskedDenoiser(replace(SIZE, shift=name == "shifted"))
            if name == "continued":
                network = MaskedDenoiser.from_causal(causal)
            module = ContinuationModule(network, masked, optimiser=optimiser, draws=1)
            gaps[name] = gap(trained(module, steps, tmp_path / f"{name}-{steps}"))
        assert gaps["continued"] < min(gaps["plain"], gaps["shifted"]) - 0.05, (steps, gaps)
