"""Noising processes and the rates of their reversal, guided or not (docs/method.md section 2.5, eq. 10).

`continuous.py` follows the rates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from gtl_lightning.core.forward import uniform_rate, uniform_score
from gtl_lightning.core.guard import law, tensor_of, wide
from gtl_lightning.core.guidance import Guidance, SequenceRatio, guided_log_probs, strength_at, tilt
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.core.trace import Trace
from gtl_lightning.errors import UserError


class Noise(ABC):
    """What the sampler asks of a noising process."""

    @abstractmethod
    def start(self, batch: int, length: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Long[b,l]: a draw from the law at t = 1."""

    @abstractmethod
    def grid(self, steps: int) -> list[float]:
        """The times stepped through, from the first to 0."""

    @abstractmethod
    def law(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Float[b,l,v] the law of the clean token in what a denoiser gave at x_t; zeros where it is not read.

        Raises:
            UserError: the denoiser does not have this noise's mask or tokens.
        """

    @abstractmethod
    def log_likelihood(self, tokens: Tensor, x_t: Tensor, alpha: Tensor) -> Tensor:
        """log p(x_t^l | x_0^l = y): what the noise left at a position says of the clean token there.

        Args:
            tokens: Long[...,k] the tokens y.
            x_t: Long[...].
            alpha: Float[...] the share of tokens that are kept.

        Returns:
            Float[...,k]; -inf where impossible.
        """

    def rates(
        self, log_p: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule, guidance: Guidance | None = None
    ) -> Tensor:
        """`guided` of what a denoiser gave at x_t: log-probabilities or logits."""
        return self.guided(self.law(log_p, x_t), x_t, t, schedule, guidance)

    @abstractmethod
    def guided(
        self,
        log_p: Tensor,
        x_t: Tensor,
        t: Tensor,
        schedule: NoiseSchedule,
        guidance: Guidance | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Reverse rates Float[b,l,v] per unit of time, 0 where nothing changes (eq. 10).

        Args:
            log_p: Float[b,l,v] the `law` of the clean token given x_t.
            x_t: Long[b,l].
            t: Float[b].
            schedule: gives alpha.
            guidance: multiplies the scores by (r(y) / r(x))^gamma; a gamma that is a function reads alpha_t, the
                expected share of clean tokens.
            trace: is told of log r and gamma, if there are observers.
        """

    @abstractmethod
    def unfinished(self, x: Tensor) -> Tensor:
        """Bool[b,l]: positions of the final state that are still noise."""


class Absorbing(Noise):
    """Tokens become the mask: a masked position takes token v at the rate w_t p(v | x_U), w_t the weight of eq. 1.

    Guided, the rate is w_t p(v) (r(x_U + {l: v}) / r(x_U))^gamma; with the stabiliser the tokens share the unguided
    total rate, which with exact inputs and gamma = 1 changes nothing, by eq. 6. A token ratio takes r(x_U) from eq. 6.
    `n_ratio` prunes as in `sampling.sample`, with the stabiliser only.

    Args:
        mask_index: id of the mask.
    """

    def __init__(self, mask_index: int) -> None:
        self.mask_index = mask_index

    def start(self, batch: int, length: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """All masks."""
        return torch.full((batch, length), self.mask_index, dtype=torch.long, device=device)

    def grid(self, steps: int) -> list[float]:
        """Evenly from 1 to 0."""
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()

    def law(self, output: Tensor, x_t: Tensor) -> Tensor:
        """See `Noise.law`; read at masks."""
        v = output.shape[-1]
        if not 0 <= self.mask_index < v:
            raise UserError(f"mask_index = {self.mask_index} is no id of the denoiser's {v} tokens")
        log_p = law(output, torch.arange(v, device=x_t.device) == self.mask_index)
        return log_p.masked_fill((x_t != self.mask_index)[..., None], 0.0)

    def log_likelihood(self, tokens: Tensor, x_t: Tensor, alpha: Tensor) -> Tensor:
        """See `Noise.log_likelihood`: the mask can stand for any token, the others for themselves."""
        kept = torch.where(tokens == x_t[..., None], alpha.log()[..., None], -math.inf)
        return torch.where((x_t == self.mask_index)[..., None], (1 - alpha).log()[..., None], kept)

    def guided(
        self,
        log_p: Tensor,
        x_t: Tensor,
        t: Tensor,
        schedule: NoiseSchedule,
        guidance: Guidance | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """See `Noise.guided`."""
        masked = x_t == self.mask_index
        if guidance is not None:
            log_r, own = _log_ratios(guidance, x_t, t, log_p.shape[-1], log_p.shape[-1])
            gamma = _gamma(guidance, t, schedule)
            if trace is not None:
                trace.tilted(log_r, gamma)
            if guidance.stabilise:
                log_p = guided_log_probs(log_p, log_r, gamma, guidance.n_ratio)
            elif guidance.n_ratio is not None:
                raise UserError("n_ratio without the stabiliser would favour the mask; use one of them")
            else:
                if own is None:
                    own = torch.logsumexp(tilt(log_p, log_r), -1)
                # 0 * -inf is not a number: gamma = 0 switches a ratio of zero off, as in `tilt`.
                log_p = tilt(log_p, log_r, gamma) - (gamma * own[..., None] if gamma else 0.0)
        rate = schedule.weight(t)[:, None, None].to(log_p.dtype) * log_p.exp()
        return rate.masked_fill(~masked[..., None], 0.0)

    def unfinished(self, x: Tensor) -> Tensor:
        """The masks."""
        return x == self.mask_index


class Uniform(Noise):
    """Tokens become uniform: every position may change, at the rate -alpha'/alpha / V times the concrete score.

    There is no mask whose odds a stabiliser could keep; `guidance.stabilise` has no effect. A token ratio's own r(x)
    is its entry at the present token.

    Args:
        vocab_size: V, the clean tokens, ids 0..V-1. Further ids of the denoiser are never drawn.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def start(self, batch: int, length: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        """Uniform tokens."""
        home = device if generator is None else generator.device
        return torch.randint(self.vocab_size, (batch, length), generator=generator, device=home).to(device)

    def grid(self, steps: int) -> list[float]:
        """Evenly from 1 - 1 / (steps + 1): at t = 1 the rates are infinite, and the noised law is uniform as it is."""
        return torch.linspace(1, 0, steps + 2, dtype=torch.float64).tolist()[1:]

    def law(self, output: Tensor, x_t: Tensor) -> Tensor:
        """See `Noise.law`; read everywhere."""
        v = self.vocab_size
        if not 0 < v <= output.shape[-1]:
            raise UserError(f"vocab_size = {v}; the denoiser has {output.shape[-1]} tokens, give 1 to as many")
        return law(output, torch.arange(output.shape[-1], device=x_t.device) >= v)

    def log_likelihood(self, tokens: Tensor, x_t: Tensor, alpha: Tensor) -> Tensor:
        """See `Noise.log_likelihood`: any token can have become any other, the same is likelier."""
        same = (tokens == x_t[..., None]).to(alpha.dtype)
        return (alpha[..., None] * same + ((1 - alpha) / self.vocab_size)[..., None]).log()

    def guided(
        self,
        log_p: Tensor,
        x_t: Tensor,
        t: Tensor,
        schedule: NoiseSchedule,
        guidance: Guidance | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """See `Noise.guided`."""
        v = self.vocab_size
        p = log_p[..., :v].exp()
        rate = uniform_score(p, x_t, schedule.alpha(t).to(p.dtype))
        if guidance is not None:
            if guidance.n_ratio is not None:
                raise UserError("n_ratio is for absorbing noise; uniform noise scores every token, leave it out")
            log_r, own = _log_ratios(guidance, x_t, t, log_p.shape[-1], v)
            if own is None:
                own = log_r.gather(-1, x_t[..., None]).squeeze(-1)
            gamma = _gamma(guidance, t, schedule)
            if trace is not None:
                beyond = log_p.shape[-1] - v
                trace.tilted(torch.nn.functional.pad(log_r[..., :v], (0, beyond), value=-math.inf), gamma)
            rate = tilt(rate.log(), log_r[..., :v] - own[..., None], gamma).exp()
        rate = rate * (uniform_rate(t, schedule) / v)[:, None, None].to(rate.dtype)
        rate = rate.scatter(-1, x_t[..., None], 0.0)
        return torch.nn.functional.pad(rate, (0, log_p.shape[-1] - v))

    def unfinished(self, x: Tensor) -> Tensor:
        """Nothing: at t = 0 every token is clean."""
        return torch.zeros_like(x, dtype=torch.bool)


def _log_ratios(guidance: Guidance, x: Tensor, t: Tensor, vocabulary: int, v: int) -> tuple[Tensor, Tensor | None]:
    """log r_t(x with {l: v}) Float[b,l,v], and log r_t(x) Float[b,l] where the ratio says it apart from these.

    Of the denoiser's vocabulary a token ratio gives all, a sequence ratio is asked for the first v.
    """
    seen = t.float()
    if not isinstance(guidance.ratio, SequenceRatio):
        log_r = tensor_of(guidance.ratio.f(x, seen), (*x.shape, vocabulary), guidance.ratio.f, "ratio")
        return wide(log_r), None
    batch, length = x.shape
    row = torch.arange(batch, device=x.device).repeat_interleave(length)
    position = torch.arange(length, device=x.device).repeat(batch)
    tokens = torch.arange(v, device=x.device).expand(len(row), -1)
    log_r = guidance.ratio.log_ratio(x, seen, seen, row, position, tokens, guidance.chunk)
    return log_r.view(batch, length, v), guidance.ratio.of(x, seen)[:, None].expand(-1, length)


def _gamma(guidance: Guidance, t: Tensor, schedule: NoiseSchedule) -> float:
    """gamma at time t; all rows share the time.

    A function of the share is the caller's, in Python: it alone is worth a look at the device in every step.
    """
    return strength_at(guidance.gamma, float(schedule.alpha(t)[0]) if callable(guidance.gamma) else 0.0)
