"""A trained cell as something that samples: denoiser, ratio if any, planner, and the lengths of real texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from gtl_lightning.errors import UserError
from gtl_lightning.files import sha256_file
from gtl_lightning.methods import guides
from gtl_lightning.records import COUNT, NUMBER, Shape, Values, read_record
from gtl_lightning.workspace.corpus import Corpus, device_of, load_denoiser, open_network
from gtl_lightning.workspace.frozen import denoiser_path
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import MODELS, NETWORK, RESULT, SOURCE, TOKENS, Cell

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gtl_lightning.core.guidance import Guidance
    from gtl_lightning.core.protocols import Source
    from gtl_lightning.core.trace import Observer, Tell

Watch = Callable[[list[int]], "Observer"]
"""Places of a batch's rows among all texts -> an observer of that batch."""
COST = ("trainable_parameters", "kept_bytes", "steps")
TRAINED: Shape = {
    "trainable_parameters": COUNT,
    "kept_bytes?": COUNT,
    "steps": COUNT,
    "read": Values(str),
    "best_step?": COUNT,
    "lr?": NUMBER,
    "made_with?": str,
}
"""What a training says of its cost, and what else is read of it; bundles of earlier versions have no `kept_bytes`."""


@dataclass(frozen=True)
class Sampler:
    """What a cell samples with.

    Attributes:
        denoiser: the one that the cell guides, or its own.
        guidance: at gamma = 1; None for a cell without a ratio.
        corpus: the meaning of the ids.
        device: where the networks are.
        versions: file -> short hash of the weights that are used.
        training: what the cell's training came to, with that of a denoiser trained for it; empty for the source.
        root: folder that holds models/ and tokens/.
    """

    denoiser: Source
    guidance: Guidance | None
    corpus: Corpus
    device: torch.device
    versions: dict[str, str]
    training: dict[str, Any]
    root: Path = Path()

    @classmethod
    def open(cls, params: Params, cell: Cell, root: Path = Path()) -> Sampler:
        """Load a cell's networks from the repository, or from a folder laid out like it.

        Raises:
            UserError: the cell is not in the grid's terms, or its networks are missing, truncated or foreign.
        """
        from gtl_lightning.core.guidance import Guidance, SequenceRatio, TokenRatio
        from gtl_lightning.networks import SequenceRatioNetwork

        corpus, device = Corpus.open(params, root), device_of(params)
        own = MODELS / (cell.name if cell.fraction is not None else "source")
        frozen = denoiser_path(cell)
        denoiser = load_denoiser(frozen.parent.name, root, device)
        for key in ("vocab_size", "mask_index"):
            if getattr(denoiser, key) != getattr(corpus, key):
                raise UserError(
                    f"{root / frozen} was trained with {key} = {getattr(denoiser, key)}, and {root / TOKENS}/meta.json "
                    f"says {getattr(corpus, key)}; train it again (`dvc repro`)"
                )
        guidance = None
        if guides(cell.method):
            network = open_network(own / NETWORK, root, denoiser=denoiser).to(device)
            by_sequence = isinstance(network, SequenceRatioNetwork)
            guidance = Guidance(
                SequenceRatio(network) if by_sequence else TokenRatio(network),
                n_ratio=params.sampling.n_ratio_sequence if by_sequence else params.sampling.n_ratio,
            )
        versions = {str(path): sha256_file(root / path)[:12] for path in (frozen, own / NETWORK)}
        training = read_record(root / own / RESULT, TRAINED) if cell.fraction is not None else {}
        beside = training.get("read", {}).get(str(frozen))
        if guidance is not None and beside not in (None, versions[str(frozen)]):
            raise UserError(
                f"{root / own / NETWORK} was trained beside another {frozen} than the one that is there; train it "
                f"again (`dvc repro`, or `gtl train {cell.method} --fraction {cell.fraction} --seed {cell.seed}`)"
            )
        if guidance is not None and frozen != SOURCE:
            training = _with_denoiser(training, read_record(root / frozen.parent / RESULT, TRAINED))
        return cls(
            denoiser=denoiser,
            guidance=guidance,
            corpus=corpus,
            device=device,
            versions=versions,
            training=training,
            root=root,
        )

    @property
    def source(self) -> str | None:
        """Short hash of the source denoiser that the cell guides or started from; None for one that knows no source."""
        return self.versions.get(str(SOURCE)) or self.training.get("read", {}).get(str(SOURCE))

    def draw(
        self,
        params: Params,
        lengths: list[int],
        *,
        guidance: Guidance | None,
        seed: int,
        prompt: Tensor | None = None,
        progress: Tell | None = None,
        watch: Watch | None = None,
    ) -> list[Tensor]:
        """One sequence for every length, in that order; lengths that `sampling.length_spread` allows share a batch.

        The shorter ones are padded, which leaves the law of a row as it is.

        Args:
            params: sampler settings.
            lengths: tokens wanted, each at most the model's length.
            guidance: None samples the denoiser alone.
            seed: of the one generator that all batches draw from.
            prompt: Long[l] with mask_index where tokens are wanted, put in front of every sequence.
            progress: called with (revealed, total) tokens after every step.
            watch: makes an observer of every batch.

        Raises:
            UserError: a length above the model's, or a prompt that is longer.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from gtl_lightning.core.blocks import Blocks
        from gtl_lightning.core.choices import Draw, Order
        from gtl_lightning.core.sampling import sample
        from gtl_lightning.core.schedule import schedule
        from gtl_lightning.core.trace import Progress

        self._check(lengths, prompt)
        generator = torch.Generator(self.device).manual_seed(seed)
        asked = params.sampling
        blocks = Blocks(asked.block, margin=asked.block_margin) if asked.block else None
        planner = _planner(params, self.device, self.root)
        order = Order(planner, asked.positions_per_step, asked.planner_temperature, blocks)
        half = params.machine.sampling_precision == "bf16-mixed"
        padded = getattr(self.denoiser, "pad_index", None) == self.corpus.pad_index
        batches = together(lengths, params.evaluation.batch, asked.length_spread if padded else 0)
        result: list[Any] = [None] * len(lengths)
        kept = 0 if prompt is None else int((prompt != self.corpus.mask_index).sum())
        total, done = sum(lengths) - kept * len(lengths), 0
        for places in batches:
            starts = [self.start(lengths[place], prompt) for place in places]
            start = pad_sequence(starts, batch_first=True, padding_value=self.corpus.pad_index).to(self.device)
            observers: list[Observer] = [Progress(progress, done, total)] if progress else []
            if watch is not None:
                observers.append(watch(places))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                batch = sample(
                    self.denoiser,
                    mask_index=self.corpus.mask_index,
                    prompt=start,
                    guidance=guidance,
                    order=order,
                    draw=Draw(asked.temperature, asked.top_p),
                    schedule=schedule(params.schedule),
                    generator=generator,
                    observe=observers or None,
                )
            for place, sequence in zip(places, batch.cpu(), strict=True):
                result[place] = sequence[: lengths[place]]
            done += sum(lengths[place] - kept for place in places)
        return result

    def passes(self, params: Params, lengths: list[int], guidance: Guidance | None) -> dict[str, float]:
        """Passes of the networks for one text drawn by `draw`, mean over texts of these lengths (NFE).

        A step is one pass of the denoiser. A token-level ratio says what it adds to one; a sequence-level one passes
        over every candidate of every revealed position. A learned planner's passes are not counted.
        """
        from gtl_lightning.core.guidance import SequenceRatio

        asked = params.sampling
        steps, shown = [], asked.positions_per_step
        for length in lengths:
            whole, rest = divmod(length, asked.block or length)
            steps.append(whole * -(-(asked.block or length) // shown) - (-rest // shown))
        mean = sum(steps) / len(steps)
        if guidance is None:
            return {"denoiser_passes": mean, "ratio_passes": 0.0}
        if isinstance(guidance.ratio, SequenceRatio):
            tried = guidance.n_ratio or self.corpus.vocab_size
            return {"denoiser_passes": mean, "ratio_passes": tried * sum(lengths) / len(lengths)}
        network: Any = guidance.ratio.f
        return {"denoiser_passes": mean, "ratio_passes": mean * network.passes}

    def start(self, length: int, prompt: Tensor | None) -> Tensor:
        """Long[l]: what a text of that length begins as: the prompt, and masks."""
        import torch

        start = torch.full((length,), self.corpus.mask_index)
        if prompt is not None:
            start[: len(prompt)] = prompt
        return start

    def _check(self, lengths: list[int], prompt: Tensor | None) -> None:
        longest = max(lengths)
        if longest > self.corpus.length:
            raise UserError(f"length {longest} is above the model's {self.corpus.length}; ask for at most that")
        if prompt is not None and len(prompt) > min(lengths):
            raise UserError(f"the prompt has {len(prompt)} tokens, the text only {min(lengths)}; raise --length")


@overload
def at_gamma(params: Params, guidance: Guidance, gamma: float) -> Guidance: ...


@overload
def at_gamma(params: Params, guidance: Guidance | None, gamma: float | None) -> Guidance | None: ...


def at_gamma(params: Params, guidance: Guidance | None, gamma: float | None) -> Guidance | None:
    """Guidance of strength gamma, on the course over the revealed share that params name; None stays None."""
    from gtl_lightning.core.guidance import linear_gamma

    if guidance is None or gamma is None:
        return guidance
    return replace(guidance, gamma=linear_gamma(gamma, params.sampling.gamma_end))


def together(lengths: list[int], batch: int, spread: int) -> list[list[int]]:
    """Places of the texts that are drawn together, shortest first: `batch` at most, `spread` tokens apart at most."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        last = batches[-1] if batches else []
        if last and len(last) < batch and lengths[place] - lengths[last[0]] <= spread:
            last.append(place)
        else:
            batches.append([place])
    return batches


def draw_lengths(lengths: Any, count: int, seed: int) -> list[int]:
    """`count` lengths drawn from those of real texts, with replacement."""
    import numpy as np

    return [int(length) for length in np.random.default_rng(seed).choice(np.asarray(lengths), size=count)]


def _with_denoiser(training: dict[str, Any], denoiser: dict[str, Any]) -> dict[str, Any]:
    """What a ratio's training came to, and that of the denoiser which was trained for it: one cost, all files read."""
    cost = {key: training.get(key, 0) + denoiser.get(key, 0) for key in COST}
    return {**training, **cost, "read": {**denoiser.get("read", {}), **training["read"]}}


def _planner(params: Params, device: torch.device, root: Path) -> str | Callable[[Tensor], Tensor]:
    if params.sampling.planner != "learned":
        return params.sampling.planner
    from gtl_lightning.networks import PositionNetwork

    return open_network(MODELS / "planner" / NETWORK, root, expect=PositionNetwork).to(device)
