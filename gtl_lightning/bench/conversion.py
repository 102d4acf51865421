"""What a step of `gtl ar2diff` costs beside the decoder's own training step, at equal shape and in one run.

`python -m gtl_lightning.bench.conversion FOLDER` logs the ratios for a checkpoint of transformers.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gtl_lightning.bench.timing import hardware, paired
from gtl_lightning.bench.training import training_step
from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import Batch, TrainedModule
from gtl_lightning.modules.continuation import ContinuationModule
from gtl_lightning.networks.adapters.model import Reading
from gtl_lightning.networks.families import read_model
from gtl_lightning.networks.pretrained import PretrainedDenoiser
from gtl_lightning.resources import has_bf16

log = logging.getLogger(__name__)


class OwnLoss(TrainedModule):
    """The decoder's own training: what transformers computes of `labels`, read causally."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy of the next token, the start read before the first."""
        denoiser = cast(PretrainedDenoiser, self.network)
        read = denoiser.begun(batch["x_0"])
        given: dict[str, Any] = {"labels": read, "is_causal": True, "use_cache": False}
        return cast(Tensor, denoiser.model(read, **given).loss)


def conversion(
    denoiser: PretrainedDenoiser, *, batch: int, length: int, rounds: int, precision: str = "32-true"
) -> dict[str, float]:
    """Ratios of processor time to the decoder's own step, medians over rounds of one call each.

    Args:
        denoiser: its weights are trained.
        batch: texts a step.
        length: tokens of a text.
        rounds: A B C, A B C, ...
        precision: "32-true" or "bf16-mixed".

    Returns:
        `full` and `annealed`, by attention, over the own step; `masks`, annealed over full; seconds of the own step.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(denoiser.vocab_size)[~denoiser.excluded.cpu()]
    x_0 = tokens[torch.randint(len(tokens), (batch, length), generator=generator)]
    modules = {
        "own": OwnLoss(denoiser.train()),
        "full": ContinuationModule(denoiser),
        "annealed": ContinuationModule(denoiser, anneal_steps=1 << 30),
    }
    steps = {name: training_step(module, {"x_0": x_0}, precision) for name, module in modules.items()}
    found = paired(steps, rounds, torch.device("cpu"))
    return {
        "full": found["full"].processor_over(found["own"]),
        "annealed": found["annealed"].processor_over(found["own"]),
        "masks": found["annealed"].processor_over(found["full"]),
        "own_seconds": found["own"].median,
    }


def main() -> int:
    """The command: what the user has to mend is one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m gtl_lightning.bench.conversion",
        description="Time a step of `gtl ar2diff` beside the decoder's own: 8 texts of 48 tokens, in fp32 and, where "
        "the processor has it, in bf16.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a checkpoint of transformers")
    try:
        measure(parser.parse_args().folder)
    except UserError as error:
        log.error("error: %s", error)
        return 2
    return 0


def measure(folder: str) -> None:
    """Log the ratios for a checkpoint in each precision.

    Raises:
        UserError: no such folder, or as `read_model`.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is no folder; give one that holds a checkpoint of transformers")
    model = read_model(folder)
    rows = len(cast(nn.Embedding, model.get_input_embeddings()).weight)
    denoiser = PretrainedDenoiser(model, Reading(rows - 1, rows - 2, 0, sink=True))
    for precision in ("bf16-mixed", "32-true") if has_bf16("cpu") else ("32-true",):
        found = conversion(denoiser, batch=8, length=48, rounds=7, precision=precision)
        said = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        log.info("%s, %s: %s", hardware(torch.device("cpu")), precision, said)


if __name__ == "__main__":
    sys.exit(main())
