"""What guidance is held against: averages of weights and of predictions, and a pull to the source, at their limits."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from gtl_lightning.core.guidance import guided_log_probs
from gtl_lightning.methods.finetune_averaged import AveragedFinetune
from gtl_lightning.methods.fitting import Spent, Trained, averaged
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.fit import FitResult
from gtl_lightning.modules.pulled import PulledModule
from gtl_lightning.networks import DifferenceTokenRatio, MaskedDenoiser, seeded
from gtl_lightning.networks.averages import between
from gtl_lightning.networks.block import BackboneConfig

CONFIG = BackboneConfig(vocab_size=12, length=6, width=16, depth=1, heads=2, mask_index=11, pad_index=0)


def network(seed: int = 0) -> MaskedDenoiser:
    with seeded(seed):
        return MaskedDenoiser(CONFIG)


def batch() -> dict[str, torch.Tensor]:
    return {"x_0": torch.randint(1, 11, (32, 6), generator=torch.Generator().manual_seed(1))}


def steps(module: DenoiserModule, count: int = 5) -> DenoiserModule:
    """A few steps of plain AdamW, the same noise for every module."""
    optimiser = torch.optim.AdamW(module.network.parameters(), lr=1e-2)
    for step in range(count):
        optimiser.zero_grad()
        module.loss(batch(), torch.Generator().manual_seed(step)).backward()
        optimiser.step()
    return module


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def test_an_average_is_the_source_at_0_and_the_fine_tuned_at_1() -> None:
    """To the bit, and on the line between them in between; the two that are averaged stay as they were."""
    source, tuned = network(0), network(1)
    before = weights(source).clone(), weights(tuned).clone()
    for alpha, end in ((0.0, source), (1.0, tuned)):
        found = between(source, tuned, alpha)
        assert all(torch.equal(value, end.state_dict()[name]) for name, value in found.state_dict().items())
    half = weights(between(source, tuned, 0.25))
    torch.testing.assert_close(half, 0.75 * before[0] + 0.25 * before[1])
    assert torch.equal(weights(source), before[0]) and torch.equal(weights(tuned), before[1])


def test_a_pull_of_0_is_fine_tuning_to_the_bit() -> None:
    source = network()
    plain = steps(DenoiserModule(source.trainable_copy()))
    pulled = steps(PulledModule(source.trainable_copy(), start=source, pull=0.0))
    assert torch.equal(weights(plain.network), weights(pulled.network))
    assert not torch.equal(weights(plain.network), weights(source))


def test_the_penalty_is_the_squared_distance() -> None:
    """Half of it times the strength, from the weights of the start; its score is the NELBO alone."""
    source, other = network(0), network(1)
    plain, pulled = DenoiserModule(other), PulledModule(other, start=source, pull=0.3)
    generator = torch.Generator
    extra = pulled.loss(batch(), generator().manual_seed(0)) - plain.loss(batch(), generator().manual_seed(0))
    torch.testing.assert_close(extra, 0.15 * (weights(other) - weights(source)).square().sum(), rtol=1e-4, atol=0.0)
    scores = [module.held_out_loss(batch(), generator().manual_seed(0))[0] for module in (plain, pulled)]
    assert torch.equal(*scores)
    assert all(weight.grad is None for weight in source.parameters())


def test_the_stronger_the_pull_the_nearer_the_source() -> None:
    source = network()
    found = [steps(PulledModule(source.trainable_copy(), start=source, pull=pull), 20) for pull in (0.0, 0.3, 30.0)]
    distances = [float((weights(module.network) - weights(source)).norm()) for module in found]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.5 * distances[0]


def test_two_fine_tuned_denoisers_guide_to_their_geometric_mean() -> None:
    """At gamma 1, normalised; at 0 the source; one alone is that one."""
    source, members = network(0), [network(1), network(2)]

    def ratio(tuned: MaskedDenoiser) -> DifferenceTokenRatio:
        difference = DifferenceTokenRatio(source)
        difference.shifted = tuned
        return difference

    x_t, t = torch.full((2, 6), 11), torch.ones(2)
    with torch.no_grad():
        log_p, own = source(x_t, t), [member(x_t, t) for member in members]
        both = averaged([ratio(member) for member in members])(x_t, t)
        alone = ratio(members[0])(x_t, t)
    mean = torch.log_softmax((own[0] + own[1]) / 2, -1)
    clean = slice(1, 11)
    torch.testing.assert_close(guided_log_probs(log_p, both)[..., clean], mean[..., clean])
    torch.testing.assert_close(guided_log_probs(log_p, both, 0.0)[..., clean], log_p[..., clean])
    torch.testing.assert_close(guided_log_probs(log_p, alone)[..., clean], own[0][..., clean])


class Data:
    """Held-out batches."""

    def val_dataloader(self) -> list[dict[str, torch.Tensor]]:
        return [batch()]


def trained(module: DenoiserModule) -> Trained:
    result = FitResult(best_score=9.0, best_step=1, steps=1, seconds=2.0, history=[], compute_seconds=1.0, peak_bytes=7)
    data: Any = Data()
    return Trained.once(module, data, result, 1e-3, "", "network", "network")


def test_the_held_out_score_chooses_among_networks_of_a_trained_one() -> None:
    """The lowest of all scores, each as the module itself gives it, of equal ones the first; scoring them costs."""
    source = network(0)
    module = steps(DenoiserModule(source.trainable_copy()), 30)
    tuned = module.network
    choices = {f"alpha-{alpha}": between(source, tuned, alpha) for alpha in (1.0, 0.5, 0.0)}

    def made(network: torch.nn.Module) -> dict[str, Any]:
        assert network is tuned
        begun = time.process_time()
        while time.process_time() < begun + 0.5:
            pass
        return choices

    best = trained(module).chosen(made)
    scores = {name: DenoiserModule(each).score([batch()]) for name, each in choices.items()}
    assert best.tried == {"network": 9.0, **scores} and len(set(scores.values())) == 3
    assert best.result.best_score == min(scores.values())
    assert best.network is choices[min(scores, key=lambda name: scores[name])]
    assert best.spent.compute_seconds > 1.5 and best.spent.peak_bytes == 7
    twice = trained(module).chosen(lambda network: {"a": tuned, "b": tuned})
    assert list(twice.tried) == ["network", "a", "b"] and twice.network is tuned


def test_costs_of_fits_add_up_and_of_peaks_the_highest_counts() -> None:
    assert Spent(1.0, 2.0, 5) + Spent(3.0, 4.0, 3) == Spent(4.0, 6.0, 5)
    assert Spent(1.0) + Spent(1.0, 0.5, None) == Spent(2.0, 0.5, None)
    assert (Spent(1.0, 0.0, None) + Spent(0.0, 0.0, 2)).peak_bytes == 2


def test_what_is_kept_are_the_trained_weights() -> None:
    module = DenoiserModule(network())
    count = sum(weight.numel() for weight in module.network.parameters())
    assert (trained(module).parameters, trained(module).kept_bytes) == (count, 4 * count)
    module.network.backbone.requires_grad_(False)
    module.network.output.weight.requires_grad_(False)
    assert trained(module).kept_bytes == 4 * CONFIG.vocab_size, "of the rest the bias trains"


def test_alphas_are_shares_and_stand_once() -> None:
    for values in ((1.5,), (-0.1,), (0.5, 0.5), ()):
        with pytest.raises(ValueError, match=r"alphas"):
            AveragedFinetune(alphas=values)
