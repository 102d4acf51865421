"""The chains of the Markov study, and the seeds of all that is drawn in it (docs/markov.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gtl_lightning.errors import UserError
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.workspace.paths import NETWORK

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gtl_lightning.laws.chains import MarkovChain
    from gtl_lightning.networks import MaskedDenoiser

SOURCE = Path("markov/source")
SOURCE_HELD_OUT = 1000
# Streams of randomness, so that no two uses share a seed.
TARGET_STREAM, SOURCE_STREAM, FOLD_STREAM, NETWORK_STREAM, CHOICE_STREAM, SAMPLE_STREAM, SCORE_STREAM = range(7)


def chains(settings: Markov) -> tuple[MarkovChain, MarkovChain]:
    """Source and target.

    Raises:
        UserError: a matrix that is not square or not stochastic, or chains of different support.
    """
    from gtl_lightning.laws.exact import ExactRatio

    source = chain("source", settings.source_diagonal, settings.source_transition, settings.states)
    target = chain("target", settings.target_diagonal, settings.target_transition, settings.states)
    ExactRatio(source, target)  # refuses a transition that only one of them has
    return source, target


def chain(name: str, diagonal: float, matrix: tuple[tuple[float, ...], ...] | None, states: int) -> MarkovChain:
    """The chain of a transition matrix, or of a diagonal with all other entries equal; uniform start.

    Raises:
        UserError: naming the parameter.
    """
    import torch

    from gtl_lightning.laws.chains import MarkovChain, paper_chain

    if matrix is None:
        return paper_chain(diagonal, states)
    try:
        return MarkovChain(torch.full((states,), 1 / states), torch.tensor(matrix, dtype=torch.float64))
    except UserError as error:
        raise UserError(f"{name}_transition: {error}") from error


def source_sequences(settings: Markov, source: MarkovChain) -> tuple[Tensor, Tensor]:
    """Long[N,l] to train on and Long[1000,l] others to score on; the same for every seed of the study."""
    both = source.sample(settings.source_sequences + SOURCE_HELD_OUT, settings.length, generator(0, 0, SOURCE_STREAM))
    return both[: settings.source_sequences], both[settings.source_sequences :]


def mixed(*parts: int) -> int:
    """A seed for torch out of several numbers."""
    from gtl_lightning.modules.base import mixed_seed

    return mixed_seed(*parts)


def generator(*parts: int) -> torch.Generator:
    """A generator for one use of randomness."""
    import torch

    return torch.Generator().manual_seed(mixed(*parts))


def load_source() -> MaskedDenoiser:
    """The source denoiser of the study.

    Raises:
        UserError: it is not trained yet.
    """
    from gtl_lightning.networks import MaskedDenoiser, load_network

    network = load_network(SOURCE / NETWORK, expect=MaskedDenoiser)
    assert isinstance(network, MaskedDenoiser)
    return network
