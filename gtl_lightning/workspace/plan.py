"""What a cell is about to draw: lengths, prompt, strength and temperature, settled before the first step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gtl_lightning.errors import UserError
from gtl_lightning.records import read_list
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import LENGTHS, Cell
from gtl_lightning.workspace.sampler import Sampler, Watch, at_gamma, draw_lengths
from gtl_lightning.workspace.selection import Setting, chosen_setting
from gtl_lightning.workspace.text import encode_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from gtl_lightning.core.guidance import Guidance
    from gtl_lightning.core.trace import Tell


@dataclass(frozen=True)
class Plan:
    """Texts to be drawn.

    Attributes:
        sampler: networks.
        params: with the setting applied.
        setting: strength and temperature.
        guidance: at that strength; None unguided.
        lengths: tokens of each text.
        prompt: Long[l], what each begins with; None for nothing.
        seed: of the sampler.
    """

    sampler: Sampler
    params: Params
    setting: Setting
    guidance: Guidance | None
    lengths: list[int]
    prompt: Tensor | None
    seed: int

    def draw(self, progress: Tell | None = None, watch: Watch | None = None) -> list[Tensor]:
        """One Long[l] for every length."""
        return self.sampler.draw(
            self.params,
            self.lengths,
            guidance=self.guidance,
            seed=self.seed,
            prompt=self.prompt,
            progress=progress,
            watch=watch,
        )

    @property
    def unguided(self) -> Plan:
        """The same texts of the denoiser alone."""
        return replace(self, guidance=None, setting=replace(self.setting, gamma=None))


def plan(params: Params, sampler: Sampler, cell: Cell, asked: SampleRequest) -> Plan:
    """Settle what is drawn: what was asked for, else as validation chose, lengths as in the target data.

    Raises:
        UserError: an option that does not apply to the method, an n_ratio above the vocabulary, an empty prompt.
    """
    asked.check_applies(cell.method)
    root, corpus = sampler.root, sampler.corpus
    if asked.n_ratio is not None and asked.n_ratio > corpus.vocab_size:
        raise UserError(f"--n-ratio {asked.n_ratio} exceeds the vocabulary of {corpus.vocab_size}; use at most that")
    setting = chosen_setting(params, cell, root)
    setting = Setting(
        setting.temperature if asked.temperature is None else asked.temperature,
        setting.gamma if asked.gamma is None else asked.gamma,
    )
    params = setting.applied(params)
    guidance = at_gamma(params, sampler.guidance, setting.gamma)
    if guidance is not None:
        # n_ratio is at least 1 where it is given
        guidance = replace(guidance, n_ratio=asked.n_ratio or guidance.n_ratio)
    prompt = encode_prompt(asked.prompt, corpus, root) if asked.prompt is not None else None
    if asked.length:
        lengths = [asked.length] * asked.count
    else:
        lengths = draw_lengths(_real_lengths(params, sampler, cell.fraction), asked.count, asked.seed)
        if prompt is not None:
            lengths = [min(max(value, len(prompt)), corpus.length) for value in lengths]
    return Plan(sampler, params, setting, guidance, lengths, prompt, asked.seed)


def _real_lengths(params: Params, sampler: Sampler, fraction: float | None) -> Any:
    """Lengths of real target texts; a bundle has a list of them in place of the texts."""
    kept = sampler.root / LENGTHS
    if kept.exists():
        return read_list(kept, int)
    train, _ = sampler.corpus.target(fraction or 1.0, params.data.min_examples)
    return train.lengths
