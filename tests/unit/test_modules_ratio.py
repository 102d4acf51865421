"""Classifier and ratio modules: their minimisers on problems whose ratio is known, identities, bad input."""

import math
from dataclasses import replace

import pytest
import torch

from gtl_lightning.errors import UserError
from gtl_lightning.modules.classifier import ClassifierModule
from gtl_lightning.modules.conditional_ratio import ConditionalRatioModule
from gtl_lightning.modules.denoiser import DenoiserModule, noised
from gtl_lightning.modules.ratio import SequenceRatioModule, TokenRatioModule
from gtl_lightning.networks import (
    BackboneConfig,
    FeatureTokenRatio,
    MaskedDenoiser,
    SequenceRatioNetwork,
    TokenRatioNetwork,
    seeded,
)
from gtl_lightning.papers.gtl import martingale_penalty

MASK, PAD = 3, 4
CONFIG = BackboneConfig(5, 6, 8, 1, 2, mask_index=MASK, pad_index=PAD, cond_dim=0)
P, Q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.1, 0.3, 0.6])
"""Laws of the only token of a sequence in the source and in the target."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_token(batch=400):
    """Sequences of one token in exact proportion, half source, half target."""
    tokens = [torch.arange(3).repeat_interleave((law * batch).round().long()) for law in (P, Q)]
    is_target = torch.arange(2 * batch) >= batch
    return {"x_0": torch.cat(tokens)[:, None], "is_target": is_target}


def sequences(seed=0):
    x_0 = torch.randint(0, 3, (12, 6), generator=generator(seed))
    x_0[::3, 4:] = PAD
    return {"x_0": x_0, "is_target": torch.arange(12) % 2 == 0}


def source_denoiser():
    """Exact for sequences of one token: its output is log P."""
    with seeded(0):
        network = MaskedDenoiser(CONFIG)
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias[:3] = P.log()
    return network


def shaken(network, seed=1, scale=0.3):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator(seed)))
    return network.eval()


def token_network():
    with seeded(0):
        return TokenRatioNetwork(CONFIG)


def sequence_network():
    with seeded(0):
        return SequenceRatioNetwork(CONFIG)


class Exact(torch.nn.Module):
    """The logit that a perfect classifier of one-token sequences has, clean or masked (ratio 1)."""

    def __init__(self, smoothing=0.0):
        super().__init__()
        d = Q / (P + Q) * (1 - 2 * smoothing) + smoothing
        self.table = torch.cat([torch.logit(d), torch.zeros(2)])

    def forward(self, x_t, t):
        return self.table[x_t[:, 0]]


def trained(module, batch, steps=250, lr=0.02):
    optimiser = torch.optim.Adam(module.parameters(), lr=lr)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * (1 - step / steps)  # the noise averages out
        optimiser.zero_grad()
        module.loss(batch, generator(step)).backward()
        optimiser.step()
    return module.network.eval()


TOKENS = torch.tensor([[0], [1], [2], [MASK]])
HALF = torch.full((4,), 0.5)


# ---- sequence level


@pytest.mark.parametrize("loss", ["gkl", "bce"])
def test_consistent_losses_find_the_log_ratio(loss):
    module = SequenceRatioModule(sequence_network(), Exact(), loss=loss, eta_1=0.0)
    f = trained(module, one_token())(TOKENS, HALF)
    torch.testing.assert_close(f[:3], (Q / P).log(), atol=0.1, rtol=0)
    assert abs(float(f[3])) < 0.05  # nothing is revealed: ratio 1


def test_log_mse_falls_short_by_jensens_gap():
    """Where all is masked the published loss finds E_p[log r*], not log E_p[r*] = 0."""
    module = SequenceRatioModule(sequence_network(), Exact(), loss="log_mse", eta_1=0.0)
    f = trained(module, one_token())(TOKENS, HALF)
    torch.testing.assert_close(f[:3], (Q / P).log(), atol=0.1, rtol=0)
    assert float(f[3]) == pytest.approx(float((P * (Q / P).log()).sum()), abs=0.1)


def test_cycle_loss_alone_copies_the_noised_classifier():
    class Nothing(SequenceRatioModule):
        def _ratio_terms(self, f, x_0, is_target):
            return torch.zeros(1)

    module = Nothing(sequence_network(), None, Exact(), loss="bce", eta_1=1.0)
    f = trained(module, one_token())(TOKENS, HALF)
    torch.testing.assert_close(f, Exact()(TOKENS, HALF), atol=0.1, rtol=0)


def test_smoothing_of_the_clean_classifier_is_undone():
    values = []
    for smoothing in (0.0, 0.1):
        module = SequenceRatioModule(
            shaken(sequence_network()), Exact(smoothing), Exact(), loss="gkl", smoothing=smoothing
        )
        values.append(module.loss(one_token(), generator()).item())
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    raw = SequenceRatioModule(shaken(sequence_network()), Exact(0.1), Exact(), loss="gkl")
    assert raw.loss(one_token(), generator()).item() != pytest.approx(values[0], rel=1e-3)


def test_frozen_classifiers_are_neither_trained_nor_kept():
    module = SequenceRatioModule(sequence_network(), sequence_network(), sequence_network())
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"network"}
    assert {name.split(".")[0] for name in module.state_dict()} == {"network"}
    assert len(module.frozen()) == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"loss": "mse"}, "ratio loss 'mse' is unknown; choose one of gkl, bce, log_mse"),
        ({"loss": "gkl", "eta_1": 0.0}, "needs a classifier of clean text"),
        ({"loss": "bce"}, "eta_1 = 0.1 needs a classifier of noised text"),
    ],
)
def test_impossible_sequence_losses_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        SequenceRatioModule(sequence_network(), **arguments)


# ---- classifiers


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clean_classifier_finds_the_smoothed_posterior(smoothing):
    module = ClassifierModule(sequence_network(), smoothing=smoothing)
    logit = trained(module, one_token())(TOKENS, HALF)
    torch.testing.assert_close(logit[:3], Exact(smoothing)(TOKENS, HALF)[:3], atol=0.1, rtol=0)
    assert module.draws == 1


def test_noised_classifier_sees_masks():
    """Its loss at zero is log 2; trained, it also knows that a mask says nothing."""
    module = ClassifierModule(sequence_network(), noised=True)
    total, count = module.held_out_loss(one_token(), generator())
    assert float(total / count) == pytest.approx(math.log(2), rel=1e-5)
    logit = trained(module, one_token())(TOKENS, HALF)
    torch.testing.assert_close(logit, Exact()(TOKENS, HALF), atol=0.1, rtol=0)


# ---- token level


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize("kind", ["own", "features"])
def test_token_losses_find_the_log_ratio(weights, kind):
    """Eq. 9 finds log q/p itself; eq. 9' the guided law, hence log q/p up to a constant."""
    denoiser = source_denoiser()
    with seeded(0):
        network = token_network() if kind == "own" else FeatureTokenRatio(denoiser, rank=2)
    module = TokenRatioModule(network, denoiser, bce_weight=weights[0], nll_weight=weights[1])
    g = trained(module, one_token(), lr=0.04)(torch.tensor([[MASK]]), torch.ones(1))[0, 0, :3]
    torch.testing.assert_close((P.log() + g).softmax(-1), Q, atol=0.02, rtol=0)
    if weights[0]:
        torch.testing.assert_close(g, (Q / P).log(), atol=0.1, rtol=0)


