"""The denoiser's loss, LoRA, the planner and the reference model."""

import math
from dataclasses import replace

import pytest
import torch

from gtl_lightning.core.forward import nelbo_terms
from gtl_lightning.core.schedule import Cosine, LogLinear
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.denoiser import DenoiserModule, noised, spread
from gtl_lightning.modules.lora import add_lora, merge_lora
from gtl_lightning.modules.planner import PlannerModule
from gtl_lightning.networks import (
    BackboneConfig,
    CausalLM,
    MaskedDenoiser,
    PositionNetwork,
    load_network,
    save_network,
    seeded,
)

MASK, PAD = 4, 5
CONFIG = BackboneConfig(6, 6, 8, 1, 2, mask_index=MASK, pad_index=PAD, cond_dim=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sequences(batch=32, seed=0):
    x_0 = torch.randint(0, 4, (batch, 6), generator=generator(seed))
    x_0[: batch // 2, 4:] = PAD
    return x_0


def denoiser(seed=0, **change):
    with seeded(seed):
        network = MaskedDenoiser(replace(CONFIG, **change))
        for parameter in network.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    return network


def uniform():
    network = denoiser()
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias.zero_()
    return network


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
def test_nelbo_of_the_uniform_denoiser_is_the_log_of_its_alphabet(schedule):
    """Eq. 1 is exact in expectation: log 4 nats a token, whatever the schedule and the padding."""
    module = DenoiserModule(uniform(), schedule=schedule)
    with torch.no_grad():
        totals = [module.held_out_loss({"x_0": sequences(256)}, generator(seed)) for seed in range(200)]
    nelbo = sum(float(total) / float(count) for total, count in totals) / len(totals)
    assert nelbo == pytest.approx(math.log(4), rel=0.02)
    assert int(totals[0][1]) == 128 * 6 + 128 * 4


def test_loss_at_masked_positions_only_is_the_loss_of_the_whole_output():
    network = denoiser()
    module, x_0 = DenoiserModule(network), sequences()
    x_t, t, masked = noised(x_0, CONFIG, module.schedule, generator(3))
    log_p_true = network(x_t, t).gather(-1, x_0.clamp(max=MASK)[..., None]).squeeze(-1)
    expected = nelbo_terms(log_p_true, masked, t, module.schedule).sum() / (x_0 != PAD).sum()
    torch.testing.assert_close(module.loss({"x_0": x_0}, generator(3)), expected)


def test_noise_spares_pads_and_does_not_follow_the_order_of_the_batch():
    x_0 = sequences()
    x_t, t, masked = noised(x_0, CONFIG, LogLinear(), generator(1))
    assert torch.equal(x_t == PAD, x_0 == PAD)
    assert torch.equal(masked, x_t == MASK)
    assert torch.equal(x_t[~masked], x_0[~masked])
    strata = ((t - 1e-3) / (1 - 1e-3) * 32).floor().long()
    assert strata.sort().values.unique().numel() >= 31  # one t in every stratum, up to the rotation's seam
    assert not (t.diff() > 0).sum() >= 28


def test_spread_puts_values_where_they_came_from():
    masked = torch.tensor([[True, False], [True, True]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    full = spread(values, masked)
    assert torch.equal(full, torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
    full.sum().backward()
    assert torch.equal(values.grad, torch.ones(3))


def test_noise_is_a_function_of_the_seed_and_the_step():
    module, batch = DenoiserModule(denoiser()), {"x_0": sequences()}
    losses = [module.loss(batch, module.generator(seed, step, 0)).item() for seed in (0, 1) for step in (0, 1)]
    assert len(set(losses)) == 4
    assert losses[3] == module.loss(batch, module.generator(1, 1, 0)).item()


def test_validation_noise_does_not_depend_on_the_training_seed():
    module, values = DenoiserModule(denoiser(), draws=3), []
    for seed in (0, 5):
        module.seed = seed
        module.on_validation_epoch_start()
        module.validation_step({"x_0": sequences()}, 0)
        values.append(module._total.tolist())
    assert values[0] == values[1]
    assert values[0][1] == 3 * 160


def test_weight_decay_spares_vectors():
    module = DenoiserModule(denoiser(), OptimiserConfig(weight_decay=0.3))
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert {parameter.ndim > 1: group["weight_decay"] for group in groups for parameter in group["params"]} == {
        True: 0.3,
        False: 0.0,
    }


# ---- LoRA


def test_lora_starts_as_the_denoiser_and_trains_only_its_updates():
    network = denoiser()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapted = add_lora(network, rank=2, alpha=4.0)
    x_t, t = noised(sequences(), CONFIG, LogLinear(), generator())[:2]
    adapted.eval()
    torch.testing.assert_close(adapted(x_t, t), network(x_t, t))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 8 and all("lora_" in name for name in trained)
    optimiser = DenoiserModule(adapted).configure_optimizers()["optimizer"]
    assert sum(p.numel() for group in optimiser.param_groups for p in group["params"]) == 2 * (32 + 16 + 40 + 40)
    DenoiserModule(adapted).loss({"x_0": sequences()}, generator()).backward()
    optimiser.step()
    assert not torch.allclose(adapted(x_t, t), network(x_t, t))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_merged_lora_is_a_plain_denoiser_that_computes_the_same(tmp_path):
    network = denoiser()
    adapted = add_lora(network, rank=2, alpha=4.0, dropout=0.1).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=generator(2))
    x_t, t = noised(sequences(), CONFIG, LogLinear(), generator())[:2]
    merged = merge_lora(adapted)
    torch.testing.assert_close(merged(x_t, t), adapted(x_t, t), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(merged(x_t, t), network(x_t, t))
    assert merged.state_dict().keys() == network.state_dict().keys()
    assert any("lora_" in name for name in adapted.state_dict())
    save_network(tmp_path / "n", merged)
    assert torch.equal(load_network(tmp_path / "n", MaskedDenoiser)(x_t, t), merged(x_t, t))


def test_lora_repeats_with_its_seed():
    states = [add_lora(denoiser(), rank=2, alpha=4.0, seed=seed).state_dict() for seed in (1, 1, 2)]
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


# ---- planner and reference model


def test_planner_learns_where_the_denoiser_is_right():
    """A denoiser that always says 0, on data whose first half is 0 and whose second half is 1."""
    always_zero = uniform()
    with torch.no_grad():
        always_zero.output.bias[0] = 5.0
    x_0 = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(32, 6)
    with seeded(0):
        module = PlannerModule(PositionNetwork(CONFIG), always_zero)
    total, count = module.held_out_loss({"x_0": x_0}, generator())
    assert float(total / count) == pytest.approx(math.log(2), rel=1e-5)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
    for step in range(150):
        optimiser.zero_grad()
        module.loss({"x_0": x_0}, generator(step)).backward()
        optimiser.step()
    rho = module.network(torch.full((1, 6), MASK))[0]
    assert (rho[:3] > 1).all() and (rho[3:] < -1).all()
    assert not any("denoiser" in name for name, _ in module.named_parameters())


def test_causal_model_is_scored_per_token():
    with seeded(0):
        network = CausalLM(CONFIG)
    with torch.no_grad():
        network.output.weight.zero_()
    total, count = CausalLMModule(network).held_out_loss({"x_0": sequences()}, generator())
    assert int(count) == 160
    assert float(total) == pytest.approx(160 * math.log(4), rel=1e-5)
