"""Sampling in continuous time: rates from concrete scores, guided by the ratio (docs/method.md section 2.5, eq. 10).

Reversed in time, the noise is a Markov jump process: in state x one position l changes to v at the rate
R(x -> y) = R_t(y -> x) * p_t(y) / p_t(x), y = x with {l: v}. A denoiser gives the concrete score p_t(y) / p_t(x), and
guidance multiplies it by (r_t(y) / r_t(x))^gamma. `noise.Absorbing` and `noise.Uniform` know the rates of their noise;
`euler` and `tau_leaping` say how they are followed over a step of time. Sources: SEDD (arXiv 2310.16834); tau-leaping,
Campbell et al. (arXiv 2205.14987).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from gtl_lightning.core.callables import taking
from gtl_lightning.core.choices import check_kind
from gtl_lightning.core.forward import uniform_noise
from gtl_lightning.core.guard import Guard, tensor_of
from gtl_lightning.core.guidance import Guidance
from gtl_lightning.core.noise import Noise
from gtl_lightning.core.protocols import Denoiser, check_denoiser, untouched
from gtl_lightning.core.schedule import LogLinear, NoiseSchedule
from gtl_lightning.core.trace import Observer, Trace
from gtl_lightning.errors import UserError

Leap = Callable[[Tensor, float], Tensor]
"""(Float[b,l,v] rates, duration) -> Float[b,l,v] probabilities of a position's change to v; the rest is to stay."""


def euler(rate: Tensor, duration: float) -> Tensor:
    """First order: rate * duration; scaled down where that exceeds one."""
    jump = rate * duration
    return jump / jump.sum(-1, keepdim=True).clamp_min(1.0)


def tau_leaping(rate: Tensor, duration: float) -> Tensor:
    """Rates held over the step; a position takes the first of its Poisson events and ignores later ones.

    Tokens have no order in which several changes could be added up, as tau-leaping does with counts.
    """
    total = rate.sum(-1, keepdim=True)
    return rate / total.clamp_min(torch.finfo(rate.dtype).tiny) * -torch.expm1(-total * duration)


def first_event(rate: Tensor, duration: float) -> Tensor:
    """The first event, whenever it comes: for noise that the last step has left over."""
    return rate / rate.sum(-1, keepdim=True).clamp_min(torch.finfo(rate.dtype).tiny)


