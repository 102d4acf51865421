"""`gtl reward`: guidance of the frozen source denoiser by a reward, training it in, and the best of n, side by side.

All learn from, or pick among, the same texts of the denoiser's joint law (docs/method.md 3.4); each is measured on as
many texts of its own: the mean reward, and the drift, the frozen denoiser's NELBO of them less that of its own texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gtl_lightning.core.guidance import Guidance, TokenRatio
from gtl_lightning.core.protocols import Source
from gtl_lightning.core.schedule import schedule
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.likelihood import nelbo
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.fields import Training
from gtl_lightning.files import digest, write_json, write_text
from gtl_lightning.methods.source_samples import drawn_texts
from gtl_lightning.methods.tcsm_reward import REPEATED
from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.known_ratio import KnownRatioModule
from gtl_lightning.networks import BackboneConfig, TokenRatioNetwork, seeded
from gtl_lightning.papers.gtl import importance_draws
from gtl_lightning.papers.tcsm import Reward, effective_sample_size
from gtl_lightning.report.document import to_markdown
from gtl_lightning.report.figures import save_figure
from gtl_lightning.report.reward import frontier, reward_blocks
from gtl_lightning.workspace.corpus import Corpus, device_of, load_denoiser, token_files
from gtl_lightning.workspace.fitting import fit_best, scoring, texts_of
from gtl_lightning.workspace.options import check_seed
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import REPORTS, SOURCE, Cell, log, study
from gtl_lightning.workspace.progress import progress_bar
from gtl_lightning.workspace.rewards import Texts
from gtl_lightning.workspace.text import decode_all

Row = dict[str, Any]
HELD_OUT = 0.1
"""Share of the denoiser's texts that decide when a training stops."""


@dataclass(frozen=True)
class RewardRequest:
    """What `gtl reward` is asked for.

    Attributes:
        name: of the reward, for people.
        reward: texts -> one number each.
        betas: temperatures, in standard deviations of the reward over the denoiser's own texts.
        best_of: numbers of texts of which the best is kept.
        samples: texts of the denoiser to learn from and to pick from.
        count: texts that each way is measured on.
        seed: of all that is drawn.
    """

    name: str
    reward: Texts
    betas: tuple[float, ...]
    best_of: tuple[int, ...]
    samples: int
    count: int
    seed: int

    def check(self, batch: int) -> None:
        """Raise UserError for what cannot be done, before anything is opened; `batch` is that of the trainings."""
        for beta in self.betas:
            if not 0 < beta < math.inf:
                raise UserError(f"--beta {beta} is no temperature; give a positive number, the smaller the stronger")
        if self.samples < batch:
            raise UserError(
                f"--samples {self.samples} leaves no joint samples to learn from: a batch has {batch}; give at least "
                "as many"
            )
        if self.count < 2:
            raise UserError(f"--count {self.count} is too few to measure on; give at least 2")
        for n in self.best_of:
            if not 2 <= n <= self.samples // 2:
                raise UserError(
                    f"--best-of {n} must lie between 2 and half of --samples {self.samples}; give another number"
                )
        check_seed("--seed", self.seed)


def measure_reward(params: Params, asked: RewardRequest) -> None:
    """reports/reward.json, reward.md and the figure reward; a tracked run.

    Raises:
        UserError: an option out of range, no source denoiser, a reward that raises, gives NaN or another shape, or is
            the same for all texts.
    """
    own = params.methods.of("tcsm-reward")
    asked.check(own.train.batch)
    bench = _Bench(params, asked)
    rows = bench.rows()
    warnings = list(dict.fromkeys(row["warning"] for row in rows if "warning" in row))
    write_json(REPORTS / "reward.json", rows)
    written = [REPORTS / "reward.md", *save_figure(REPORTS, "reward", [frontier(rows, asked.name)])]
    write_text(written[0], to_markdown(f"Reward: {asked.name}", reward_blocks(rows, warnings, asked.samples)))
    key = digest({"rows": rows})
    with study(params).child("reward", f"reward {asked.name}", key, {"seed": asked.seed, "reward": asked.name}) as run:
        run.log_params({"samples": asked.samples, "count": asked.count, "warning": "; ".join(warnings) or "none"})
        run.log_metrics({f"{row['way']} {row['strength']:g} {m}": row[m] for row in rows for m in ("reward", "drift")})
        for path in written:
            run.log_file(path, "report")
    log.info("reward: %s", written[0])


