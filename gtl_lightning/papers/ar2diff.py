"""From an autoregressive model to a denoiser (AR2Diff, arXiv 2401.17181; DiffuLLaMA, 2410.17891; SUNDAE, 2112.06749).

A decoder that was trained to predict the next token keeps its weights and learns to read both sides. In the order of
the work: which positions a position reads, what predicts which token, what is learned, how text is made of it
(docs/method.md section 4). n is what a network reads of l tokens: n = l, or l + 1 where a start stands before them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gtl_lightning.core.forward import gumbel_noise, nelbo_terms, uniform_noise
from gtl_lightning.core.proposal import COLD
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.errors import UserError

Model = Callable[[Tensor], Tensor]
"""Long[b,l] -> Float[b,l,v], log-probabilities of the clean token at every position, whatever stands there."""

# Attention: Bool, True = the position of the row reads that of the column (docs/method.md eq. 21)


def causal_mask(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Bool[n,n]: a position reads itself and what comes before it, as the autoregressive model does."""
    return torch.ones(n, n, dtype=torch.bool, device=device).tril()


def full_mask(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Bool[n,n]: every position reads every other."""
    return torch.ones(n, n, dtype=torch.bool, device=device)


def annealed_share(step: int, anneal_steps: int) -> float:
    """Probability min(1, (step + 1) / anneal_steps) that a later position is read at a step, from 0 (DiffuLLaMA).

    Raises:
        UserError: a negative number.
    """
    if step < 0 or anneal_steps < 0:
        raise UserError(f"step = {step} of anneal_steps = {anneal_steps}: neither may be negative")
    return 1.0 if step + 1 >= anneal_steps else (step + 1) / anneal_steps


def annealed_mask(
    n: int, step: int, anneal_steps: int, generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> Tensor:
    """Bool[n,n]: the causal mask, each entry above the diagonal let in with probability `annealed_share`.

    One mask for all rows, heads and layers of a forward pass; it is `full_mask` from step anneal_steps - 1 on.
    """
    let_in = uniform_noise((n, n), generator, device) < annealed_share(step, anneal_steps)
    return causal_mask(n, device) | let_in


def prefix_mask(attention: Tensor, prefix: Tensor) -> Tensor:
    """Bool[b,n,n]: what is given is read by all and reads itself alone; the rest reads the rest by `attention`.

    States of the prefix do not depend on what follows. With `causal_mask` it is the prefix-LM; with `full_mask` its
    denoiser.

    Args:
        attention: Bool[n,n].
        prefix: Long[b], positions at the front that are given, the start counted.
    """
    given = torch.arange(attention.shape[-1], device=attention.device) < prefix.to(attention.device)[:, None]
    return given[:, None, :] | (attention & ~given[:, :, None])


def sink_mask(attention: Tensor, start: Tensor) -> Tensor:
    """Bool[b,n,n]: the start reads itself alone, as it did causally; the rest reads by `attention`.

    Its state is then the same for every text, and it stays what the others attend to when they have nothing to attend
    to: their attention sink (arXiv 2309.17453). Read by all, it is a prefix of its own (`prefix_mask`).

    Args:
        attention: Bool[n,n] or Bool[b,n,n].
        start: Long[b], its place in each row, behind the padding on the left; Long[1] where it is the same in all.
    """
    first = torch.arange(attention.shape[-1], device=attention.device) == start.to(attention.device)[:, None]
    return torch.where(first[:, :, None], first[:, None, :], attention)


def random_prefix(length: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Long[b]: how many of `length` Long[b] tokens at the front are given, 0..length - 1 equally often."""
    return (uniform_noise(tuple(length.shape), generator, length.device) * length).long()


# Shift: position i of what is read predicts token i + 1, as in the autoregressive model


def starts(x: Tensor, pad_index: int) -> Tensor:
    """Bool[b,l]: in the place before which token of Long[b,l] the start stands: the first that is no padding."""
    text = x != pad_index
    return text & (text.cumsum(-1) == 1)


def begun(x: Tensor, start_index: int, pad_index: int) -> Tensor:
    """Long[b,l] -> Long[b,l+1]: a start before the first token of each row, behind its left padding if it has some.

    The state that has read the start predicts the first token; that of the last token predicts none of them.
    """
    read = torch.cat([torch.full_like(x[:, :1], pad_index), x], dim=1)
    return torch.cat([read[:, :-1].masked_fill(starts(x, pad_index), start_index), read[:, -1:]], dim=1)


# Losses. The prefix stays clean and is not learned; padding that is to be learned is a token like any other


def targets(x: Tensor, pad_index: int, prefix: Tensor | None = None) -> Tensor:
    """Bool[b,l]: what is noised and learned of Long[b,l]: no padding, nothing of the first `prefix` Long[b] tokens."""
    wanted = x != pad_index
    return wanted if prefix is None else wanted & (torch.arange(x.shape[1], device=x.device) >= prefix[:, None])


def masked_loss(
    log_prob_true: Tensor, masked: Tensor, target: Tensor, t: Tensor, schedule: NoiseSchedule
) -> tuple[Tensor, Tensor]:
    """Eq. 1 over the targets: the sum over the batch of the NELBO in nats, and the number of *targets*.

    The weight is 1/t for the log-linear schedule, and the count is that of all positions that could have been masked.
    Divided by the number that were, it is no bound: for the exact denoiser it is not the entropy.

    Args:
        log_prob_true: Float[b,l] log p_theta(x_0^l | x_t); read at masked positions.
        masked: Bool[b,l], masked in x_t.
        target: Bool[b,l], what could have been.
        t: Float[b].
        schedule: the one x_t was drawn with.
    """
    return nelbo_terms(log_prob_true, masked, t, schedule).sum(), target.sum()


def at(log_p: Tensor, x: Tensor) -> Tensor:
    """Float[b,l,v], Long[b,l] -> Float[b,l]: the entries of these tokens."""
    return log_p.gather(-1, x[..., None]).squeeze(-1)


def likeliest(log_p: Tensor) -> Tensor:
    """Float[...,v] -> Long[...]: the arg-max, which AR2Diff unrolls by."""
    return log_p.argmax(-1)


def drawn(log_p: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
    """Float[...,v] -> Long[...]: a draw of each position, which SUNDAE unrolls by; temperature 0 takes the arg-max."""
    if temperature == 0:
        return likeliest(log_p)
    if temperature < COLD:  # divided as they are, all would be beyond the numbers that there are
        log_p = log_p - log_p.amax(-1, keepdim=True)
    return (log_p / temperature + gumbel_noise(tuple(log_p.shape), generator, log_p.device)).argmax(-1)


def unrolled(
    read: Callable[[Tensor], Tensor],
    log_prob: Callable[[Tensor, Tensor], Tensor],
    again: Callable[[Tensor], Tensor],
    x_0: Tensor,
    x_t: Tensor,
    target: Tensor,
) -> Tensor:
    """Float[b,2,l]: -log p(x_0^l) of both SUNDAE terms, 0 where nothing is a target (docs/method.md eq. 22).

    The model reads the noised text; then, in place of the targets, what it made of that, through which no gradient
    flows. Each term is least at the posterior of x_0 given what it reads.

    Args:
        read: Long[b,l] -> whatever the next two take: log-probabilities, or hidden states of a large vocabulary.
        log_prob: (what was read, Long[b,l]) -> Float[b,l]; with log-probabilities, `at`.
        again: what was read -> Long[b,l]; with log-probabilities, `likeliest`, or `drawn`.
        x_0: Long[b,l].
        x_t: Long[b,l], x_0 with its targets noised: `core.forward.uniform_sample` with alpha_t = 1 - t.
        target: Bool[b,l].
    """
    first = read(x_t)
    with torch.no_grad():
        x_1 = torch.where(target, again(first), x_0)
    second = read(x_1)
    return torch.stack([-log_prob(seen, x_0).masked_fill(~target, 0.0) for seen in (first, second)], dim=1)


def sundae_loss(terms: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the batch of the mean of both terms Float[b,2,l], in nats, and the number of targets Bool[b,l]."""
    return terms.mean(1).sum(), target.sum()


# Decoding


def decode(
    model: Model,
    x: Tensor,
    target: Tensor,
    *,
    steps: int = 10,
    temperature: float = 0.2,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Redraw all targets of x Long[b,l], `steps` times over; the rest stays.

    Args:
        model: trained by `unrolled`; what it gives -inf is never drawn.
        x: the given tokens, and noise at the targets: any tokens, drawn uniformly.
        target: Bool[b,l].
        steps: how often.
        temperature: of the draw; 0 takes the arg-max.
        generator: source of randomness.

    Returns:
        Long[b,l], and Float[b]: the cross-entropy of the last step's input under its output, over the targets, in nats.

    Raises:
        UserError: no step, or a negative temperature.
    """
    if steps < 1 or not temperature >= 0:
        raise UserError(f"steps = {steps}, temperature = {temperature}: give at least 1 step, no negative temperature")
    for _ in range(steps):
        log_p = model(x)
        before, x = x, torch.where(target, drawn(log_p, generator, temperature), x)
    return x, -at(log_p, before).masked_fill(~target, 0.0).sum(-1)


def best(x: Tensor, cross_entropy: Tensor) -> Tensor:
    """Long[n,b,l], Float[n,b] -> Long[b,l]: of n samples of a row the one of least cross-entropy; NaN is above all."""
    choice = cross_entropy.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).argmin(0)
    return x[choice, torch.arange(x.shape[1], device=x.device)]


def decode_best(
    model: Model,
    x: Tensor,
    target: Tensor,
    noise: Callable[[tuple[int, ...]], Tensor],
    *,
    samples: int = 8,
    steps: int = 10,
    temperature: float = 0.2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Long[b,l]: `decode` of `samples` starts for each row, re-ranked by `best`.

    Args:
        noise: shape -> Long tokens drawn uniformly; what the targets start as.
        samples: of each row, at least 1.

    Other arguments as in `decode`.
    """
    if samples < 1:
        raise UserError(f"samples = {samples}: give at least 1")
    many, wanted = x.repeat(samples, 1), target.repeat(samples, 1)
    many = torch.where(wanted, noise(tuple(many.shape)), many)
    y, scores = decode(model, many, wanted, steps=steps, temperature=temperature, generator=generator)
    return best(y.view(samples, *x.shape), scores.view(samples, -1))
