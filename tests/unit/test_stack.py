"""Stacked networks: the same numbers as the members alone, and training in which no member hears of another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gtl_lightning.core.forward import level_nelbo_terms, level_sample, nelbo_terms
from gtl_lightning.core.guidance import SequenceRatio, TokenRatio, guided_log_prob_true, guided_log_probs
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.classifier import frozen_log_ratio
from gtl_lightning.modules.fit import fit
from gtl_lightning.modules.lora import add_lora
from gtl_lightning.networks import MaskedDenoiser
from gtl_lightning.networks.block import NO_PAD, BackboneConfig, seeded
from gtl_lightning.papers import gtl
from gtl_lightning.studies.markov import stacked as stacked_losses
from gtl_lightning.studies.markov.folds import FoldData, cut, fold_count, plausible_gamma
from gtl_lightning.studies.markov.local import LocalConfig, LocalSequenceRatio, LocalTokenRatio, Uninformed
from gtl_lightning.studies.markov.stack import Stack
from gtl_lightning.studies.markov.stacked import (
    StackedClassifier,
    StackedDenoiser,
    StackedModule,
    StackedSequenceRatio,
    StackedTokenRatio,
)

V, LENGTH = 3, 6
LOCAL = LocalConfig(vocab_size=V + 1, length=LENGTH, heads=2, width=8, mask_index=V)
BACKBONE = BackboneConfig(V + 1, LENGTH, 8, 1, 2, mask_index=V, pad_index=NO_PAD, cond_dim=0)


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return network.eval()


def rows(*shape: int, masks: bool = True) -> Tensor:
    return torch.randint(V + masks, (*shape, LENGTH), generator=torch.Generator().manual_seed(1))


def make(kind: str, seed: int) -> torch.nn.Module:
    with seeded(seed):
        if kind == "lora":
            with seeded(0):
                shared = MaskedDenoiser(BACKBONE)
            return randomised(add_lora(shared, rank=2, alpha=4.0, seed=seed), seed)
        classes = {"token": LocalTokenRatio, "sequence": LocalSequenceRatio}
        network = classes[kind](LOCAL) if kind in classes else MaskedDenoiser(BACKBONE)
    return randomised(network, seed)


@pytest.mark.parametrize("kind", ["token", "sequence", "denoiser", "lora"])
def test_a_stack_computes_what_its_members_do(kind: str) -> None:
    members = [make(kind, seed) for seed in range(3)]
    stack = Stack(members).eval()
    x, t = rows(3, 5), torch.rand(3, 5, generator=torch.Generator().manual_seed(2))
    together = stack(x, t)
    for index, member in enumerate(members):
        alone = member(x[index], t[index])
        torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(stack.member(index)(x[index], t[index]), alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stack(x[:2], t[:2]), together[:2])
    assert not torch.allclose(together[0], stack(x[[1, 0, 2]], t[[1, 0, 2]])[1])


def test_an_empty_stack_is_refused() -> None:
    with pytest.raises(UserError, match="no networks; give at least one"):
        Stack([])


@pytest.mark.parametrize("kind", [LocalTokenRatio, LocalSequenceRatio])
def test_local_ratios_start_at_zero_and_ignore_what_is_masked(kind: type[torch.nn.Module]) -> None:
    x = rows(20)
    assert not kind(LOCAL)(x, torch.zeros(20)).any()
    network = randomised(kind(LOCAL), 0)
    blank = torch.full((1, LENGTH), V)
    if kind is LocalSequenceRatio:
        assert network(blank, torch.ones(1)).item() == 0  # an empty sum: log r of nothing revealed
        return
    shifted = torch.full((2, LENGTH), V)
    shifted[0, 1], shifted[1, 3] = 2, 2
    g = network(shifted, torch.ones(2))
    torch.testing.assert_close(g[0, 0], g[1, 2])  # position 0 and position 2 each see a 2 right beside them
    assert not torch.allclose(g[0, 0], g[1, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"heads": 0}, "heads = 0"), ({"mask_index": 0}, "the mask must be the last of the ids")],
)
def test_a_bad_local_size_is_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LocalConfig(**{**vars(LOCAL), **options})


def data(target: Tensor, batch: int = 8, check: int = 4) -> FoldData:
    folds = cut(len(target), 4, 2, seed=0)
    source = rows(40, masks=False)
    return FoldData(target, folds, source, source, batch=batch, steps_per_epoch=check, rows_scored=16, seed=0)


def test_folds_are_disjoint_and_held_out_rows_are_never_trained_on() -> None:
    target = torch.arange(20)[:, None].expand(-1, LENGTH)
    folds = data(target)
    held = [set(kept[0] for kept in fold.tolist()) for fold in folds.val["x_0"]]
    assert not held[0] & held[1]
    assert [len(part) for part in held] == [5, 5]
    seen: list[set[int]] = [set(), set(), set()]
    for batch in folds.train_dataloader():
        for member in range(3):
            counts = torch.bincount(batch["x_0"][member, :, 0], minlength=20)
            assert counts.max() - counts[counts > 0].min() <= 1
            seen[member] |= set(batch["x_0"][member, :, 0].tolist())
    assert not seen[0] & held[0] and not seen[1] & held[1]
    assert seen[2] & held[0]


@pytest.mark.parametrize(("n", "folds"), [(20, 5), (100, 3), (1000, 1)])
def test_folds_are_as_many_as_hold_out_enough(n: int, folds: int) -> None:
    assert fold_count(n, 5, 60) == folds


def test_too_few_rows_for_the_folds_are_named() -> None:
    with pytest.raises(UserError, match="n = 3 target sequences cannot be cut into 4 folds; give at least 4"):
        cut(3, 4, 1, seed=0)


def stacked(count: int) -> StackedTokenRatio:
    networks = [make("token", seed) for seed in range(count)]
    return StackedTokenRatio(networks, Uninformed(LOCAL), OptimiserConfig(lr=0.05, warmup_steps=1, final_share=1.0))


def test_gradients_and_clipping_are_each_members_own() -> None:
    """Member 0's gradient is the same whatever member 1 is fed."""
    found = []
    for other in (0, 2):
        module = stacked(2)
        x = torch.stack([rows(6, masks=False), torch.full((6, LENGTH), other)])
        module.loss({"x_0": x, "source": x}, torch.Generator().manual_seed(0)).backward()
        before = [weight.grad[0].clone() for weight in module.network.parameters()]
        module.configure_gradient_clipping(None, 1e-3)
        norm = sum(float(weight.grad[0].square().sum()) for weight in module.network.parameters()) ** 0.5
        assert norm == pytest.approx(1e-3, rel=1e-3)
        found.append(before)
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_more_steps_than_wanted_change_nothing(tmp_path: object) -> None:
    """The learning rate is held, so weights after 8 steps do not depend on how many more were allowed."""
    weights = []
    for steps in (8, 16):
        module, kept = stacked(3), []
        module.on_train_batch_end = lambda *_, m=module, k=kept: k.append(  # type: ignore[method-assign]
            [weight.detach().clone() for weight in m.network.parameters()]
        )
        options = {"steps": steps, "check_every": 4, "patience": 9, "precision": "32-true", "accelerator": "cpu"}
        fit(module, data(rows(20, masks=False)), state_dir=f"{tmp_path}/{steps}", progress=False, **options)
        weights.append(kept[7])
    for first, second in zip(*weights, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["gkl", "bce", "log_mse"])