def test_unguided_score_is_the_denoisers_nelbo():
    batch, denoiser = sequences(), shaken(source_denoiser())
    guided = TokenRatioModule(token_network(), denoiser).held_out_loss(batch, generator(2))
    target = {"x_0": batch["x_0"][batch["is_target"]]}
    plain = DenoiserModule(denoiser).held_out_loss(target, generator(2))
    torch.testing.assert_close(guided, plain)
    torch.testing.assert_close(TokenRatioModule(token_network(), denoiser).held_out_loss(target, generator(2)), plain)


def test_bce_of_no_ratio_is_log_2_a_token():
    module = TokenRatioModule(token_network(), source_denoiser(), bce_weight=1.0, nll_weight=0.0)
    assert module.loss(sequences(), generator()).item() == pytest.approx(math.log(2), rel=1e-5)


def test_nll_term_is_the_guided_nelbo_of_target_examples():
    batch, denoiser = sequences(), shaken(source_denoiser())
    module = TokenRatioModule(shaken(token_network()), denoiser, bce_weight=0.0, nll_weight=2.0)
    total, count = module.held_out_loss(batch, generator(4))
    torch.testing.assert_close(module.loss(batch, generator(4)), 2 * total / count)


@pytest.mark.parametrize("kind", ["own", "features"])
def test_martingale_term_is_the_penalty_of_the_whole_output(kind):
    denoiser = shaken(source_denoiser(), scale=1.0)
    own = replace(CONFIG, width=4)
    network = shaken(token_network() if kind == "own" else FeatureTokenRatio(denoiser, 2, own), scale=1.0)
    module = TokenRatioModule(network, denoiser, bce_weight=0.0, nll_weight=0.0, martingale_weight=1.0)
    x_0 = sequences()["x_0"]
    x_t, t, masked = noised(x_0, CONFIG, module.schedule, generator(5))
    expected = martingale_penalty(denoiser(x_t, t), network(x_t, t), masked).mean()
    assert expected > 1e-3
    value = module.loss({"x_0": x_0}, generator(5))
    torch.testing.assert_close(value, expected)


