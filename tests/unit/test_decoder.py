"""What the denoiser and the causal model share: weights and their order, files, logits, copies."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gtl_lightning.files import load_tensors, save_tensors
from gtl_lightning.networks import (
    Backbone,
    BackboneConfig,
    CausalLM,
    Decoder,
    DifferenceTokenRatio,
    MaskedDenoiser,
    UniformDenoiser,
    load_network,
    save_network,
    seeded,
)

CONFIG = BackboneConfig(12, 8, 16, 1, 2, mask_index=10, pad_index=11, cond_dim=8, dropout=0.1)
HEADS = (MaskedDenoiser, UniformDenoiser, CausalLM)

TIMED = """
blocks.0.attention.out.weight blocks.0.attention.qkv.weight blocks.0.down.bias blocks.0.down.weight
blocks.0.modulation.project.bias blocks.0.modulation.project.weight blocks.0.up.bias blocks.0.up.weight
embedding.weight modulation.project.bias modulation.project.weight start
time.mlp.0.bias time.mlp.0.weight time.mlp.2.bias time.mlp.2.weight
"""
UNTIMED = """
blocks.0.attention.out.weight blocks.0.attention.qkv.weight blocks.0.attention_norm.bias
blocks.0.attention_norm.weight blocks.0.down.bias blocks.0.down.weight blocks.0.mlp_norm.bias
blocks.0.mlp_norm.weight blocks.0.up.bias blocks.0.up.weight embedding.weight norm.bias norm.weight start
"""


def names(cls: type[Decoder], tied: bool) -> set[str]:
    """As files of version 0.1 have them."""
    inner = (UNTIMED if cls is CausalLM else TIMED).split()
    return {f"backbone.{name}" for name in inner} | {"output.bias"} | (set() if tied else {"output.weight"})


def made(cls: type[Decoder], seed: int = 1, **change: object) -> Decoder:
    with seeded(seed):
        return cls(replace(CONFIG, **change)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cls", HEADS)
def test_weights_are_drawn_in_one_order(cls: type[Decoder], tied: bool) -> None:
    """Backbone, then the projection with torch's own draws, then its weights again: to the bit, as ever."""
    network = made(cls, tied=tied)
    with seeded(1):
        backbone = Backbone(network.config)
        output = nn.Linear(CONFIG.width, CONFIG.vocab_size)
        nn.init.normal_(output.weight, std=0.02)
        after = torch.rand(1)
    state = network.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(state[f"backbone.{name}"], value)
    assert torch.equal(state["output.weight"], backbone.embedding.weight if tied else output.weight)
    assert not state["output.bias"].any()
    with seeded(1):
        cls(network.config)
        assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cls", HEADS)
def test_files_of_earlier_versions_load(cls: type[Decoder], tied: bool, tmp_path: Path) -> None:
    network, path = made(cls, tied=tied), tmp_path / "network.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = network.state_dict()
    tensors = {name: torch.randn(state[name].shape, generator=generator) for name in names(cls, tied)}
    description = {"class": cls.__name__, "config": asdict(network.config)}
    save_tensors(path, tensors, {"network": description, "meta": {"step": 3}})
    again = load_network(path, cls)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in tensors.items())
    save_network(tmp_path / "again", again, {"step": 3})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_difference_is_kept_as_ever(tmp_path: Path) -> None:
    denoiser = made(MaskedDenoiser)
    assert isinstance(denoiser, MaskedDenoiser)
    save_network(tmp_path / "n", DifferenceTokenRatio(denoiser, dropout=0.3))
    tensors, header = load_tensors(tmp_path / "n")
    assert set(tensors) == {f"shifted.{name}" for name in names(MaskedDenoiser, tied=False)}
    assert header["network"] == {
        "class": "DifferenceTokenRatio",
        "dropout": 0.3,
        "denoiser": denoiser.fingerprint(),
    }


@pytest.mark.parametrize("cls", HEADS)
def test_the_heads_differ_in_what_they_read_alone(cls: type[Decoder]) -> None:
    assert issubclass(cls, Decoder)
    shared = {"logits", "decode", "fingerprint", "trainable_copy", "output_embedding", "vocab_size", "lora_targets"}
    assert not shared & set(vars(cls))


def test_the_causal_models_weights_start_a_denoiser() -> None:
    """Of the same size, without t: the names are the same, and so is what one last hidden state predicts."""
    causal, denoiser = made(CausalLM, cond_dim=0), made(MaskedDenoiser, seed=2, cond_dim=0)
    denoiser.load_state_dict(causal.state_dict())
    h = torch.randn(3, CONFIG.width, generator=torch.Generator().manual_seed(0))
    assert torch.equal(denoiser.decode(h), causal.decode(h))


@pytest.mark.parametrize("cls", HEADS)
def test_logits_of_chosen_tokens_are_entries_of_all(cls: type[Decoder]) -> None:
    network, generator = made(cls), torch.Generator().manual_seed(0)
    h = torch.randn(2, 5, CONFIG.width, generator=generator)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 5), generator=generator)
    whole = network.logits(h)
    assert whole.isfinite().all()
    torch.testing.assert_close(network.logits(h, tokens), whole.gather(-1, tokens[..., None]).squeeze(-1))
    e = torch.randn(2, 5, CONFIG.width, generator=generator)
    torch.testing.assert_close(network.logits(h + e), whole + e @ network.output_embedding.T)


@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_trains_and_shares_nothing(tied: bool) -> None:
    network = made(MaskedDenoiser, tied=tied).requires_grad_(False)
    copy = network.trainable_copy(dropout=0.4)
    assert copy.config == replace(network.config, dropout=0.4)
    assert copy.backbone.config is copy.config
    assert [block.dropout for block in copy.backbone.blocks] == [0.4]
    assert [block.dropout for block in network.backbone.blocks] == [0.1]
    assert network.trainable_copy().config == network.config
    assert all(weight.requires_grad for weight in copy.parameters())
    assert not any(weight.requires_grad for weight in network.parameters())
    assert (copy.output.weight is copy.backbone.embedding.weight) == tied
    theirs = {weight.data_ptr() for weight in network.parameters()}
    assert not theirs & {weight.data_ptr() for weight in copy.parameters()}
    assert copy.fingerprint() == network.fingerprint()