def test_every_loss_of_a_stack_is_finite_and_moves_every_member(kind: str) -> None:
    members = [make("sequence", seed) for seed in range(2)]
    frozen = Stack([make("sequence", seed + 5) for seed in range(2)])
    with seeded(0):
        denoiser = MaskedDenoiser(BACKBONE)
    module = StackedSequenceRatio(members, denoiser, kind=kind, clean=frozen, timed=frozen, clip=5.0, eta_1=0.1)
    batch = {"x_0": rows(2, 8, masks=False), "source": rows(2, 8, masks=False)}
    terms = module.terms(batch, torch.Generator().manual_seed(0))
    assert terms.shape == (2,) and terms.isfinite().all()
    terms.sum().backward()
    assert all(weight.grad.flatten(1).any(1).all() for weight in [module.network.weights["hidden/weight"]])
    values = module.held_out(batch, torch.Generator().manual_seed(1), [0.0, 1.0])
    assert values.shape == (2, 2, 8)
    plain = StackedDenoiser([denoiser, denoiser])
    same = plain.log_prob_true(*_first_draw(module, batch), [1.0])[0]
    chosen = _first_draw(module, batch)[3]
    torch.testing.assert_close(values[0], -(same * chosen).sum(-1))  # gamma = 0 is the denoiser itself


