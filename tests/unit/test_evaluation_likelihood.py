"""The NELBO against exact laws: a table p and a table q over all sequences of length 3 from 3 tokens."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from gtl_lightning.core.forward import absorbing_sample, nelbo_terms
from gtl_lightning.core.guidance import Guidance, SequenceRatio, TokenRatio
from gtl_lightning.core.protocols import Look
from gtl_lightning.core.schedule import Cosine, LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.likelihood import Likelihood, compare, nelbo, nelbo_by_gamma, select_gamma
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.evaluation.reference import reference_likelihood, reference_perplexity

V, L, MASK, PAD = 3, 3, 3, 4
STATES = torch.tensor(list(itertools.product(range(V), repeat=L)))
MASKING = partial(Masking, mask_index=MASK, pad_index=PAD)


def table(seed: int) -> Tensor:
    return torch.softmax(1.5 * torch.randn(len(STATES), generator=torch.Generator().manual_seed(seed)).double(), 0)


P, Q = table(1), table(2)


def marginal(law: Tensor, x: Tensor) -> Tensor:
    """Probability of the unmasked part of each row of x."""
    fits = ((x[:, None] == STATES) | (x[:, None] == MASK)).all(-1)
    return fits.double() @ law


def after_reveal(law: Tensor, x: Tensor) -> Tensor:
    """Float[b,l,V+2]: probability of x with position l set to v; the last two ids are impossible."""
    result = torch.zeros(*x.shape, V + 2, dtype=torch.float64)
    for position, v in itertools.product(range(x.shape[1]), range(V)):
        y = x.clone()
        y[:, position] = v
        result[:, position, v] = marginal(law, y)
    return result


def denoiser_of(law: Tensor):
    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        return (after_reveal(law, x_t) / marginal(law, x_t)[:, None, None]).log()

    return denoiser


def token_log_ratio(x_t: Tensor, t: Tensor) -> Tensor:
    return (after_reveal(Q, x_t) / after_reveal(P, x_t)).log().nan_to_num(0.0)


def sequence_log_ratio(x_t: Tensor, t: Tensor) -> Tensor:
    possible = (x_t < V) | (x_t == MASK)
    return (marginal(Q, x_t) / marginal(P, x_t)).log().where(possible.all(-1), torch.tensor(0.0).double())


TOKEN, SEQUENCE = TokenRatio(token_log_ratio), SequenceRatio(sequence_log_ratio)


def test_exact_posterior_gives_the_exact_log_likelihood_of_every_sequence() -> None:
    copies = 150
    value = nelbo(denoiser_of(P), STATES.repeat(copies, 1), MASKING(draws=3, seed=3, batch=900))
    by_state = value.per_sequence.view(copies, len(STATES))
    error = by_state.std(0) / math.sqrt(copies)
    assert ((by_state.mean(0) + P.log()).abs() < 4.5 * error + 1e-9).all()
    entropy = -(P * P.log()).sum()
    assert abs((by_state.mean(0) * P).sum() - entropy) < 4 * ((error * P) ** 2).sum().sqrt()


def test_standard_error_covers_the_entropy_rate_of_sampled_sequences() -> None:
    rate = float(-(P * P.log()).sum()) / L
    scores = []
    for seed in range(12):
        rows = torch.multinomial(P, 300, replacement=True, generator=torch.Generator().manual_seed(seed))
        value = nelbo(denoiser_of(P), STATES[rows], MASKING(draws=2, seed=seed, batch=300))
        scores.append((value.nats_per_token - rate) / value.standard_error)
    assert max(map(abs, scores)) < 4
    assert 0.4 < torch.tensor(scores).std() < 1.8


def test_it_is_eq_1_with_less_noise_than_drawing_times() -> None:
    rows = STATES.repeat(4, 1)
    denoiser, schedule = denoiser_of(P), LogLinear()
    ours = [nelbo(denoiser, rows, MASKING(draws=1, seed=seed, batch=500)).nats_per_token for seed in range(40)]
    plain = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        t = torch.rand(len(rows), generator=generator).clamp(min=1e-4)
        x_t = absorbing_sample(rows, t, schedule, MASK, generator)
        log_prob = denoiser(x_t, t).gather(-1, rows[..., None]).squeeze(-1)
        plain.append(float(nelbo_terms(log_prob, x_t == MASK, t, schedule).sum()) / rows.numel())
    ours_t, plain_t = torch.tensor(ours), torch.tensor(plain)
    error = (ours_t.var() / 40 + plain_t.var() / 40).sqrt()
    assert (ours_t.mean() - plain_t.mean()).abs() < 4 * error
    assert ours_t.std() < 0.6 * plain_t.std()


@pytest.mark.parametrize("ratio", [TOKEN, SEQUENCE], ids=["token", "sequence"])
def test_exact_ratio_gives_the_targets_own_likelihood_under_the_same_noise(ratio: TokenRatio | SequenceRatio) -> None:
    masking = MASKING(draws=2, seed=5, positions=L)
    guided = nelbo(denoiser_of(P), STATES, guidance=Guidance(ratio, chunk=7), masking=masking)
    target = nelbo(denoiser_of(Q), STATES, masking)
    assert torch.allclose(guided.per_sequence, target.per_sequence, atol=1e-5)


def test_guided_likelihood_is_the_cross_entropy_of_the_target_from_few_positions() -> None:
    copies = 60
    value = nelbo(
        denoiser_of(P),
        STATES.repeat(copies, 1),
        guidance=Guidance(SEQUENCE),
        masking=MASKING(positions=1, draws=2, batch=400),
    )
    by_state = value.per_sequence.view(copies, len(STATES))
    error = by_state.std(0) / math.sqrt(copies)
    assert ((by_state.mean(0) + Q.log()).abs() < 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("ratio", [TOKEN, SEQUENCE], ids=["token", "sequence"])
@pytest.mark.parametrize("n_ratio", [1, 2, None])
def test_gamma_0_is_the_unguided_value_to_the_last_bit(ratio: TokenRatio | SequenceRatio, n_ratio: int | None) -> None:
    masking = MASKING(draws=2, seed=1, positions=1)
    unguided = nelbo(denoiser_of(P), STATES, masking)
    guided = nelbo(denoiser_of(P), STATES, guidance=Guidance(ratio, 0.0, n_ratio), masking=masking)
    assert torch.equal(guided.per_sequence, unguided.per_sequence)


@pytest.mark.parametrize("n_ratio", [1, 2, None])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_pruned_guided_model_is_normalised(n_ratio: int | None, gamma: float) -> None:
    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0]).log().expand(*x_t.shape, -1)

    def ratio(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tensor([0.3, -1.0, 2.0, 0.1, 0.0])[x_t[:, 0]]

    every_token = torch.arange(V)[:, None]  # one position: the NELBO is the exact code length
    value = nelbo(
        denoiser, every_token, guidance=Guidance(SequenceRatio(ratio), gamma, n_ratio), masking=MASKING(draws=1)
    )
    assert torch.exp(-value.per_sequence).sum() == pytest.approx(1.0, abs=1e-5)
    if n_ratio is None:
        weights = torch.tensor([0.5, 0.3, 0.2]) * torch.exp(gamma * torch.tensor([0.3, -1.0, 2.0]))
        assert torch.allclose(torch.exp(-value.per_sequence).float(), weights / weights.sum(), atol=1e-5)


def test_all_gammas_of_one_pass_are_those_of_single_passes() -> None:
    masking = MASKING(draws=2, seed=4, positions=1)
    for ratio in (TOKEN, SEQUENCE):
        curve = nelbo_by_gamma(
            denoiser_of(P), STATES, guidance=Guidance(ratio, n_ratio=2), gammas=(0.0, 0.7, 2), masking=masking
        )
        for gamma, value in curve.items():
            single = nelbo(denoiser_of(P), STATES, guidance=Guidance(ratio, gamma, n_ratio=2), masking=masking)
            assert torch.equal(single.per_sequence, value.per_sequence)


def test_gamma_schedule_follows_the_revealed_share() -> None:
    masking = MASKING(draws=3, seed=4, positions=2)
    for ratio in (TOKEN, SEQUENCE):
        constant = nelbo(denoiser_of(P), STATES, guidance=Guidance(ratio, 0.7), masking=masking)
        scheduled = nelbo(denoiser_of(P), STATES, guidance=Guidance(ratio, lambda share: 0.7), masking=masking)
        falling = nelbo(
            denoiser_of(P), STATES, guidance=Guidance(ratio, lambda share: 0.7 * (1 - share / 2)), masking=masking
        )
        by_gamma = nelbo_by_gamma(
            denoiser_of(P), STATES, guidance=Guidance(ratio), gammas=[0.7], gamma_end=0.5, masking=masking
        )
        assert torch.equal(by_gamma[0.7].per_sequence, falling.per_sequence)
        assert torch.allclose(constant.per_sequence, scheduled.per_sequence, atol=1e-6)
        seen: list[float] = []
        record = seen.append
        nelbo(
            denoiser_of(P),
            STATES,
            guidance=Guidance(ratio, lambda share, record=record: record(share) or share),
            masking=masking,
        )
        assert {round(share * L) for share in seen} == {0, 1, 2}


def test_select_gamma_finds_1_for_the_exact_ratio() -> None:
    rows = STATES.repeat_interleave((Q * 1500).round().long(), 0)
    choice = select_gamma(
        denoiser_of(P), rows, guidance=Guidance(TOKEN), gammas=(2.0, 0.0, 1.0, 0.5), masking=MASKING(draws=1, batch=800)
    )
    assert choice.gamma == 1.0
    assert [row["gamma"] for row in choice.rows()] == [0.0, 0.5, 1.0, 2.0]
    assert min(choice.rows(), key=lambda row: row["nelbo"])["gamma"] == 1.0


def test_ragged_lengths_weights_and_padding_are_exact_for_independent_tokens() -> None:
    log_p = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0]).log()
    rows = [torch.full((length,), token) for length in (1, 4, 17) for token in range(V)]
    value = nelbo(lambda x_t, t: log_p.expand(*x_t.shape, -1), rows, MASKING(draws=2, batch=4))
    expected = torch.tensor([-len(row) * float(log_p[row[0]]) for row in rows]).double()
    assert torch.allclose(value.per_sequence, expected, rtol=1e-6)
    assert value.tokens == sum(len(row) for row in rows)
    assert value.perplexity == pytest.approx(math.exp(expected.sum() / value.tokens))


def test_batch_size_and_form_of_the_tokens_change_nothing() -> None:
    denoiser = denoiser_of(P)
    whole = nelbo(denoiser, STATES, MASKING(draws=2, batch=100))
    assert torch.allclose(nelbo(denoiser, list(STATES), MASKING(draws=2, batch=1)).per_sequence, whole.per_sequence)
    padded = torch.cat([STATES, torch.full((len(STATES), 2), PAD)], 1)
    assert torch.allclose(nelbo(denoiser, padded, MASKING(draws=2)).per_sequence, whole.per_sequence)
    other = nelbo(denoiser, STATES, MASKING(draws=2, seed=1))
    assert not torch.allclose(other.per_sequence, whole.per_sequence)


def test_time_agrees_with_the_masked_share_under_every_schedule() -> None:
    for schedule in (LogLinear(), Cosine()):
        seen: list[tuple[float, float]] = []

        def denoiser(x_t: Tensor, t: Tensor, seen: list[tuple[float, float]] = seen) -> Tensor:
            seen.extend(zip(t.tolist(), (x_t == MASK).double().mean(1).tolist(), strict=True))
            return torch.zeros(*x_t.shape, V + 2)

        nelbo(denoiser, [torch.zeros(200, dtype=torch.long)] * 64, masking=MASKING(schedule=schedule, draws=2))
        t, share = torch.tensor(seen).T
        assert ((1 - schedule.alpha(t)) - share).abs().max() < 0.15
        assert share.min() < 0.02
        assert share.max() > 0.98


class CountingDenoiser:
    """An Encoder: hidden states are token ids; counts passes and the rows that meet the vocabulary."""

    def __init__(self) -> None:
        self.passes = self.rows = 0

    def encode(self, x_t: Tensor, t: Tensor, look: Look, features: Tensor | None) -> Tensor:
        self.passes += 1
        return look.of(x_t[..., None].float())

    def decode(self, h: Tensor) -> Tensor:
        self.rows += h[..., 0].numel()
        return torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0]).log().expand(*h.shape[:-1], -1)


class ReadingRatio:
    """A token ratio that reads a denoiser's hidden states."""

    def __init__(self, denoiser: CountingDenoiser) -> None:
        self.denoiser = denoiser

    def encode(self, x_t: Tensor, t: Tensor, look: Look, features: Tensor | None) -> Tensor:
        return self.denoiser.encode(x_t, t, look, None) if features is None else features

    def decode(self, h: Tensor) -> Tensor:
        return torch.zeros(*h.shape[:-1], V + 2)


