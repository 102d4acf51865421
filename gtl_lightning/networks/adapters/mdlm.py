"""MDLM's diffusion transformer, which transformers has not (arXiv 2406.07524; the layers of DiT, arXiv 2212.09748).

Blocks are conditioned on the noise level by adaLN: c = silu(mlp(frequencies of sigma)) gives shift, scale and gate of
attention and MLP. Positions are rotary by halves. The weights have the names that the published files give them,
`backbone` apart. The output is raw logits: the law is made of them outside (`ModelDenoiser.decode`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtl_lightning.core.protocols import EVERYWHERE, Look
from gtl_lightning.errors import UserError
from gtl_lightning.networks.adapters.model import ModelDenoiser, Reading, linear
from gtl_lightning.networks.adapters.weights import read_weights
from gtl_lightning.networks.block import seeded
from gtl_lightning.networks.store import register
from gtl_lightning.records import COUNT, Shape, record

FREQUENCIES = 256
LONGEST = 10_000.0
LEAST = 1e-3
"""Of the log-linear noise: sigma(t) = -log(1 - (1 - LEAST) t), which is finite at t = 1."""
SIZES: Shape = {
    **dict.fromkeys(("vocab_size", "model_length", "hidden_dim", "cond_dim", "n_blocks", "n_heads"), COUNT),
    "dropout?": (int, float),
    "time_conditioning?": bool,
}
"""What config.json says of one."""


@dataclass(frozen=True)
class Sizes:
    """As the published configuration has them.

    Attributes:
        vocab_size: rows of the embedding, the last is the mask.
        model_length: most tokens.
        hidden_dim: width.
        cond_dim: of the noise level's embedding.
        n_blocks: blocks.
        n_heads: heads of each.
        dropout: behind attention and MLP.
        time_conditioning: whether sigma is read; else zeros are, as in the training.
    """

    vocab_size: int
    model_length: int
    hidden_dim: int
    cond_dim: int
    n_blocks: int
    n_heads: int
    dropout: float = 0.1
    time_conditioning: bool = False


class Norm(nn.Module):
    """Layer norm with a scale and no shift, in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Float[...,d] -> Float[...,d]."""
        return F.layer_norm(x.float(), x.shape[-1:]).to(x.dtype) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Float[b,l,d] by Float[b,1,d] each."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Attention and MLP, each behind a norm that is shifted and scaled, and before a gate."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, self.heads = sizes.hidden_dim, sizes.n_heads
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Linear(sizes.cond_dim, 6 * width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, c: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """Float[b,l,d] by c Float[b,cond], cosines and sines Float[b or 1,1,l,d/h], mask Bool[b,1,l,l]."""
        shift, scale, gate, shift_2, scale_2, gate_2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        qkv = self.attn_qkv(modulate(self.norm1(x), shift, scale)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(turned(q, *turn), turned(k, *turn), v, attn_mask=mask)
        x = x + gate * self.dropout(self.attn_out(read.transpose(1, 2).flatten(2)))
        return x + gate_2 * self.dropout(self.mlp(modulate(self.norm2(x), shift_2, scale_2)))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions by halves: (a, b) -> (a cos - b sin, b cos + a sin)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Final(nn.Module):
    """The last norm, shifted and scaled, and the projection."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm_final = Norm(sizes.hidden_dim)
        self.linear = nn.Linear(sizes.hidden_dim, sizes.vocab_size)
        self.adaLN_modulation = nn.Linear(sizes.cond_dim, 2 * sizes.hidden_dim)


class Embedding(nn.Module):
    """Rows of tokens."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(sizes.vocab_size, sizes.hidden_dim))


class Sigma(nn.Module):
    """The embedding of a noise level."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        cond = sizes.cond_dim
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, cond), nn.SiLU(), nn.Linear(cond, cond))

    def forward(self, sigma: Tensor) -> Tensor:
        """Float[b] -> Float[b,cond]."""
        half = FREQUENCIES // 2
        rates = torch.exp(-math.log(LONGEST) * torch.arange(half, device=sigma.device) / half)
        angles = sigma[:, None] * rates
        return F.silu(self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(linear(self.mlp[0]).weight.dtype)))


