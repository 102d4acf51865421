"""The stage `tcsm-chains`: distillation beside cross-entropy on Markov chains (docs/method.md 3.2).

How many examples it takes, and how noisy its gradient is.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from gtl_lightning.files import write_json
from gtl_lightning.laws.chains import ChainTeacher, MarkovChain, paper_chain
from gtl_lightning.modules.base import OptimiserConfig, TrainedModule, mixed_seed
from gtl_lightning.modules.concrete_score import DistilledModule
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.networks import CausalLM, MaskedDenoiser
from gtl_lightning.networks.block import NO_PAD, BackboneConfig, seeded
from gtl_lightning.studies.chained import chain_data, least
from gtl_lightning.studies.tcsm.settings import Chains, Tcsm
from gtl_lightning.studies.tcsm.study import CHAINS, Row
from gtl_lightning.studies.training import fitted, steady
from gtl_lightning.workspace.paths import log
from gtl_lightning.workspace.spread import spread

OBJECTIVES = ("cross-entropy", "distillation")
NOISE = 2


def measure_chains(settings: Tcsm) -> None:
    """tcsm/chains.json; repetitions side by side, a core each."""
    found = spread("chains", chain_rows, [(settings.chains, seed) for seed in settings.seeds])
    write_json(CHAINS, [row for rows in found for row in rows])
    log.info("tcsm chains: %s", CHAINS)


def chain_rows(chains: Chains, seed: int) -> list[Row]:
    """All of one repetition."""
    return [*examples(chains, seed), *gradients(chains, seed)]


class ChainNetwork(nn.Module):
    """`laws.chains.ChainTeacher` where a network is asked for."""

    def __init__(self, chain: MarkovChain) -> None:
        super().__init__()
        teacher = ChainTeacher(chain)
        self.input_embedding, self.log_prob = teacher.input_embedding, teacher.log_prob
        self.next_log_probs = teacher.next_log_probs


def module(objective: str, chains: Chains, chain: MarkovChain, seed: int, config: OptimiserConfig) -> TrainedModule:
    """Cross-entropy or distillation of one and the same fresh network, both weighted as eq. 1."""
    backbone = BackboneConfig(
        vocab_size=chains.states + 1,
        length=chains.length,
        mask_index=chains.states,
        pad_index=NO_PAD,
        **chains.network.model_dump(),
    )
    with seeded(seed):
        network = MaskedDenoiser(backbone)
    if objective == "distillation":
        return DistilledModule(network, config, teacher=cast(CausalLM, ChainNetwork(chain)))
    return DenoiserModule(network, config)


def examples(chains: Chains, seed: int) -> list[Row]:
    """The held-out NELBO of both by the number of examples, each seen once: nats per sequence above the exact one's.

    Both see the same sequences under the same masks. The learning rate is held after the warm-up, and weights are
    averaged, so that every point of the curve is what a training of that length gives.
    """
    training = chains.training
    chain = paper_chain(chains.diagonal, chains.states)
    data = chain_data(chain, chains.length, chains.held_out, training, seed)
    rows = []
    for objective in OBJECTIVES:
        made = module(objective, chains, chain, seed, steady(training))
        floor = least(data, chain, made)
        found = fitted(
            f"tcsm-chains-{objective}-{seed}",
            made,
            data,
            training,
            {"chains": chains.model_dump(mode="json"), "objective": objective},
            seed,
            __name__,
        )
        rows += [
            {
                "part": "examples",
                "objective": objective,
                "seed": seed,
                "examples": int(check["step"]) * training.batch,
                "excess": (check["score"] - floor) * chains.length,
            }
            for check in found.history
        ]
    return rows


def gradients(chains: Chains, seed: int) -> list[Row]:
    """The variance of a batch's gradient, summed over all weights of a fresh network, under both.

    A batch's gradient is noisy because x_0 and the masks are drawn, and because cross-entropy sees one token where
    distillation knows its law given all the others. The second is what distillation removes.
    """
    rows = []
    for diagonal in chains.diagonals:
        chain = paper_chain(diagonal, chains.states)
        for objective in OBJECTIVES:
            made = module(objective, chains, chain, seed, OptimiserConfig.of(chains.training, chains.training.lr))
            found = torch.stack([_gradient(made, chain, chains, seed, draw) for draw in range(chains.gradients)])
            rows.append(
                {
                    "part": "gradients",
                    "objective": objective,
                    "seed": seed,
                    "diagonal": diagonal,
                    "variance": float(found.var(0).sum()),
                    "mean_square": float((found.mean(0) ** 2).sum()),
                }
            )
    return rows


def _gradient(made: TrainedModule, chain: MarkovChain, chains: Chains, seed: int, draw: int) -> Tensor:
    """Float64[weights]: of one batch, the same x_0 and masks for every objective."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, draw, NOISE))
    x_0 = chain.sample(chains.training.batch, chains.length, generator)
    made.zero_grad()
    made.loss({"x_0": x_0}, generator).backward()
    return torch.cat(
        [weight.grad.flatten() for weight in made.network.parameters() if weight.grad is not None]
    ).double()
