"""Small networks of every kind, two of them ratios as a newcomer writes them, for the tests of looks."""

from typing import Any

import torch
from torch import Tensor, nn

from gtl_lightning import Guidance, TokenRatio, sample
from gtl_lightning.core.protocols import EVERYWHERE, Look, Source
from gtl_lightning.networks import (
    BackboneConfig,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    MaskedDenoiser,
    OnDenoiser,
    RatioEnsemble,
    TokenLevel,
    TokenRatioNetwork,
    seeded,
)

MASK, PAD, V, L = 10, 11, 12, 8
CONFIG = BackboneConfig(vocab_size=V, length=L, width=16, depth=2, heads=2, mask_index=MASK, pad_index=PAD, cond_dim=8)


class Bag(TokenLevel):
    """A ratio as a newcomer writes it: three methods, and no word of looks but one."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.width = config.width
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.out = nn.Linear(config.width, config.vocab_size)

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        h = self.embedding(x_t)
        return look.of(torch.tanh(h + h.mean(1, keepdim=True) + t[:, None, None]))

    def decode(self, h: Tensor) -> Tensor:
        return self.out(h)

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        return (h * self.out.weight[tokens]).sum(-1) + self.out.bias[tokens]


class Tilt(OnDenoiser):
    """Another, on the frozen denoiser's features: three as well."""

    def __init__(self, denoiser: Source) -> None:
        super().__init__(denoiser)
        self.out = nn.Linear(self.width, denoiser.vocab_size)

    @property
    def second(self) -> None:
        return None

    def decode(self, h: Tensor) -> Tensor:
        return self.out(h)

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        return (h * self.out.weight[tokens]).sum(-1) + self.out.bias[tokens]


def shaken(network: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def networks(config: BackboneConfig = CONFIG) -> tuple[MaskedDenoiser, list[Any]]:
    with seeded(1):
        denoiser = shaken(MaskedDenoiser(config))
        own = shaken(TokenRatioNetwork(config))
        ratios = [
            own,
            shaken(FeatureTokenRatio(denoiser, rank=4)),
            shaken(FeatureTokenRatio(denoiser, rank=4, own=CONFIG)),
            shaken(DifferenceTokenRatio(denoiser)),
            shaken(Bag(config)),
            shaken(Tilt(denoiser)),
        ]
    return denoiser, [*ratios, RatioEnsemble(ratios)]


def draw(denoiser: Any, ratio: Any = None, **options: Any) -> Tensor:
    options = {"guidance": Guidance(TokenRatio(ratio)) if ratio is not None else None, **options}
    options = {"batch": 6, "length": L, **options} if "prompt" not in options else options
    return sample(denoiser, mask_index=MASK, generator=torch.Generator().manual_seed(3), **options)


def partly_masked() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 10, (4, L), generator=generator)
    x[torch.rand(4, L, generator=generator) < 0.5] = MASK
    x[0, 6:] = PAD
    return x, torch.rand(4, generator=generator)