def transition(
    denoiser: Denoiser,
    noise: Noise,
    x_t: Tensor,
    t: float,
    s: float,
    *,
    guidance: Guidance | None = None,
    leap: Leap = euler,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """Float[b,l,v]: the law of every position at time s < t given x_t, positions independent within the step.

    Arguments and errors as in `sample_continuous`.
    """
    with _guard(denoiser, guidance, leap).run() as guard:
        return _step(guard, denoiser, noise, x_t, t, s, guidance, leap, schedule or LogLinear())


def _guard(denoiser: Denoiser, guidance: Guidance | None, leap: Leap) -> Guard:
    check_denoiser(denoiser)
    check_kind("guidance", guidance, Guidance, "Guidance(TokenRatio(f))")
    return Guard(None, denoiser, ratio=guidance.ratio.f if guidance else None, leap=leap)


def _step(
    guard: Guard,
    denoiser: Denoiser,
    noise: Noise,
    x_t: Tensor,
    t: float,
    s: float,
    guidance: Guidance | None,
    leap: Leap,
    schedule: NoiseSchedule,
    trace: Trace | None = None,
) -> Tensor:
    """`transition` without a look at the device."""
    guard.where = f"t = {t:g}"
    now = torch.full((len(x_t),), t, dtype=torch.float32, device=x_t.device)
    # The time in double precision for the rates; networks see it in single.
    exact = torch.full((len(x_t),), t, dtype=torch.float64, device=x_t.device)
    log_p = noise.law(tensor_of(untouched(denoiser, x_t, now), (*x_t.shape, "v"), denoiser, "denoiser"), x_t)
    guard.note_law(log_p)
    if trace is not None:
        trace.saw(now[:, None].expand_as(x_t), log_p)
    rate = noise.guided(log_p, x_t, exact, schedule, guidance, trace)
    guard.note("ratio" if guidance is not None else "denoiser", rate)
    with taking(leap, rate, t - s):
        jump = tensor_of(leap(rate, t - s), tuple(rate.shape), leap, "leap")
    guard.note("leap", jump)
    stay = (1 - jump.sum(-1, keepdim=True)).clamp_min(0.0)
    return jump.scatter(-1, x_t[..., None], stay)


@torch.no_grad()
def sample_continuous(
    denoiser: Denoiser,
    noise: Noise,
    *,
    batch: int,
    length: int,
    steps: int,
    guidance: Guidance | None = None,
    leap: Leap = euler,
    schedule: NoiseSchedule | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    observe: Observer | Sequence[Observer] | None = None,
) -> Tensor:
    """Draw Long[batch,length] from the source, or from the target when guided; exact as the steps grow.

    Under absorbing noise on the log-linear schedule an Euler step is an ancestral step of `sampling.sample`.

    Args:
        denoiser: (Long[b,l], Float[b]) -> Float[b,l,v] log-probabilities of the clean token, for the noise given, or
            logits; v counts the mask too. Modules are in eval mode for the call.
        noise: `Absorbing` or `Uniform`, the one that denoiser and ratio were trained on.
        batch: number of sequences.
        length: tokens in a sequence.
        steps: of time; the law is off by about a constant over this.
        guidance: None samples the denoiser alone.
        leap: `euler`, `tau_leaping`, or a function like them.
        schedule: LogLinear by default.
        generator: the only source of randomness.
        device: by default the generator's.
        observe: as in `sampling.sample`; what changes in a step are the tokens that jump.

    Raises:
        UserError: batch, length or steps out of range, a mask or vocabulary that the denoiser does not have, pruning
            where there is none, or a callable that gives another shape, NaN, infinity or no law.
    """
    if batch < 0 or length < 1 or steps < 1:
        raise UserError(f"batch = {batch}, length = {length}, steps = {steps}; want at least 0, 1 and 1")
    home = generator.device if generator is not None else torch.device("cpu")
    x = noise.start(batch, length, generator, torch.device(device) if device is not None else home)
    if batch == 0:
        return x
    grid, schedule, trace = noise.grid(steps), schedule or LogLinear(), Trace.of(observe)
    if trace is not None:
        trace.steps = trace.wanted = len(grid) - 1
    with _guard(denoiser, guidance, leap).run() as guard:
        for index, (t, s) in enumerate(pairwise(grid), 1):
            after = _draw(_step(guard, denoiser, noise, x, t, s, guidance, leap, schedule, trace), generator)
            if trace is not None:
                trace.tell_jumps(index, x, after, guidance)
            x = after
        left = noise.unfinished(x)
        if bool(left.any()):  # what the last step left over changes now: the rates' shares, over unbounded time
            # The shares alone count: stabilised they are the same, and no strength makes all of them 0.
            by_shares = None if guidance is None else replace(guidance, stabilise=True)
            rest = _step(guard, denoiser, noise, x, grid[-2], -math.inf, by_shares, first_event, schedule, trace)
            after = torch.where(left, _draw(rest, generator), x)
            if trace is not None:
                trace.tell_jumps(len(grid) - 1, x, after, guidance)
            x = after
    return x


def _draw(probability: Tensor, generator: torch.Generator | None) -> Tensor:
    """Long[b,l] from Float[b,l,v], by inversion."""
    level = uniform_noise(tuple(probability.shape[:2]), generator, probability.device)[..., None]
    total = probability.cumsum(-1)
    # Scaled, so that rounding of the last sum cannot leave the table; a token of probability 0 is passed over.
    return (total <= level.to(total.dtype) * total[..., -1:]).sum(-1).clamp(max=probability.shape[-1] - 1)