def _first_draw(module: StackedSequenceRatio, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_t, masked, t, _ = module.noised(batch["x_0"], generator)
    return x_t, t, batch["x_0"], module.chosen(masked, generator)


def test_a_held_out_likelihood_that_is_nan_is_not_chosen_as_the_least() -> None:
    member = make("token", 0)
    member.out.bias.data[0] = torch.nan  # type: ignore[union-attr, index]
    module = StackedTokenRatio([member], Uninformed(LOCAL))
    batch = {"x_0": rows(1, 4, masks=False)}
    with pytest.raises(UserError, match="StackedTokenRatio: a held-out likelihood is NaN"):
        module.held_out(batch, torch.Generator().manual_seed(0), [1.0, 2.0])


def members_of(module: StackedModule) -> list[torch.nn.Module]:
    """Every member by itself, and so without vmap."""
    return [module.network.member(index) for index in range(module.network.count)]


@dataclass
class Rows:
    """One member's rows of one domain under noise, or without."""

    x_0: Tensor
    x_t: Tensor
    masked: Tensor
    count: Tensor

    @property
    def t(self) -> Tensor:
        return self.count / LENGTH

    def nelbo(self, log_p: Tensor, g: Tensor | None = None) -> Tensor:
        """Eq. 1, or 9' of a ratio, in nats per token."""
        log_true = guided_log_prob_true(log_p, torch.zeros_like(log_p) if g is None else g, self.x_0)
        return (nelbo_terms(log_true, self.masked, self.t, LogLinear()) / LENGTH).mean()

    def cross_entropy(self, g: Tensor, target: bool) -> Tensor:
        """Eq. 9, in nats per token."""
        g_true = g.gather(-1, self.x_0[..., None]).squeeze(-1)
        return (gtl.token_bce_loss(g_true, self.masked, torch.full(self.t.shape, target)) / self.count).mean()


def drawn(batch: dict[str, Tensor], generator: torch.Generator, *names: str, least: int = 1) -> list[list[Rows]]:
    """The rows of each member, by domain, drawn in the order of the names."""
    found = [(batch[name], *level_sample(batch[name], V, generator, least)) for name in names]
    return [[Rows(*(part[index] for part in domain)) for domain in found] for index in range(len(batch["x_0"]))]


def domain_loss(network: torch.nn.Module, source: Rows, target: Rows) -> Tensor:
    """Eq. 7c, half of it from each domain."""
    parts = [
        gtl.bce_loss(network(rows.x_t, rows.t), torch.full(rows.t.shape, rows is target)).mean()
        for rows in (source, target)
    ]
    return sum(parts) / 2


@torch.no_grad()
def alone(module: StackedModule, batch: dict[str, Tensor]) -> Tensor:
    """Float[m]: the loss of each member by itself, by the functions of papers and core."""
    random, members = torch.Generator().manual_seed(3), members_of(module)
    if isinstance(module, StackedDenoiser):
        each = zip(members, drawn(batch, random, "x_0"), strict=True)
        return torch.stack([rows.nelbo(network(rows.x_t, rows.t)) for network, (rows,) in each])
    assert module.source_denoiser is not None
    if isinstance(module, StackedTokenRatio):
        found = []
        for network, (target, source) in zip(members, drawn(batch, random, "x_0", "source"), strict=True):
            g = network(target.x_t, target.t)
            eq_9 = target.cross_entropy(g, True) + source.cross_entropy(network(source.x_t, source.t), False)
            log_p = module.source_denoiser.network(target.x_t, target.t)
            found.append(target.nelbo(log_p, g) + module.bce_weight * eq_9 / 2)
        return torch.stack(found)
    if isinstance(module, StackedClassifier):
        each = zip(members, drawn(batch, random, "source", "x_0", least=0), strict=True)
        return torch.stack([domain_loss(network, *domains) for network, domains in each])
    assert isinstance(module, StackedSequenceRatio)
    names = ("x_0", "source", "x_0") if module.kind == "bce" else ("x_0", "source")
    found = []
    for index, (target, source, *again) in enumerate(drawn(batch, random, *names, least=0)):
        network, timed, clean = (
            part.member(index) for part in (module.network, module.timed.network, module.clean.network)
        )
        log_r_t = frozen_log_ratio(timed, target.x_t, target.t, 0.0, module.clip)
        cycle = module.eta_1 * gtl.cycle_loss(network(target.x_t, target.t), log_r_t).mean()
        log_r_star = frozen_log_ratio(clean, source.x_0, torch.zeros(len(source.x_0)), 0.0, module.clip)
        if module.kind == "bce":
            found.append(cycle + domain_loss(network, source, *again))
        else:
            loss = {"gkl": gtl.gkl_loss, "log_mse": gtl.log_mse_loss}[module.kind]
            found.append(cycle + loss(network(source.x_t, source.t), log_r_star).mean())
    return torch.stack(found)


def module_of(kind: str) -> StackedModule:
    with seeded(0):
        source = randomised(MaskedDenoiser(BACKBONE), 0)
    if kind == "denoiser":
        return StackedDenoiser([make("denoiser", seed) for seed in range(3)])
    if kind.startswith("token"):
        return StackedTokenRatio(
            [make("token", seed) for seed in range(3)], source, bce_weight=0.3 if kind == "token-bce" else 0.0
        )
    networks = [make("sequence", seed) for seed in range(3)]
    if kind == "classifier":
        return StackedClassifier(networks, source)
    clean, timed = (Stack([make("sequence", seed + by) for seed in range(3)]).eval() for by in (5, 9))
    return StackedSequenceRatio(networks, source, kind=kind, clean=clean, timed=timed, clip=5.0, eta_1=0.1)


@pytest.mark.parametrize("kind", ["denoiser", "token", "token-bce", "classifier", "gkl", "bce", "log_mse"])
def test_a_stacks_losses_are_those_of_the_papers_member_by_member(kind: str) -> None:
    module = module_of(kind).eval()
    batch = {"x_0": rows(3, 8, masks=False), "source": rows(3, 8, masks=False).flip(1)}
    together = module.terms(batch, torch.Generator().manual_seed(3)).detach()
    torch.testing.assert_close(together, alone(module, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["token", "classifier"])
@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
def test_a_stack_is_scored_as_the_sampler_guides(kind: str, gamma: float) -> None:
    """The held-out value of every member from core's own wrappers, `TokenRatio` and `SequenceRatio`, of that member."""
    module = module_of(kind).eval()
    batch = {"x_0": rows(3, 8, masks=False)}
    values = module.held_out(batch, torch.Generator().manual_seed(1), [gamma])[0]
    generator = torch.Generator().manual_seed(1)
    x_t, masked, t, _ = module.noised(batch["x_0"], generator)
    chosen = module.chosen(masked, generator)
    assert module.source_denoiser is not None
    for index, network in enumerate(members_of(module)):
        ratio = TokenRatio(network) if kind == "token" else SequenceRatio(network)
        row, position = chosen[index].nonzero(as_tuple=True)
        tokens = torch.arange(V).expand(len(row), -1)
        with torch.no_grad():
            log_p = module.source_denoiser.network(x_t[index], t[index])[row, position]
            log_r = ratio.log_ratio(x_t[index], t[index], t[index] - 1 / LENGTH, row, position, tokens)
            law = guided_log_probs(log_p, torch.nn.functional.pad(log_r, (0, 1)), gamma)
        true = law.gather(-1, batch["x_0"][index][row, position, None]).squeeze(-1)
        mean = torch.zeros(8).index_add(0, row, -true) / chosen[index].sum(-1)
        torch.testing.assert_close(values[index], mean, rtol=1e-6, atol=1e-6)


def test_no_loss_is_written_in_the_study() -> None:
    """What losses are made of is called in papers and core alone; the study calls those."""
    source = Path(stacked_losses.__file__).read_text()
    for part in (
        "log_softmax",
        "logsumexp",
        "binary_cross",
        ".exp(",
        ".log(",
        "sigmoid",
        ".clamp(-",
        "/ count",
        "tilt(",
    ):
        assert part not in source, part
    for name in ("bce_loss", "cycle_loss", "gkl_loss", "log_mse_loss", "token_bce_loss"):
        assert getattr(stacked_losses, name) is getattr(gtl, name)


def test_the_level_nelbo_is_eq_1_at_the_time_of_the_level() -> None:
    """Given k masks, eq. 1 at t = k / l under alpha = 1 - t, per token; under any other weight it would be another."""
    generator = torch.Generator().manual_seed(0)
    x_t, masked, count = level_sample(rows(2, 9, masks=False), V, generator)
    log_true = -torch.rand(x_t.shape, generator=generator, dtype=torch.float64)
    per_token = nelbo_terms(
        log_true.flatten(0, 1), masked.flatten(0, 1), count.flatten().double() / LENGTH, LogLinear()
    )
    torch.testing.assert_close(level_nelbo_terms(log_true, masked, count).flatten(), per_token / LENGTH)
    assert level_nelbo_terms(log_true.fill_(-1.0), masked, count).eq(1).all()  # a mean over what is masked


def level_scores(gains: dict[float, float], spread: float) -> tuple[list[float], Tensor]:
    """Held-out scores of 2 folds of 20 sequences at each gamma: its gain over gamma = 1, and how sequences differ."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(2, 20, generator=generator)
    noise = torch.randn(2, 20, generator=generator)
    noise = spread * (noise - noise.mean()) / noise.std()
    return list(gains), torch.stack([common - gain + (gamma != 1) * noise for gamma, gain in gains.items()])


@pytest.mark.parametrize("gain", [-1e-5, 1e-5, 0.005])
def test_a_gamma_that_validation_cannot_tell_from_one_is_one(gain: float) -> None:
    """The standard error of the difference is .04 / sqrt(40) = .0063: last digits decide nothing."""
    gammas, scores = level_scores({0.85: gain, 1.0: 0.0, 1.15: -0.02}, spread=0.04)
    assert gammas[plausible_gamma(gammas, scores)] == 1.0


def test_a_gamma_that_validation_tells_from_one_is_chosen() -> None:
    gammas, scores = level_scores({0.85: -0.05, 1.0: 0.0, 1.15: 0.03, 1.3: 0.06, 1.5: 0.057}, spread=0.04)
    assert gammas[plausible_gamma(gammas, scores)] == 1.3  # 1.5 is level with it, 1 and 1.15 are not
    assert plausible_gamma([0.7, 1.3], torch.tensor([[[1.0]], [[0.9]]])) == 1  # one sequence says no error: the least


def test_repeats_of_a_sequence_count_as_one() -> None:
    folds = data(rows(20, masks=False))
    assert folds.val["x_0"].shape[:2] == (2, 15)
    of_rows = folds.val["x_0"].float().mean(-1)
    torch.testing.assert_close(folds.by_sequence(of_rows), of_rows[:, :5])
    noisy = torch.cat([torch.full((2, 5), value) for value in (0.0, 1.0, 5.0)], dim=1)
    torch.testing.assert_close(folds.by_sequence(noisy), torch.full((2, 5), 2.0))