def test_networks_run_once_a_batch_for_all_gammas_and_share_hidden_states() -> None:
    denoiser = CountingDenoiser()
    guidance = Guidance(TokenRatio(ReadingRatio(denoiser)))
    curve = nelbo_by_gamma(
        denoiser, STATES, guidance=guidance, gammas=(0.5, 1.0, 2.0), masking=MASKING(draws=2, batch=100)
    )
    assert denoiser.passes == 2
    assert denoiser.rows < 2 * STATES.numel()
    unguided = nelbo(denoiser, STATES, MASKING(draws=2, batch=100))
    assert torch.allclose(curve[2.0].per_sequence, unguided.per_sequence)


def test_impossible_token_is_infinite_not_nan() -> None:
    log_p = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0]).log()
    value = nelbo(
        lambda x_t, t: log_p.expand(*x_t.shape, -1),
        [torch.tensor([2])],
        guidance=Guidance(TOKEN),
        masking=MASKING(draws=1),
    )
    assert value.nats_per_token == math.inf
    assert value.perplexity == math.inf


def test_paired_comparison_is_surer_than_either_value() -> None:
    masking = MASKING(draws=2, batch=500)
    rows = STATES.repeat(5, 1)
    a = nelbo(denoiser_of(P), rows, masking)
    b = nelbo(denoiser_of(0.97 * P + 0.03 / len(STATES)), rows, masking)
    difference, error = compare(b, a)
    assert difference == pytest.approx(b.nats_per_token - a.nats_per_token)
    assert error < 0.3 * a.standard_error
    with pytest.raises(UserError, match="different sequences"):
        compare(a, Likelihood(a.per_sequence[:5], a.lengths[:5]))


