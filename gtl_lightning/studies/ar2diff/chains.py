"""The stage `ar2diff-chains`: steps from a causal model beside as many from nothing, where the entropy is known.

Two chains: one whose transition matrix is random, which a causal model has to learn and can pass on, and one of five
states that mostly stay, whose whole law is a number: there the work is to find the nearest tokens on both sides, of
which a causal model knows nothing.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from gtl_lightning.files import write_json
from gtl_lightning.laws.chains import MarkovChain, paper_chain, stationary
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.continuation import ContinuationModule
from gtl_lightning.networks import CausalLM, MaskedDenoiser, seeded
from gtl_lightning.networks.block import NO_PAD, BackboneConfig
from gtl_lightning.studies.ar2diff.settings import AR2Diff, Chains
from gtl_lightning.studies.ar2diff.study import CHAINS, Row
from gtl_lightning.studies.chained import chain_data, least
from gtl_lightning.studies.training import fitted, steady, untrained_score
from gtl_lightning.workspace.paths import log
from gtl_lightning.workspace.spread import spread

STICKY_LENGTH = 20
FROM_CAUSAL, FROM_NOTHING, FINAL = "AR2Diff", "from nothing", "AR2Diff, to the end"
STARTS = tuple((start, shift) for start in (FROM_CAUSAL, FROM_NOTHING) for shift in (True, False))
"""What a denoiser starts from, and whether it is shifted."""


def measure_chains(settings: AR2Diff) -> None:
    """ar2diff/chains.json; chains and repetitions side by side, a core each."""
    jobs = [(settings.chains, name, seed) for seed in settings.seeds for name in ("random", "sticky")]
    found = spread("chains", chain_rows, jobs)
    write_json(CHAINS, [row for rows in found for row in rows])
    log.info("ar2diff chains: %s", CHAINS)


def chain_of(chains: Chains, name: str) -> tuple[MarkovChain, int]:
    """The chain of that name, and the length of its sequences."""
    if name == "sticky":
        return paper_chain(chains.diagonal), STICKY_LENGTH
    generator = torch.Generator().manual_seed(0)
    logits = chains.sharpness * torch.randn(chains.states, chains.states, generator=generator, dtype=torch.float64)
    transition = logits.softmax(-1)
    return MarkovChain(stationary(transition), transition), chains.length


def chain_rows(chains: Chains, name: str, seed: int) -> list[Row]:
    """Nats per token above the entropy: the causal model's, each denoiser's after every N, and after the longest."""
    chain, length = chain_of(chains, name)
    size = BackboneConfig(
        chain.states + 1, length, mask_index=chain.states, pad_index=NO_PAD, **chains.network.model_dump()
    )
    key = {"chains": chains.model_dump(mode="json"), "chain": name}
    training = chains.training
    with seeded(seed):
        causal = CausalLM(size)
    module = CausalLMModule(causal, OptimiserConfig.of(training, training.lr))
    own = chain_data(chain, length, chains.held_out, training, seed + 1)
    result = fitted(f"ar2diff-chains-{name}-causal-{seed}", module, own, training, key, seed, __name__)
    base: Row = {"part": "chains", "chain": name, "seed": seed}
    exact = float(chain.log_prob(own.val.batch(range(len(own.val)))).mean()) / length
    rows = [base | {"start": "causal model", "shift": True, "n": training.steps, "gap": result.best_score + exact}]
    diffusion = training.model_copy(update={"steps": chains.steps})
    data = chain_data(chain, length, chains.held_out, diffusion, seed)
    for start, shift in STARTS:
        with seeded(seed):
            network = MaskedDenoiser(replace(size, shift=shift))
        if start == FROM_CAUSAL:
            network = MaskedDenoiser.from_causal(causal, shift=shift)
        made = ContinuationModule(network, optimiser=steady(training), draws=2)
        floor = least(data, chain, made)
        scores = [(0, untrained_score(made, data))]
        named = f"ar2diff-chains-{name}-{start}-{shift}-{seed}".replace(" ", "-")
        result = fitted(named, made, data, diffusion, key | {"start": start, "shift": shift}, seed, __name__)
        scores += [(int(check["step"]), check["score"]) for check in result.history]
        rows += [base | {"start": start, "shift": shift, "n": n, "gap": score - floor} for n, score in scores]
    return [*rows, base | _final(chains, name, seed, chain, length, causal, key)]


def _final(chains: Chains, name: str, seed: int, chain: MarkovChain, length: int, causal: CausalLM, key: Row) -> Row:
    """The shifted continuation with `chains.final`: where it ends."""
    data = chain_data(chain, length, chains.held_out, chains.final, seed)
    network = MaskedDenoiser.from_causal(causal)
    made = ContinuationModule(network, optimiser=OptimiserConfig.of(chains.final, chains.final.lr), draws=2)
    result = fitted(f"ar2diff-chains-{name}-final-{seed}", made, data, chains.final, key, seed, __name__)
    gap = result.history[-1]["score"] - least(data, chain, made)
    return {"start": FINAL, "shift": True, "n": chains.final.steps, "gap": gap}
