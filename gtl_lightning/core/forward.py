"""The noising process and its reverse step, the same for source and target (docs/method.md section 1).

Each token independently stays with probability alpha_t, else it becomes noise: the mask (absorbing) or a uniform token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtl_lightning.core.schedule import NoiseSchedule


def uniform_noise(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Float[shape] uniform on [0, 1), drawn where the generator lives and moved to `device`."""
    home = device if generator is None else generator.device
    return torch.rand(shape, dtype=_real(), generator=generator, device=home).to(device)


def _real() -> torch.dtype:
    """The default of torch, single precision at least: uniforms in half of it are multiples of 1/256 or 1/2048."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Float64[shape]; the upper tail that single precision lacks matters with tens of thousands of tokens."""
    home = device if generator is None else generator.device
    # Exponential noise as torch draws it, -log(1 - u), but vectorised: `exponential_` takes twice as long on a CPU.
    noise = torch.rand(shape, dtype=torch.float64, generator=generator, device=home).neg_().log1p_().neg_()
    return noise.clamp_(min=1e-300).log_().neg_().to(device)


def stratified_times(
    batch: int,
    generator: torch.Generator | None = None,
    eps: float = 1e-3,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Float[batch] times, each uniform on [eps, 1), one in every stratum of width 1/batch: low-variance NELBO.

    `eps` keeps the weight of eq. 1 finite; the share of the loss below it is left out.
    """
    offset = uniform_noise((1,), generator, device)
    strata = torch.arange(batch, dtype=_real(), device=device) / batch
    return eps + (1 - eps) * ((offset + strata) % 1)


def shuffled_times(
    batch: int, generator: torch.Generator, eps: float = 1e-3, device: torch.device | str = "cpu"
) -> Tensor:
    """`stratified_times` in random order: in a batch sorted by domain or length, t would go with it."""
    t = stratified_times(batch, generator, eps, device)
    return t[torch.randperm(batch, generator=generator, device=generator.device).to(device)]


def _noised(
    x_0: Tensor, t: Tensor, schedule: NoiseSchedule, generator: torch.Generator | None, frozen: Tensor | None
) -> Tensor:
    """Bool[b,l]: which positions are noise at time t."""
    noised = uniform_noise(tuple(x_0.shape), generator, x_0.device) < 1 - schedule.alpha(t)[:, None]
    return noised if frozen is None else noised & ~frozen


def absorbing_sample(
    x_0: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
    mask_index: int,
    generator: torch.Generator | None = None,
    frozen: Tensor | None = None,
) -> Tensor:
    """Long[b,l] x_t ~ q(x_t | x_0) for x_0 Long[b,l], t Float[b]: masked with probability 1 - alpha_t.

    `frozen` Bool[b,l] marks positions that are never noised (padding, a prompt).
    """
    return torch.where(_noised(x_0, t, schedule, generator, frozen), mask_index, x_0)


def uniform_sample(
    x_0: Tensor,
    t: Tensor,
    schedule: NoiseSchedule,
    vocab_size: int,
    generator: torch.Generator | None = None,
    frozen: Tensor | None = None,
) -> Tensor:
    """Long[b,l] x_t ~ q(x_t | x_0): with probability 1 - alpha_t a uniform token of 0..vocab_size-1, perhaps the same.

    Arguments as in `absorbing_sample`.
    """
    home = x_0.device if generator is None else generator.device
    noised = _noised(x_0, t, schedule, generator, frozen)
    noise = torch.randint(vocab_size, tuple(x_0.shape), generator=generator, device=home).to(x_0.device)
    return torch.where(noised, noise, x_0)


def level_sample(
    x_0: Tensor,
    mask_index: int,
    generator: torch.Generator | None = None,
    least: int = 1,
    frozen: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mask k random positions of each row, k uniform on `least`..l: eq. 1 with the time integrated out.

    Given k, eq. 1 weighs the masked positions by l / k under any schedule (docs/method.md section 2.8). The levels are
    stratified over the batch and fall to its rows at random.

    Args:
        x_0: Long[...,b,l]; batches on leading axes are drawn apart.
        mask_index: id of the mask.
        generator: source of randomness.
        least: fewest masks; 0 includes clean rows.
        frozen: Bool[...,b,l] padding, which is never masked; l of a row is then what it has beside it.

    Returns:
        x_t Long[...,b,l], masked Bool[...,b,l], k Long[...,b].
    """
    *lead, batch, length = x_0.shape
    strata = (
        torch.arange(batch, dtype=_real(), device=x_0.device) + uniform_noise((*lead, 1), generator, x_0.device)
    ) / batch
    order = uniform_noise((*lead, batch), generator, x_0.device).argsort(-1)
    maskable = length if frozen is None else (~frozen).sum(-1)
    count = least + (strata.gather(-1, order) * (maskable + 1 - least)).long().clamp(max=maskable - least)
    noise = uniform_noise((*lead, batch, length), generator, x_0.device)
    noise = noise if frozen is None else noise.masked_fill(frozen, math.inf)
    rank = noise.argsort(-1).argsort(-1)
    masked = rank < count[..., None]
    return x_0.masked_fill(masked, mask_index), masked, count


def level_nelbo_terms(log_prob_true: Tensor, masked: Tensor, count: Tensor) -> Tensor:
    """Float[...,b] estimates, in nats per token, of the NELBO (docs/method.md eq. 1 as in section 2.8).

    Under `level_sample` the weight l / k of eq. 1 leaves the mean over the k positions read. Where not all that are
    masked are read, which ones must be drawn uniformly among them.

    Args:
        log_prob_true: Float[...,b,l] log p_theta(x_0^l | x_t); read at masked positions only.
        masked: Bool[...,b,l] the positions masked in x_t, or those of them that are read.
        count: Long[...,b] how many they are, at least 1.
    """
    return -log_prob_true.masked_fill(~masked, 0.0).sum(-1) / count


def posterior(log_p: Tensor, x_t: Tensor, t: Tensor, s: Tensor, schedule: NoiseSchedule, mask_index: int) -> Tensor:
    """Float[b,l,v] log p(x_s | x_t) for the absorbing reverse step t -> s < t (docs/method.md eq. 2).

    Args:
        log_p: Float[b,l,v] the denoiser's log-probabilities of the clean token, -inf at the mask.
        x_t: Long[b,l].
        t: Float[b] the time of x_t.
        s: Float[b] an earlier time.
        schedule: gives alpha.
        mask_index: id of the mask; an unmasked position keeps its token with probability 1.
    """
    alpha_t, alpha_s = schedule.alpha(t)[:, None, None], schedule.alpha(s)[:, None, None]
    step = torch.log((alpha_s - alpha_t) / (1 - alpha_t)) + log_p
    stay = torch.log((1 - alpha_s) / (1 - alpha_t)).expand(*x_t.shape, 1)
    step = step.index_copy(-1, torch.tensor([mask_index], device=step.device), stay.to(step.dtype))
    token = torch.arange(log_p.shape[-1], device=x_t.device)
    kept = torch.where(token == x_t[..., None], 0.0, float("-inf")).to(step.dtype)
    return torch.where((x_t == mask_index)[..., None], step, kept)


def nelbo_terms(log_prob_true: Tensor, masked: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Float[b] one-sample estimates, in nats per sequence, of the NELBO (docs/method.md eq. 1).

    Args:
        log_prob_true: Float[b,l] log p_theta(x_0^l | x_t); read at masked positions only.
        masked: Bool[b,l] the positions masked in x_t (padding excluded).
        t: Float[b] uniform on (0, 1].
        schedule: the one x_t was drawn with.
    """
    return schedule.weight(t) * -log_prob_true.masked_fill(~masked, 0.0).sum(-1)


def uniform_score(p: Tensor, x_t: Tensor, alpha: Tensor) -> Tensor:
    """Float[b,l,v]: the concrete score p_t(y) / p_t(x_t) of uniform noise, y having token v at position l.

    With p the law of the clean token given x_t, c = (1 - alpha) / V and o = x_t^l, by Bayes' rule
    s[v] = 1 + p[v] alpha / c - p[o] alpha / (alpha + c) for v other than o (docs/method.md eq. 10). It is 1 at v = o.

    Args:
        p: Float[b,l,V] probabilities of the clean token; V clean tokens, no mask.
        x_t: Long[b,l].
        alpha: Float[b], below 1: the share of kept tokens.
    """
    alpha = alpha[:, None, None]
    noise = (1 - alpha) / p.shape[-1]
    own = p.gather(-1, x_t[..., None])
    score = 1 + p * (alpha / noise) - own * (alpha / (alpha + noise))
    return score.scatter(-1, x_t[..., None], 1.0)


def uniform_rate(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Float[b]: the rate -alpha'_t / alpha_t at which a token becomes uniform noise; infinite at t = 1."""
    return -schedule.dalpha(t) / schedule.alpha(t)


def uniform_nelbo_terms(p: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Float[b] one-sample estimates, in nats per sequence, of the NELBO under uniform noise (docs/method.md eq. 1u).

    The path measure of the reverse chain with score s_theta against that of the noise given x_0, whose score is s*:
    rate_t / V * sum over one-token changes of s_theta - s* log s_theta + s* (log s* - 1). Its expectation over t
    uniform on (0, 1) and x_t bounds -log p_theta(x_0), with equality for the exact posterior (SEDD, arXiv 2310.16834).

    Args:
        p: Float[b,l,V] the denoiser's probabilities of the clean token given x_t.
        x_0: Long[b,l].
        x_t: Long[b,l].
        t: Float[b], strictly between 0 and 1.
        schedule: the one x_t was drawn with.
    """
    return uniform_rate(t, schedule) / p.shape[-1] * _uniform_terms(p, x_0, x_t, t, schedule).sum((-1, -2))


def uniform_nelbo_each(p: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Float[b,l]: `uniform_nelbo_terms` position by position."""
    return (uniform_rate(t, schedule) / p.shape[-1])[:, None] * _uniform_terms(p, x_0, x_t, t, schedule).sum(-1)


def _uniform_terms(p: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    alpha = schedule.alpha(t)
    clean = torch.nn.functional.one_hot(x_0, p.shape[-1]).to(p.dtype)
    model, truth = uniform_score(p, x_t, alpha), uniform_score(clean, x_t, alpha)
    # At v = x_t both are 1 and the term is 0: no position counts a change to itself.
    return model - truth * model.log() + truth * (truth.log() - 1)
