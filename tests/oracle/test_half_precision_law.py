"""Sampling with the products in bf16 (`machine.sampling_precision`): the law is that of fp32, within its bounds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gtl_lightning import Guidance, TokenRatio
from gtl_lightning.core.guidance import tilt
from gtl_lightning.core.trace import Step
from gtl_lightning.laws.enumerated import model_law
from gtl_lightning.networks import BackboneConfig, FeatureTokenRatio, MaskedDenoiser, TokenRatioNetwork, seeded
from gtl_lightning.networks.block import NO_PAD
from gtl_lightning.workspace.params import configure
from gtl_lightning.workspace.sampler import Sampler
from tests.oracle.enumeration import total_variation_bound

STATES, LENGTH, DRAWS = 3, 3, 3000
CONFIG = BackboneConfig(STATES + 1, LENGTH, 16, 1, 2, mask_index=STATES, pad_index=NO_PAD, cond_dim=0)


def shaken(network: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=generator))
    return network.eval()


def networks(kind: str) -> tuple[MaskedDenoiser, Any]:
    with seeded(0):
        denoiser = shaken(MaskedDenoiser(CONFIG), 0)
        if kind == "none":
            return denoiser, None
        return denoiser, shaken(FeatureTokenRatio(denoiser, 2) if kind == "head" else TokenRatioNetwork(CONFIG), 1)


def drawn(denoiser: MaskedDenoiser, ratio: Any, precision: str, watch: Any = None) -> Tensor:
    corpus: Any = SimpleNamespace(mask_index=STATES, pad_index=STATES + 1, length=LENGTH)
    sampler = Sampler(denoiser, None, corpus, torch.device("cpu"), {}, {}, Path())
    params = configure(overrides=(f"evaluation.batch={DRAWS}", f"machine.sampling_precision={precision}"))
    guidance = None if ratio is None else Guidance(TokenRatio(ratio))
    lengths = [LENGTH] * (DRAWS if watch is None else 4)
    return torch.stack(sampler.draw(params, lengths, guidance=guidance, seed=0, watch=watch))


@pytest.mark.parametrize("kind", ["none", "own", "head"])
def test_the_law_in_bf16_is_that_of_fp32(kind: str) -> None:
    """Against the exact law of the fp32 networks, by recursion over all orders; the test would see another law."""
    denoiser, ratio = networks(kind)

    def conditionals(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            log_p = denoiser(x_t, t)
            return log_p if ratio is None else tilt(log_p, ratio(x_t, t))

    exact = model_law(conditionals, STATES, LENGTH).table
    bound = total_variation_bound(exact, DRAWS)
    x = drawn(denoiser, ratio, "bf16-mixed")
    place = STATES ** torch.arange(LENGTH - 1, -1, -1)
    counts = torch.bincount((x * place).sum(-1), minlength=len(exact)).double() / DRAWS
    assert 0.5 * (counts - exact).abs().sum() < bound
    assert 0.5 * (exact - 1 / len(exact)).abs().sum() > 2 * bound


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_products_are_in_the_precision_that_is_asked_for_and_laws_in_fp32(precision: str, dtype: torch.dtype) -> None:
    denoiser, ratio = networks("own")
    found: set[torch.dtype] = set()
    for network in (denoiser, ratio):
        network.backbone.blocks[0].up.register_forward_hook(lambda *given: found.add(given[2].dtype))
    steps: list[Step] = []
    drawn(denoiser, ratio, precision, watch=lambda rows: steps.append)
    assert found == {dtype}
    for step in steps:
        assert step.log_p.dtype == torch.float32
        torch.testing.assert_close(step.log_p.logsumexp(-1), torch.zeros(len(step.log_p)), atol=1e-5, rtol=0)
    assert not torch.is_autocast_enabled("cpu")
