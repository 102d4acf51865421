"""What a method is made of. One file of this package says all of a method; everything else asks the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gtl_lightning.fields import Network, Section, Training

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gtl_lightning.data.dataset import TokenDataset
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.networks.block import BackboneConfig

    Build = Callable[[OptimiserConfig, int], TrainedModule]

Kind = Literal["denoiser", "ratio"]
"""What a trained network is: a denoiser of its own, or a density ratio that guides a frozen denoiser."""
Denoiser = Literal["source", "finetuned"]
"""Frozen denoisers that a ratio may guide: the source's, or the one that `FINETUNED` trained for the same cell."""
Role = Literal[Denoiser, "clean", "noised"]
"""Frozen networks that a recipe may read: a denoiser, the cell's classifiers of clean and of noised text."""
Roll = Literal["baselines", "with_classifier", "ratios", "tuned_ratios"]
"""Lists of methods under `sweep` in params.yaml; each has its own stages in dvc.yaml, which wait for what they read."""
FINETUNED = "finetune"
"""The method whose network is the cell's fine-tuned denoiser."""


class Settings(Section):
    """A method's own part of params.yaml, `methods.<name>`: its knobs, its training, its network if it has one.

    Of a training or a network a method sets what differs from `train.default` and `networks.default`, and params.yaml
    states what differs from the method.
    """

    train: Training = Training()


@dataclass(frozen=True)
class Context:
    """What a recipe may know of the cell that it is to train.

    Attributes:
        seed: of the cell.
        target: the target texts to train on.
        source: opens the source texts.
        backbone: size -> configuration of a network over these tokens.
        denoiser: size of the source denoiser.
        frozen: reads a frozen network from its file, anew at every call.
        scoring: the noise schedule and the draws of each held-out example, as every module takes them.
        smoothing: label smoothing that is undone when the clean classifier's logit is read as a log-ratio.
        device: where frozen networks compute before training begins.
        progress: `with progress(what) as report: report(done, total)`.
    """

    seed: int
    target: TokenDataset
    source: Callable[[], TokenDataset]
    backbone: Callable[[Network], BackboneConfig]
    denoiser: Network
    frozen: Callable[[Role], Any]
    scoring: Mapping[str, Any]
    smoothing: Callable[[], float]
    device: torch.device
    progress: Callable[[str], Any]


@dataclass(frozen=True)
class Recipe:
    """How a cell's network is trained.

    Attributes:
        builds: name -> (optimiser, seed) -> module with a fresh network; of several the held-out score keeps one.
        target: target texts to train on, with what the method adds to them.
        both_domains: whether a batch holds source texts too, as many as target texts.
        members: networks trained alike from different seeds, and averaged.
        finish: turns a trained network into the one that is kept.
        choices: networks made of a trained one, without training, by name; the held-out score keeps one, of equal ones
            the first.
        depends: what the result depends on beside the method's settings and the frozen networks that were read.
        found: what the recipe found of its data, kept with the result; a `warning` among it reaches report and MLflow.
    """

    builds: Mapping[str, Build]
    target: TokenDataset
    both_domains: bool = False
    members: int = 1
    finish: Callable[[nn.Module], nn.Module] | None = None
    choices: Callable[[nn.Module], Mapping[str, nn.Module]] | None = None
    depends: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One way to come from the source to the target.

    Attributes:
        name: in params.yaml, in folders, on the command line.
        label: in tables and figures.
        help: one line on the command line.
        kind: what is trained.
        settings: the defaults; their type is the section `methods.<name>`.
        recipe: (context, the method's settings) -> how its network is trained.
        beside: of a ratio, the frozen denoiser that it is trained beside and that it guides.
        rival: of a ratio, whether it is a way of fine-tuning, which the report does not count as guidance.
        reads_classifier: of a denoiser, whether its training reads the cell's classifiers.
        place: order in tables and figures; among equals the name decides.
        colours: (light page, dark page); None takes a spare hue.
        marker: matplotlib's; None takes a spare one.
    """

    name: str
    label: str
    help: str
    kind: Kind
    settings: Settings
    recipe: Callable[[Context, Any], Recipe]
    beside: Denoiser = "source"
    rival: bool = False
    reads_classifier: bool = False
    place: int = 100
    colours: tuple[str, str] | None = None
    marker: str | None = None

    @property
    def guides(self) -> Denoiser | None:
        """The frozen denoiser that it guides; None for a method that is a denoiser itself."""
        return self.beside if self.kind == "ratio" else None

    @property
    def roll(self) -> Roll:
        """The list that it stands in."""
        if self.kind == "ratio":
            return "ratios" if self.beside == "source" else "tuned_ratios"
        return "with_classifier" if self.reads_classifier else "baselines"
