"""The denoiser and the heads that are no token-level ratio: sequence ratio, planner, causal reference model.

The denoiser and the causal model are `Decoder`s: factored into `encode` (one pass of the backbone) and `decode` (one
projection to the vocabulary), so that a sampler or a loss projects only the positions it needs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from gtl_lightning.core.protocols import EVERYWHERE, Look, Source
from gtl_lightning.networks.backbone import Backbone
from gtl_lightning.networks.block import BackboneConfig, seeded
from gtl_lightning.networks.decoder import Decoder
from gtl_lightning.networks.source import carried, log_prob_of
from gtl_lightning.networks.store import Stored, register
from gtl_lightning.sharing.shareable import CAUSAL, RATIO


class Frozen:
    """A network that its owner reads but does not train, save or copy: no parameter of it shows up in the owner's."""

    def __init__(self, network: nn.Module | Source) -> None:
        self.network = cast(nn.Module, network).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self


@register
class MaskedDenoiser(Decoder):
    """p_theta(x_0^l | z_t) in the SUBS parameterisation (MDLM, arXiv 2406.07524; docs/method.md section 1)."""

    @classmethod
    def from_causal(cls, model: CausalLM, shift: bool = True, causal: bool = False) -> Self:
        """A denoiser of an autoregressive model's weights, which knows no t (AR2Diff; docs/method.md section 4).

        Args:
            model: stays as it is.
            shift: whether a state predicts the token after the one it stands at, as it did.
            causal: whether it goes on reading what comes before alone.
        """
        with seeded(0):
            denoiser = cls(replace(model.config, shift=shift, causal=causal))
        denoiser.load_state_dict(model.state_dict())
        return denoiser.to(model.output.weight)

    def encode(
        self,
        x_t: Tensor,
        t: Tensor,
        look: Look = EVERYWHERE,
        features: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> Tensor:
        """Long[b,l], Float[b] -> hidden states Float[b,n,d] where `look` wants them; it reads no `features`.

        `attention`: as in `Backbone.forward`.
        """
        return self.backbone(x_t, t, look, attention)

    def forward(self, x_t: Tensor, t: Tensor, attention: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]; where x_t is no mask, all mass is on x_t (carried over)."""
        return carried(self.decode(self.encode(x_t, t, attention=attention)), x_t, self.config.mask_index)


@register
class SequenceRatioNetwork(Stored, nn.Module):
    """f(x_t, t) = log r_t of a whole sequence, or the logit of P(target | x_t): both have the target positive.

    Hidden states are pooled by learned attention over the tokens that are no padding; it starts as their plain mean,
    and the output starts at zero.
    """

    part = RATIO
    takes_look = True

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.attend = zeroed(nn.Linear(config.width, 1))
        self.head = zeroed(nn.Linear(config.width, 1))

    @property
    def mask_index(self) -> int:
        """Id of the mask."""
        return self.config.mask_index

    def forward(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE) -> Tensor:
        """Long[b,l], Float[b] -> Float[b] in fp32."""
        h = self.backbone(x_t, t, look)
        # A finite floor: a row of pads alone gives a plain mean, not NaN.
        score = self.attend(h).float().masked_fill((x_t == self.config.pad_index)[..., None], -1e9)
        return self.head((score.softmax(dim=1) * h.float()).sum(dim=1)).float().squeeze(-1)


@register
class UniformDenoiser(MaskedDenoiser):
    """p_theta(x_0^l | z_t) under uniform noise: any token may be noise, so none is carried over (SEDD, 2310.16834).

    The mask keeps its id and is never predicted; give `cond_dim` above 0, as only t says how much of z_t to believe.
    """

    def forward(self, x_t: Tensor, t: Tensor, attention: Tensor | None = None) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,l,v]."""
        return self.decode(self.encode(x_t, t, attention=attention))


@register
class PositionNetwork(nn.Module):
    """rho(z_t) in R^L, the planner: how sure the denoiser's best token is at a masked position (docs/method.md 2.3)."""

    takes_look = True

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = zeroed(nn.Linear(config.width, 1))

    def forward(self, x_t: Tensor, t: Tensor | None = None, look: Look = EVERYWHERE) -> Tensor:
        """Long[b,l] -> logits Float[b,l] in fp32. Without t the masked share stands for it (log-linear: its mean)."""
        if t is None:
            valid = (x_t != self.config.pad_index).sum(-1).clamp(min=1)
            t = (x_t == self.config.mask_index).sum(-1) / valid
        return self.head(self.backbone(x_t, t, look)).float().squeeze(-1)


@register
class CausalLM(Decoder):
    """An autoregressive model of text, for reference perplexities: position l holds log p(x^l | x^{<l}).

    The backbone is causal, shifted with the mask token as the start, and knows no t.
    """

    part = CAUSAL

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(replace(config, causal=True, shift=True, cond_dim=0))

    def forward(self, x_0: Tensor, attention: Tensor | None = None) -> Tensor:
        """Long[b,l] -> log-probabilities Float[b,l,v] in fp32 at least; -inf at mask and pad."""
        return self.decode(self.encode(x_0, attention=attention))

    def encode(self, x_0: Tensor, embedded: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        """Long[b,l] -> Float[b,l,d]: position l has read the tokens before it, or what `attention` lets it.

        `embedded` Float[b,l,d] is read in the place of the embeddings of x_0, which says where there is padding.
        """
        return self.backbone(x_0, None, EVERYWHERE, attention, embedded)

    def log_prob(self, x_0: Tensor, embedded: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        """Long[b,l] -> Float[b,l]: log p(x^l | x^{<l}) in nats, 0 at pads; `embedded`, `attention` as in `encode`."""
        valid = x_0 != self.config.pad_index
        # Once, before the pass: an index by `valid` itself asks the device how many, and its gradient again.
        at = valid.nonzero(as_tuple=True)
        values = log_prob_of(self, self.encode(x_0, embedded, attention)[at], x_0[at])
        return torch.zeros(x_0.shape, dtype=values.dtype, device=x_0.device).masked_scatter(valid, values)

    def next_log_probs(self, x_0: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """Long[b,l], Long[m], Long[m] -> Float[m,v]: `forward` at m places, which alone meet the vocabulary."""
        return self.decode(self.encode(x_0)[row, position])


def zeroed(linear: nn.Linear) -> nn.Linear:
    """The layer with weights and bias at zero: a head that starts silent."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
