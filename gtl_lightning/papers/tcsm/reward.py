"""Post-training and guidance by a reward (docs/method.md 3.4): p_R proportional to p_pre exp(R / beta).

R knows clean texts alone. What a position of z_t should be is the marginal of p_R(x_0 | z_t), and three ways lead to
it:

    (a) x_0 from p_R(. | z_t), where one has it;
    (b) the cross-entropy of x_0 from the *joint* p_pre(. | z_t), weighted by exp(R(x_0) / beta): `reward_weights`. A
        noised sample of p_pre is such a pair (x_0, z_t);
    (c) the same with every position's tokens tried in turn, numerators summed over samples and normalised once:
        `rao_blackwell`.

Tilting each position's p_pre(y | z_t) by exp(R([y, x^{-i}]) / beta) is none of them: where tokens are good only
together, it is further from p_R than no tilting at all. Nor is (c) normalised sample by sample, nor (b) with x_0 from
one factorised step of the denoiser.

It is guided transfer learning too, with a log-ratio that is known on clean text, log r* = R / beta: the losses of
`papers.gtl` (eqs. 7b and 9) train a ratio for the frozen denoiser from it, and at gamma = 1 that samples p_R. With R
the log-ratio of a domain classifier and beta = 1 the target's law is p_R.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gtl_lightning.core.callables import called
from gtl_lightning.core.guard import wide
from gtl_lightning.core.guidance import SequenceRatio
from gtl_lightning.errors import UserError, check_whole


@dataclass(frozen=True)
class Reward:
    """What is wanted of clean text, more the better, as a known log-ratio R / beta.

    Attributes:
        f: texts, or x_0 Long[b,l] where `decode` is None -> one number a text, a tensor or a list; -inf forbids a text.
        beta: temperature: a reward of beta makes a text e times as likely. The smaller, the stronger.
        decode: Long[b,l] -> b texts.

    Raises:
        UserError: beta is not positive and finite, f is no function.
    """

    f: Callable[[Any], Any]
    beta: float = 1.0
    decode: Callable[[Tensor], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.beta, int | float) or not 0 < self.beta < math.inf:
            raise UserError(f"beta must be a positive number, got {self.beta!r}; the smaller it is, the more R counts")
        if not callable(self.f):
            raise UserError(f"the reward is a {type(self.f).__name__}; give a function of the texts, or of x_0")

    def __call__(self, x_0: Tensor) -> Tensor:
        """R: Long[b,l] -> Float[b], in fp32 at least, without gradient.

        Raises:
            UserError: f raises, or gives NaN, +infinity, no numbers or another count of them.
        """
        name = called(self.f, "reward")
        with torch.no_grad():
            # Copies: a reward may write into what it is given, and hand out the same memory every time.
            given = x_0.clone() if self.decode is None else self.decode(x_0)
            try:
                values = torch.as_tensor(self.f(given)).clone()
            except UserError:
                raise
            except Exception as error:
                what = " ".join(str(error).split())
                raise UserError(f"the {name} failed on {len(x_0)} texts: {type(error).__name__}: {what}") from error
        if values.shape != (len(x_0),) or values.is_complex():
            raise UserError(
                f"the {name} gave {values.dtype} of shape {list(values.shape)} for {len(x_0)} texts; let it return one "
                "number a text"
            )
        values = wide(values).to(x_0.device)
        if not (values < math.inf).all():
            row = int((~(values < math.inf)).nonzero()[0])
            raise UserError(f"the {name} gave {float(values[row])} for text {row} of {len(x_0)}; let it return numbers")
        return values

    def log_ratio(self, x_0: Tensor, t: Tensor | None = None) -> Tensor:
        """Float[b]: log p_R / p_pre = R / beta of clean text, up to the constant log Z; the time is not read."""
        return self(x_0) / self.beta

    def ratio(self, complete: Callable[[Tensor], Tensor] | None = None, draws: int = 1) -> SequenceRatio:
        """As guidance: log r(x_U) = log E[exp(R / beta) | x_U], x_0 from the joint p_pre, at gamma = 1.

        As of a finite mean the logarithm is too low, by the order of one over the number of draws. A ratio that was
        trained on R (eqs. 7b, 9) has no such mean to take.

        Args:
            complete: Long[b,l] -> Long[b,l], fills the masks by a draw from p_pre(. | x_U), say `core.sampling.sample`
                with a prompt; None takes what it is asked for as it stands, which is right for clean text only.
            draws: completions of which the mean is taken.
        """
        if complete is None:
            return SequenceRatio(self.log_ratio)
        check_whole("draws", draws, least=1)

        def log_ratio(x_t: Tensor, t: Tensor) -> Tensor:
            tried = torch.stack([self.log_ratio(complete(x_t)) for _ in range(draws)])
            return tried.logsumexp(0) - math.log(draws)

        return SequenceRatio(log_ratio)

    def of_changes(self, x_0: Tensor, row: Tensor, position: Tensor, ids: Tensor, chunk: int = 1024) -> Tensor:
        """Float[m,k]: R([y, x^{-i}]) / beta for k tokens y at each of m positions.

        Args:
            x_0: Long[b,l].
            row: Long[m].
            position: Long[m].
            ids: Long[m,k].
            chunk: texts looked at together.
        """
        now = torch.zeros(len(x_0), device=x_0.device)
        return self.ratio().log_ratio(x_0, now, now, row, position, ids, chunk)


def effective_sample_size(log_w: Tensor) -> Tensor:
    """Float[...,n] -> Float[...]: (sum w)^2 / sum w^2, between 1 and n; 0 where no sample has any weight.

    As many samples of p_R itself would be as good. Where it is small, there is little to learn from: a larger beta, or
    more samples.
    """
    log_w = wide(log_w)
    top = log_w.amax(-1, keepdim=True)
    w = (log_w - top.clamp(min=torch.finfo(log_w.dtype).min)).exp()
    return w.sum(-1) ** 2 / (w**2).sum(-1).clamp(min=torch.finfo(log_w.dtype).tiny)


def reward_weights(log_r: Tensor, log_z: Tensor | float | None = None) -> Tensor:
    """Float[n]: exp(R / beta) / Z, what the loss of each x_0 ~ p_pre is multiplied by; form (b).

    With one Z for all of training, any Z, the minimiser is p_R's; take the mean of exp(R / beta) over all samples there
    are. A Z for each batch, which None takes, is biased by the order of one over its size.

    Args:
        log_r: Float[n] R / beta.
        log_z: log Z; None normalises these n to a mean of one.

    Raises:
        UserError: no sample has any weight.
    """
    log_r = wide(log_r).detach()
    log_z = log_r.logsumexp(-1) - math.log(len(log_r)) if log_z is None else torch.as_tensor(log_z)
    if log_z == -math.inf:
        raise UserError("the reward forbids every sample; look at the reward, or draw more samples")
    return (log_r - log_z).exp()


def rao_blackwell(log_pi: Tensor, log_r: Tensor) -> Tensor:
    """Float[...,v]: log p_R(x^i = y | z_t), form (c), from s samples x_0 of the joint p_pre(. | z_t).

    Every sample says sum_y pi_i(y) exp(R([y, x^{-i}]) / beta) of all tokens at once, instead of the one it holds. These
    are summed over the samples and normalised *then*: each sample counts by how well its other tokens do.

    Args:
        log_pi: Float[s,...,v] log p_pre(y | x^{-i}, z_t): `conditional`.
        log_r: Float[s,...,v] R([y, x^{-i}]) / beta: `Reward.of_changes`.
    """
    return torch.log_softmax((wide(log_pi) + wide(log_r)).logsumexp(0), -1)