class _Bench:
    """The denoiser, its texts, and the reward: what all ways share."""

    def __init__(self, params: Params, asked: RewardRequest) -> None:
        self.params, self.asked = params, asked
        self.corpus, self.device = Corpus.open(params), device_of(params)
        self.source = load_denoiser("source", device=self.device)
        self.own = params.methods.of("tcsm-reward")
        real = self.corpus.dataset("source_train").lengths
        generator = np.random.default_rng(asked.seed)
        self.lengths = generator.choice(real, size=asked.count).tolist()
        self.pool = self.drawn(self.source, generator.choice(real, size=asked.samples).tolist(), 0)
        self.values = self.reward(1.0)(_padded(self.pool)).cpu()
        self.scale = float(self.values.std())
        if not self.scale > 0:
            raise UserError(
                f"the reward {asked.name} is the same for all {asked.samples} texts of the denoiser: there is nothing "
                "to ask for more of; choose another, or raise --samples"
            )
        self.masking = Masking(
            mask_index=self.corpus.mask_index,
            pad_index=self.corpus.pad_index,
            schedule=schedule(params.schedule),
            seed=asked.seed,
            device=self.device,
        )

    def reward(self, beta: float) -> Reward:
        """Of ids; what follows a text is no part of it."""
        pad = self.corpus.pad_index
        return Reward(self.asked.reward, beta, lambda x_0: decode_all([row[row != pad] for row in x_0.cpu()]))

    def drawn(
        self, denoiser: Source, lengths: list[int], stream: int, guidance: Guidance | None = None
    ) -> TokenDataset:
        """Texts of a denoiser, guided or not."""
        return drawn_texts(
            denoiser,
            lengths,
            3 * self.asked.seed + stream,
            schedule(self.params.schedule),
            self.device,
            self.corpus.pad_index,
            progress_bar,
            guidance,
        )

    def rows(self) -> list[Row]:
        """One row a way and strength; the first is the denoiser itself."""
        base = self._measured("untouched", 0.0, self.drawn(self.source, self.lengths, 1))
        rows = [base]
        for beta in self.asked.betas:
            warning = self._warning(beta)
            for way, texts in (("guided", self._guided(beta)), ("trained", self._trained(beta))):
                rows.append({**self._measured(way, beta, texts), **warning})
        for n in self.asked.best_of:
            groups = torch.arange(len(self.values) // n * n).view(-1, n)[: self.asked.count]
            best = groups.gather(1, self.values[groups].argmax(1, keepdim=True)).squeeze(1)
            rows.append(self._measured("best of n", float(n), self.pool.take(best.numpy())))
        return [{**row, "drift": row["nelbo"] - base["nelbo"]} for row in rows]

    def _warning(self, beta: float) -> Row:
        effective = float(effective_sample_size(self._log_weights(beta)))
        found: Row = {"effective_samples": round(effective, 1)}
        if effective < self.own.least_effective:
            found["warning"] = (
                f"beta {beta:g} leaves {effective:.0f} of {len(self.values)} texts, below methods.tcsm-reward."
                f"least_effective = {self.own.least_effective}: raise --samples or --beta"
            )
            log.warning("%s", found["warning"])
        return found

    def _measured(self, way: str, strength: float, texts: TokenDataset) -> Row:
        values = self.reward(1.0)(_padded(texts))
        found = nelbo(self.source, [texts[i] for i in range(len(texts))], self.masking)
        error = float(values.std()) / math.sqrt(len(values))
        row = {"reward_name": self.asked.name, "way": way, "strength": strength, "texts": len(texts)}
        return {**row, "reward": float(values.mean()), "reward_error": error, "nelbo": found.nats_per_token}

    def _log_weights(self, beta: float) -> Tensor:
        return self.values.double() / (beta * self.scale)

    def _guided(self, beta: float) -> TokenDataset:
        """A token ratio by eq. 9 with the known log-ratio R / beta on the denoiser's own texts; gamma = 1."""
        gtl = self.params.methods.of("gtl")
        log_z = float(self._log_weights(beta).logsumexp(0)) - math.log(len(self.values))
        reward = self.reward(beta * self.scale)

        def build(optimiser: OptimiserConfig) -> TrainedModule:
            with seeded(self.asked.seed):
                network = TokenRatioNetwork(self.corpus.backbone(gtl.network))
            given = scoring(self.params, self._parts(self.pool)[1])
            return KnownRatioModule(network, optimiser, log_ratio=lambda x_0: reward.log_ratio(x_0) - log_z, **given)

        train, val = self._parts(self.pool)
        network = self._fitted(build, gtl.train, train, val, f"ratio-{beta:g}", self.corpus.backbone(gtl.network))
        return self.drawn(self.source, self.lengths, 2, Guidance(TokenRatio(network.to(self.device).eval())))

    def _trained(self, beta: float) -> TokenDataset:
        """Form (b), as `tcsm-reward`: a copy of the denoiser on its own texts, by weight."""
        generator = torch.Generator().manual_seed(self.asked.seed)
        train, val = (
            part.take(importance_draws(log_w, REPEATED * len(log_w), generator).numpy())
            for part, log_w in zip(self._parts(self.pool), self._split(self._log_weights(beta)), strict=True)
        )

        def build(optimiser: OptimiserConfig) -> TrainedModule:
            return DenoiserModule(cast(nn.Module, self.source.trainable_copy()), optimiser, **scoring(self.params, val))

        network: Any = self._fitted(build, self.own.train, train, val, f"denoiser-{beta:g}")
        return self.drawn(network.to(self.device).eval(), self.lengths, 2)

    def _fitted(
        self,
        build: Callable[[OptimiserConfig], TrainedModule],
        training: Training,
        train: TokenDataset,
        val: TokenDataset,
        part: str,
        network: BackboneConfig | None = None,
    ) -> Any:
        cell = Cell("reward", None, self.asked.seed)
        data = texts_of(self.params, train, val, training, self.corpus, self.asked.seed)
        # The values stand for the reward, which has no name that would say what it computes.
        depends = {
            "values": digest(self.values.tolist()),
            "schedule": self.params.schedule,
            "samples": len(self.values),
            "network": network and asdict(network),
        }
        inputs = {SOURCE, *token_files()}
        found = fit_best(
            self.params, cell, build, data, training, depends, inputs, part, self.asked.seed, code=__name__
        )
        return found.network

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        cut = len(values) - max(1, round(HELD_OUT * len(values)))
        return values[:cut], values[cut:]

    def _parts(self, texts: TokenDataset) -> tuple[TokenDataset, TokenDataset]:
        cut = len(self._split(self.values)[0])
        return texts.subset(cut), texts.tail(cut)


def _padded(texts: TokenDataset) -> Tensor:
    return texts.batch(np.arange(len(texts)))