def test_terms_add_up():
    batch, denoiser = sequences(), shaken(source_denoiser())
    weights = {"bce_weight": 0.7, "nll_weight": 1.3, "martingale_weight": 0.2}

    def loss(**chosen):
        zero = dict.fromkeys(weights, 0.0)
        module = TokenRatioModule(shaken(token_network()), denoiser, **{**zero, **chosen})
        # Eq. 9 at a negligible weight keeps both domains in the batch, hence the same noise for all.
        module.bce_weight = module.bce_weight or 1e-12
        return module.loss(batch, generator(6)).item()

    parts = sum(loss(**{name: weight}) for name, weight in weights.items())
    assert loss(**weights) == pytest.approx(parts, rel=1e-5)


def test_batch_without_target_examples_has_a_loss_and_no_score():
    batch = {"x_0": sequences()["x_0"], "is_target": torch.zeros(12, dtype=torch.bool)}
    module = TokenRatioModule(shaken(token_network()), source_denoiser(), bce_weight=0.0, nll_weight=1.0)
    assert module.held_out_loss(batch, generator())[1] == 0
    full = TokenRatioModule(shaken(token_network()), source_denoiser())
    full.loss(batch, generator()).backward()
    assert full.network.project.weight.grad.isfinite().all()


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 1.0)])
def test_impossible_token_weights_are_refused(weights):
    with pytest.raises(UserError, match="none may be negative and one must be positive"):
        TokenRatioModule(token_network(), source_denoiser(), bce_weight=weights[0], nll_weight=weights[1])


def test_a_token_loss_of_ones_own_is_a_function_and_an_argument() -> None:
    """Least squares (LSIF), whose minimiser is log q/p as well: nothing else had to be told of it."""

    def least_squares(g, log_p, true_ids):
        r = g.exp()
        return (log_p.exp() * r**2).sum(-1) / 2 - r.gather(-1, true_ids[..., None]).squeeze(-1)

    denoiser = source_denoiser()
    module = ConditionalRatioModule(token_network(), denoiser, terms=least_squares)
    target = {"x_0": one_token()["x_0"][400:]}
    optimiser = torch.optim.Adam(module.network.parameters(), 0.02)
    for step in range(150):
        optimiser.zero_grad()
        module.loss(target, generator(step)).backward()
        optimiser.step()
    masked, now = torch.full((1, 1), 3), torch.ones(1)
    with torch.no_grad():
        g = module.network(masked, now)[0, 0, :3]
        wanted = Q.log() - denoiser(masked, now)[0, 0, :3]
    torch.testing.assert_close(g, wanted.float(), rtol=0, atol=0.1)