class DiT(nn.Module):
    """The network: (Long[b,l], sigma Float[b]) -> Float[b,l,d], what the projection reads."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.config = sizes
        self.vocab_embed = Embedding(sizes)
        self.sigma_map = Sigma(sizes)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.n_blocks))
        self.output_layer = Final(sizes)

    def forward(self, ids: Tensor, sigma: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid` Bool[b,l] says what is no padding; None is everything."""
        x, c = self.vocab_embed.embedding[ids], self.sigma_map(sigma)
        mask = None
        position = torch.arange(ids.shape[1], device=ids.device)[None]
        if valid is not None:
            # Pads attend to themselves: an empty softmax would be NaN.
            alone = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
            mask, position = (valid[:, None, :] | alone)[:, None], (valid.cumsum(-1) - 1).clamp(min=0)
        size = self.config.hidden_dim // self.config.n_heads
        rates = LONGEST ** (-torch.arange(0, size, 2, device=ids.device) / size)
        angles = (position[..., None] * rates)[:, None]
        turn = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, c, turn, mask)
        shift, scale = self.output_layer.adaLN_modulation(c)[:, None].chunk(2, -1)
        return modulate(self.output_layer.norm_final(x), shift, scale)


@register
class DiTDenoiser(ModelDenoiser):
    """p_theta(x_0^l | x_t) of a DiT, which reads t as sigma or, by its configuration, zeros.

    Its own ids end with the mask. The padding, which it was trained without, is an id more: a row of zeros.
    """

    model: DiT

    def __init__(self, model: DiT, reading: Reading) -> None:
        wanted = reading.size or 0
        more = wanted == reading.pad_index + 1 == model.config.vocab_size + 1
        super().__init__(widened(model, wanted) if more else model, reading)

    @property
    def output(self) -> nn.Linear:
        """The projection behind the last norm."""
        return self.model.output_layer.linear

    @property
    def most(self) -> int:
        """Tokens that a row may have."""
        return self.model.config.model_length

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Attention and MLP; the MLP's layers are numbered."""
        return ("attn_qkv", "attn_out", "mlp.0", "mlp.2")

    def encode(
        self, x_t: Tensor, t: Tensor | None = None, look: Look = EVERYWHERE, features: Tensor | None = None
    ) -> Tensor:
        """Long[b,l], Float[b] -> Float[b,n,d]; it reads no `features`.

        Raises:
            UserError: more tokens than the model has positions, or no t where it reads one.
        """
        sizes = self.model.config
        if x_t.shape[1] > sizes.model_length:
            raise UserError(
                f"texts of {x_t.shape[1]} tokens do not fit the {sizes.model_length} positions of this mdlm; use a "
                f"length of at most {sizes.model_length}"
            )
        sigma = torch.zeros(len(x_t), device=x_t.device)
        if sizes.time_conditioning:
            if t is None:
                raise UserError("this mdlm reads the noise level; give t")
            # In fp64: at t = 1 what is left of 1 - (1 - LEAST) in fp32 is not LEAST.
            sigma = -torch.log1p(-(1 - LEAST) * t.to(x_t.device, torch.double)).to(sigma)
        valid = x_t != self.reading.pad_index
        return look.of(self.model(x_t, sigma, None if valid.all() else valid))

    @property
    def sizes(self) -> dict[str, Any]:
        """The configuration, as config.json has it."""
        return {**asdict(self.model.config), "model_type": "mdlm"}

    @classmethod
    def read(cls, folder: Path, config: dict[str, Any]) -> DiT:
        """The model of a folder.

        Raises:
            UserError: damaged, or of other sizes than its configuration says.
        """
        state = {name.removeprefix("backbone."): value.float() for name, value in read_weights(folder).items()}
        state.pop("rotary_emb.inv_freq", None)  # follows from the sizes
        model = cls.blank(config)
        own = model.state_dict()
        if wrong := sorted(state.keys() ^ own.keys()):
            raise UserError(f"{folder} holds no MDLM of its configuration ({wrong[0]} is missing or left over)")
        if wrong := [name for name in own if own[name].shape != state[name].shape]:
            raise UserError(f"{folder}: {wrong[0]} is {list(state[wrong[0]].shape)}, not {list(own[wrong[0]].shape)}")
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def blank(cls, sizes: dict[str, Any]) -> DiT:
        """A model of a configuration, its weights at random."""
        said = record(sizes, "config.json of an mdlm", SIZES)
        if not said["n_heads"] or said["hidden_dim"] % (2 * said["n_heads"]):
            raise UserError(f"an mdlm of width {said['hidden_dim']} has no {said['n_heads']} heads of even size")
        with seeded(0):
            return DiT(Sizes(**{key: said[key] for key in Sizes.__dataclass_fields__ if key in said}))


def widened(model: DiT, rows: int) -> DiT:
    """The model with so many rows of its embeddings, the new ones zero: ids that it was trained without."""
    old = model.config.vocab_size
    wide = DiTDenoiser.blank({**asdict(model.config), "vocab_size": rows})
    state = model.state_dict()
    for name, value in wide.state_dict().items():
        if state[name].shape != value.shape:
            grown = torch.zeros_like(value)
            grown[:old] = state[name]
            state[name] = grown
    wide.load_state_dict(state)
    return wide.eval()
