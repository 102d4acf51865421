"""The NELBO of what is no law: the value of the law that the sampler would draw from, or one line; never a gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gtl_lightning.core.guidance import Guidance, SequenceRatio, TokenRatio
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.calibration import expected_calibration_error
from gtl_lightning.evaluation.energy import energy_distance
from gtl_lightning.evaluation.likelihood import nelbo, nelbo_by_gamma, select_gamma
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.evaluation.mauve import mauve_score
from gtl_lightning.evaluation.memorisation import nearest_cosines
from gtl_lightning.evaluation.reference import reference_likelihood
from gtl_lightning.laws.chains import paper_chain
from gtl_lightning.laws.enumerated import any_order_kl, exact_nelbo, model_law
from tests.unit.test_evaluation_likelihood import MASK, MASKING, PAD, SEQUENCE, STATES, TOKEN, P, V, denoiser_of
from tests.unit.test_sampler_inputs import constant, small

NAN, INF = math.nan, math.inf
EXACT = denoiser_of(P)
NOTHING = TokenRatio(lambda x, t: torch.zeros(*x.shape, V + 2))
Net = Callable[[Tensor, Tensor], Any]


def with_mask_mass(x_t: Tensor, t: Tensor) -> Tensor:
    """Four fifths of the mass on the mask."""
    p = 0.2 * EXACT(x_t, t).exp()
    p[..., MASK] = 0.8
    return p.log()


SAME: dict[str, Net] = {
    "logits": lambda x, t: EXACT(x, t) + 3,
    "logits of each position": lambda x, t: EXACT(x, t) + torch.arange(x.shape[1])[:, None] - 2.0 * t[:, None, None],
    "mass on the mask": with_mask_mass,
    "a model output": lambda x, t: SimpleNamespace(logits=EXACT(x, t)),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize(
    "guidance", [None, Guidance(TOKEN), Guidance(SEQUENCE, 0.7, n_ratio=2)], ids=["unguided", "token", "sequence"]
)
def test_the_nelbo_is_that_of_the_law(name: str, guidance: Guidance | None) -> None:
    masking = MASKING(draws=2, seed=3, positions=2)
    wanted, found = (nelbo(denoiser, STATES, masking, guidance) for denoiser in (EXACT, SAME[name]))
    torch.testing.assert_close(found.per_sequence, wanted.per_sequence, rtol=1e-9, atol=1e-9)


def test_logits_gain_nothing_by_guidance_that_says_nothing() -> None:
    """1.70 nats a token, guided and not, where logits + 3 had -1.30."""
    p = math.exp(-1.7)
    law = torch.tensor([p, (1 - p) / 2, (1 - p) / 2, 0.0, 0.0]).log()
    rows = torch.zeros(6, 4, dtype=torch.long)
    for shift in (0.0, 3.0, -40.0):
        denoiser = constant(*(law + shift).tolist())
        curve = nelbo_by_gamma(denoiser, rows, MASKING(draws=2), Guidance(NOTHING), (0.0, 1.0, 2.0))
        for value in (nelbo(denoiser, rows, MASKING(draws=2)), *curve.values()):
            assert value.nats_per_token == pytest.approx(1.7, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_normalised_in_single(dtype: torch.dtype) -> None:
    """Three equal logits of half precision, beside mask and padding, cost log 3, not the nearest such number to it."""
    denoiser = constant(5.0, 5.0, 5.0, 9.0, 5.0, dtype=dtype)
    value = nelbo(denoiser, torch.zeros(5, 3, dtype=torch.long), MASKING(draws=1))
    assert value.nats_per_token == pytest.approx(math.log(3), abs=1e-6)
    ratio = TokenRatio(constant(1.0, 0.0, 0.0, 0.0, 0.0, dtype=dtype))
    guided = nelbo(denoiser, torch.zeros(5, 3, dtype=torch.long), MASKING(draws=1), Guidance(ratio, 1.1))
    assert guided.nats_per_token == pytest.approx(math.log1p(2 * math.exp(-1.1)), abs=1e-6)


BAD: dict[str, tuple[Net, Guidance | None, str]] = {
    "NaN": (constant(*[NAN] * 5), None, r"the denoiser \(<lambda>\) gave NaN or infinity.* at draw 1, sequence 0"),
    "+inf": (constant(INF, 0.0, 0.0, 0.0, 0.0), None, "the denoiser"),
    "all on the mask": (constant(-INF, -INF, -INF, 0.0, -INF), None, "no probability to any token but the mask"),
    "token ratio NaN": (EXACT, Guidance(TokenRatio(constant(NAN, 0.0, 0.0, 0.0, 0.0))), "the ratio"),
    "sequence ratio NaN": (EXACT, Guidance(SequenceRatio(lambda x, t: torch.full((len(x),), NAN))), "the ratio"),
    "sequence ratio +inf": (
        EXACT,
        Guidance(SequenceRatio(lambda x, t: torch.full((len(x),), INF)), 1.0, 2),
        "the ratio",
    ),
    "gamma NaN": (EXACT, Guidance(TOKEN, lambda share: NAN), "gamma must be"),
    "tuple": (lambda x, t: (x,), None, "the denoiser .* gave a tuple"),
    "shape": (lambda x, t: torch.zeros(len(x), 5), None, r"let it return one tensor of shape \[27, 3, v\]"),
    "token ratio, vocabulary": (EXACT, Guidance(TokenRatio(constant(0.0, 0.0))), "knows 2 tokens, the denoiser 5"),
    "sequence ratio, column": (
        EXACT,
        Guidance(SequenceRatio(lambda x, t: torch.zeros(len(x), 1))),
        r"let it return one tensor of shape \[27\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_law_is_refused(name: str) -> None:
    denoiser, guidance, line = BAD[name]
    with pytest.raises(UserError, match=line) as caught:
        nelbo(denoiser, STATES, MASKING(draws=1), guidance)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("denoiser", [EXACT, small()])
@pytest.mark.parametrize("token", [9, -2])
def test_a_text_outside_the_vocabulary_is_refused(denoiser: Net, token: int) -> None:
    masking = Masking(mask_index=MASK if denoiser is EXACT else 7, pad_index=PAD)
    with pytest.raises(UserError, match=rf"the text to evaluate holds token {token}; ids must lie in 0..[48]"):
        nelbo(denoiser, torch.tensor([[0, token, 1]]), masking)


def test_gamma_is_not_selected_by_nan() -> None:
    """NaN at one strength alone was passed over, and the others compared."""
    ratio = TokenRatio(lambda x, t: torch.where((x == MASK).all(-1), NAN, 0.0)[:, None, None].expand(*x.shape, V + 2))
    with pytest.raises(UserError, match="the ratio"):
        select_gamma(EXACT, STATES, MASKING(draws=1), Guidance(ratio), (0.0, 1.0))
    with pytest.raises(UserError, match="gammas holds 1e"):
        select_gamma(EXACT, STATES, MASKING(draws=1), Guidance(TOKEN), (0.0, 1e39))


def test_a_damaged_checkpoint_has_no_nelbo() -> None:
    network = small().requires_grad_(False)
    network.backbone.blocks[0].up.weight[0, 0] = NAN
    with pytest.raises(UserError, match=r"the denoiser \(MaskedDenoiser\) gave NaN"):
        nelbo(network, torch.ones(3, 4, dtype=torch.long), Masking(mask_index=7, pad_index=8))


def test_dropout_is_off_for_the_likelihood_and_the_mode_is_as_before() -> None:
    network, rows = small(dropout=0.5), torch.arange(24).view(6, 4) % 7
    values = [nelbo(network.train(mode), rows, Masking(mask_index=7, pad_index=8)) for mode in (False, True)]
    assert torch.equal(values[0].per_sequence, values[1].per_sequence)
    assert all(module.training for module in network.modules())


def test_a_denoiser_that_breaks_its_promise_is_refused() -> None:
    class Promises:
        normalised = True

        def __init__(self, shift: float, law: Net) -> None:
            self.shift, self.law = shift, law

        def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
            return self.law(x_t, t) + self.shift

    kept, again = (nelbo(f, STATES, MASKING(draws=1)).per_sequence for f in (Promises(0.0, EXACT), EXACT))
    torch.testing.assert_close(kept, again, rtol=1e-12, atol=1e-12)
    for broken in (Promises(3.0, EXACT), Promises(0.0, with_mask_mass)):
        with pytest.raises(UserError, match=r"the denoiser \(Promises\) has normalised = True, but"):
            nelbo(broken, STATES, MASKING(draws=1))


def causal(x: Tensor) -> Tensor:
    return torch.tensor([0.5, 0.25, 0.25, 0.0, 0.0]).log().expand(*x.shape, -1)


def test_reference_models_are_read_alike() -> None:
    rows = torch.tensor([[0, 1, 2]])
    for model in (causal, lambda x: causal(x) + 7, lambda x: SimpleNamespace(logits=causal(x) - 1)):
        value = reference_likelihood(model, rows, pad_index=PAD)
        assert value.per_sequence.item() == pytest.approx(math.log(2) + 2 * math.log(4), abs=1e-5)
    with pytest.raises(UserError, match="the text to evaluate holds token 9; ids must lie in 0..4"):
        reference_likelihood(causal, torch.tensor([[0, 9]]), pad_index=PAD)
    with pytest.raises(UserError, match="the reference model .* gave NaN"):
        reference_likelihood(lambda x: causal(x) * NAN, rows, pad_index=PAD)
    with pytest.raises(UserError, match="the reference model .* gave a tuple"):
        reference_likelihood(lambda x: (causal(x),), rows, pad_index=PAD)


def test_exact_figures_of_a_model_read_its_law() -> None:
    """NELBO over all masks, the model's own law and its KL bound: of logits, of half precision, of mass on the mask."""
    chain = paper_chain(0.4, 3)

    def shifted(x_t: Tensor, t: Tensor) -> Tensor:
        return (chain(x_t) + 2.5).nan_to_num(neginf=-1e4).index_fill(-1, torch.tensor(3), 4.0)

    x_0 = torch.tensor([[0, 1, 2], [2, 2, 1]])
    torch.testing.assert_close(exact_nelbo(shifted, x_0, 3), -chain.log_prob(x_0))
    assert model_law(shifted, 3, 3).kl(model_law(chain, 3, 3)) == pytest.approx(0.0, abs=1e-9)
    generator = torch.Generator().manual_seed(0)
    assert any_order_kl(chain, shifted, n=60, length=3, generator=generator)[0] == pytest.approx(0.0, abs=1e-6)
    for figure in (
        lambda f: exact_nelbo(f, x_0, 3),
        lambda f: model_law(f, 3, 3),
        lambda f: any_order_kl(chain, f, n=60, length=3, generator=generator),
    ):
        with pytest.raises(UserError, match="the denoiser"):
            figure(lambda x, t: chain(x) * NAN)


def test_metrics_refuse_what_is_not_finite() -> None:
    features = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    broken = features.copy()
    broken[3, 1] = np.nan
    for metric in (energy_distance, mauve_score, nearest_cosines):
        for pair in ((features, broken), (broken, features)):
            with pytest.raises(UserError, match="not finite"):
                metric(*pair)
    labels = np.arange(30) % 2 == 0
    with pytest.raises(UserError, match=r"probabilities reach from .* give sigmoid\(logit\)"):
        expected_calibration_error(features[:, 0], labels)
    with pytest.raises(UserError, match="not finite"):
        expected_calibration_error(broken[:, 1], labels)