def test_reference_perplexity_is_the_exact_chain_rule() -> None:
    def causal(x: Tensor) -> Tensor:
        """log P(x_l | x_<l) of the table; -inf for the padding id, as the network has it."""
        columns = []
        for position in range(x.shape[1]):
            prefix = torch.full((len(x), L), MASK)
            prefix[:, :position] = x[:, :position].where(x[:, :position] < V, torch.tensor(0))
            columns.append(denoiser_of(P)(prefix, torch.ones(len(x)))[:, position])
        return torch.stack(columns, 1)

    value = reference_likelihood(causal, STATES, pad_index=PAD, batch=5)
    assert torch.allclose(value.per_sequence, -P.log())
    ragged = reference_likelihood(causal, [STATES[3], STATES[3][:1]], pad_index=PAD)
    first = P.view(V, -1).sum(1)[STATES[3][0]]
    assert ragged.per_sequence[1] == pytest.approx(-math.log(first))
    ppl = reference_perplexity(causal, [STATES[3], STATES[3][:1]], pad_index=PAD)
    assert ppl == pytest.approx(math.exp((-math.log(P[3]) - math.log(first)) / 4))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "no token sequence"),
        (torch.full((2, 3), PAD), "sequence 0 is empty"),
        (torch.zeros(3, dtype=torch.long), "shape"),
        (torch.tensor([[0, MASK]]), "mask token 3"),
    ],
)
def test_bad_tokens_are_one_clear_line(tokens: Tensor | list[Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        nelbo(denoiser_of(P), tokens, MASKING())


@pytest.mark.parametrize("wrong", ["draws", "batch", "positions"])
def test_bad_numbers_are_one_clear_line(wrong: str) -> None:
    with pytest.raises(UserError, match=f"{wrong}=0"):
        nelbo(denoiser_of(P), STATES, MASKING(**{wrong: 0}), Guidance(SEQUENCE))


def test_n_ratio_over_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="n_ratio = 99"):
        nelbo(denoiser_of(P), STATES, MASKING(), Guidance(SEQUENCE, n_ratio=99))


@pytest.mark.parametrize("gammas", [(), (1.0, -1.0), (math.inf,)])
def test_bad_gammas_are_refused(gammas: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="gammas"):
        nelbo_by_gamma(denoiser_of(P), STATES, guidance=Guidance(TOKEN), gammas=gammas, masking=MASKING())
