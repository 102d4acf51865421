"""Stacked networks: the same numbers as the members alone, and training in which no member hears of another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.fit import fit
from gtl_lightning.modules.lora import add_lora
from gtl_lightning.networks import MaskedDenoiser
from gtl_lightning.networks.block import NO_PAD, BackboneConfig, seeded
from gtl_lightning.studies.markov.folds import FoldData, cut, fold_count
from gtl_lightning.studies.markov.local import LocalConfig, LocalSequenceRatio, LocalTokenRatio, Uninformed
from gtl_lightning.studies.markov.stack import Stack
from gtl_lightning.studies.markov.stacked import StackedDenoiser, StackedSequenceRatio, StackedTokenRatio

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
