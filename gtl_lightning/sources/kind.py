"""What a kind of source is made of. One file of this package says all of a kind; everything else asks the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from gtl_lightning.fields import Section

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.networks import BackboneConfig, CausalLM
    from gtl_lightning.networks.adapters.origin import Origin

Build: TypeAlias = "Callable[[OptimiserConfig], TrainedModule]"
"""How a module with a fresh network is made for a training."""


class NoSettings(Section):
    """A kind that has no knobs."""


def _no_tokenizer() -> PreTrainedTokenizerFast:
    raise AssertionError("these tokens are of no text")


@dataclass(frozen=True)
class Context:
    """What a recipe may know.

    Attributes:
        backbone: configuration of the source denoiser, of the size `networks.denoiser`, over these tokens.
        causal: reads the causal model of the source domain, anew at every call.
        scoring: the noise schedule and the draws of each held-out example, as every module takes them.
        steps: most optimiser steps of the training.
        tokenizer: the tokenizer of the tokens, read anew at every call.
    """

    backbone: BackboneConfig
    causal: Callable[[], CausalLM]
    scoring: Mapping[str, Any]
    steps: int
    tokenizer: Callable[[], PreTrainedTokenizerFast] = _no_tokenizer


def _none(settings: Any) -> Mapping[str, Any]:
    return {}


def _made_here(settings: Any) -> Origin | None:
    return None


@dataclass(frozen=True)
class SourceKind:
    """One way to come to the source denoiser, which everything later takes as it is.

    Attributes:
        name: `source.kind` in params.yaml.
        help: one line.
        recipe: (context, the kind's settings) -> how the module is built. Random weights are drawn while it builds.
        settings: the defaults; where there are knobs, their type is the section `source.<name>`.
        reads_causal: whether it starts from, or learns from, the causal model of the source domain, which the stage
            `causal` trains then.
        trains: whether the network is trained, or taken as the recipe's module has it.
        needs: settings that must not be null where the kind is chosen; `gtl source import` says them.
        causal_options: the kind's settings -> options of `CausalLMModule` in that stage.
        origin: the kind's settings -> the model of other people that it is; None for one that is trained here.
    """

    name: str
    help: str
    recipe: Callable[[Context, Any], Build]
    settings: Section = field(default_factory=NoSettings)
    reads_causal: bool = False
    trains: bool = True
    needs: tuple[str, ...] = ()
    causal_options: Callable[[Any], Mapping[str, Any]] = _none
    origin: Callable[[Any], Origin | None] = _made_here
