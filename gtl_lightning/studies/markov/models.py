"""One cell of the Markov study: train a method on n target sequences, select on held-out ones, give a sampler back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gtl_lightning.errors import UserError
from gtl_lightning.fields import Lora, Training
from gtl_lightning.studies.markov.domains import (
    CHOICE_STREAM,
    FOLD_STREAM,
    NETWORK_STREAM,
    SOURCE,
    TARGET_STREAM,
    generator,
    mixed,
    source_sequences,
)
from gtl_lightning.studies.markov.settings import Markov
from gtl_lightning.workspace.paths import NETWORK, state_dir

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gtl_lightning.core.guidance import Guidance
    from gtl_lightning.laws.chains import MarkovChain
    from gtl_lightning.modules.base import OptimiserConfig
    from gtl_lightning.modules.fit import FitResult
    from gtl_lightning.networks import MaskedDenoiser
    from gtl_lightning.studies.markov.folds import FoldData
    from gtl_lightning.studies.markov.stacked import StackedModule

CHUNK = 256
"""Sequences sampled or evaluated together: their activations fit the cache."""
DENOISERS = ("vanilla", "finetune", "lora")
SEQUENCE_LOSSES = {"gtl-sequence-gkl": "gkl", "gtl-sequence-bce": "bce", "gtl-sequence-log-mse": "log_mse"}
REWEIGHTED = "gtl-reweighted"
"""The generalised KL of reweighted source data alone, eq. 7b without eq. 8: the overlap study's patient."""
METHODS = (*DENOISERS, "classifier", *SEQUENCE_LOSSES, "gtl-token", "vanilla-local")
READ_BY_ALL = (
    "states",
    "length",
    "source_diagonal",
    "source_transition",
    "source_sequences",
    "parts",
    "held_out",
    "rows_scored",
)


@dataclass(frozen=True)
class Model:
    """A trained method, ready to be sampled: a denoiser, and guidance unless the denoiser says it all.

    Attributes:
        denoiser: Long[b,l], Float[b] -> Float[b,l,v].
        guidance: None for denoisers trained on the target.
        steps: optimiser steps, as cross-validation chose.
        nelbo: mean over folds of the held-out NELBO at these steps and gamma, nats per token.
        parameters: trained weights.
        seconds: of training.
    """

    denoiser: nn.Module
    guidance: Guidance | None
    steps: int
    nelbo: float | None
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Problem:
    """A source, a target chain of known laws, and n target sequences."""

    settings: Markov
    source: MarkovChain
    target: MarkovChain
    denoiser: MaskedDenoiser
    n: int
    seed: int

    @cached_property
    def data(self) -> Tensor:
        """Long[n,l]: the target sequences that everything is trained and selected on."""
        return self.target.sample(self.n, self.settings.length, generator(self.seed, self.n, TARGET_STREAM))

    @cached_property
    def source_data(self) -> tuple[Tensor, Tensor]:
        """Source sequences to train on, and others to score on."""
        return source_sequences(self.settings, self.source)

    def fit(self, method: str) -> Model:
        """Train a method.

        Raises:
            UserError: an unknown method.
        """
        if method in DENOISERS:
            return self._denoiser(method)
        if method == "classifier":
            return self._guided(*self.classifier(clean=False), "sequence")
        if method in SEQUENCE_LOSSES:
            loss = SEQUENCE_LOSSES[method]
            return self._guided(*self._sequence(f"sequence-{loss}", loss, self.settings.eta_1), "sequence")
        if method == REWEIGHTED:
            return self._guided(*self._sequence("reweighted", "gkl", 0.0), "sequence")
        if method in ("gtl-token", "vanilla-local"):
            return self._guided(*self._token(method), "token")
        raise UserError(f"method {method} is unknown; choose one of {', '.join(METHODS)}")

    def classifier(self, *, clean: bool) -> tuple[StackedModule, FitResult]:
        """The domain classifiers of all folds, of clean or of noised sequences."""
        kind = "clean" if clean else "noised"
        if kind not in self._classifiers:
            from gtl_lightning.studies.markov.stacked import StackedClassifier

            training = self.settings.classifier
            module = StackedClassifier(
                self._locals("sequence"), None if clean else self.denoiser, held(training), clean=clean
            )
            self._classifiers[kind] = module, self._run(f"{kind}-classifier", module, training, "local")
        return self._classifiers[kind]

    @cached_property
    def _classifiers(self) -> dict[str, tuple[StackedModule, FitResult]]:
        return {}

    @cached_property
    def folds(self) -> list[tuple[Tensor, Tensor]]:
        """Rows kept and held out of each fold that is trained."""
        from gtl_lightning.studies.markov.folds import cut, fold_count

        count = fold_count(self.n, self.settings.parts, self.settings.held_out)
        return cut(self.n, self.settings.parts, count, mixed(self.seed, self.n, FOLD_STREAM))

    def _denoiser(self, method: str) -> Model:
        from gtl_lightning.modules.lora import merge_lora
        from gtl_lightning.studies.markov.stacked import StackedDenoiser

        training: Training = getattr(self.settings, "low_rank" if method == "lora" else method)
        probe = 0 if method == "vanilla" else self.settings.probe
        module = StackedDenoiser(self._copies(method), None, held(training), probe=probe)
        parameters = sum(weight[0].numel() for weight in module.network.parameters())
        result = self._run(method, module, training, "lora", "probe")
        network: Any = module.network.member(len(self.folds))
        return Model(
            merge_lora(network) if method == "lora" else network,
            None,
            result.best_step,
            result.best_score,
            parameters,
            result.seconds,
        )

    def _copies(self, method: str) -> list[nn.Module]:
        from gtl_lightning.modules.lora import add_lora
        from gtl_lightning.networks import MaskedDenoiser, seeded
        from gtl_lightning.studies.markov.stacked import OUTPUT

        lora: Lora = self.settings.lora
        copies: list[nn.Module] = []
        for member in range(len(self.folds) + 1):
            seed = mixed(self.seed, self.n, NETWORK_STREAM, member)
            if method == "lora":
                linears = (*self.denoiser.lora_targets, OUTPUT)
                copies.append(add_lora(self.denoiser, rank=lora.rank, alpha=lora.alpha, seed=seed, linears=linears))
            elif method == "finetune":
                copies.append(self.denoiser.trainable_copy())
            else:
                with seeded(seed):
                    copies.append(MaskedDenoiser(self.denoiser.config))
        return copies

    def _locals(self, kind: str) -> list[nn.Module]:
        from gtl_lightning.networks import seeded
        from gtl_lightning.studies.markov.local import LocalConfig, LocalSequenceRatio, LocalTokenRatio

        config = LocalConfig(
            vocab_size=self.settings.states + 1,
            length=self.settings.length,
            mask_index=self.settings.states,
            **self.settings.local.model_dump(),
        )
        networks: list[nn.Module] = []
        for member in range(len(self.folds) + 1):
            with seeded(mixed(self.seed, self.n, NETWORK_STREAM, member)):
                networks.append((LocalTokenRatio if kind == "token" else LocalSequenceRatio)(config))
        return networks

    def _sequence(self, name: str, loss: str, eta_1: float) -> tuple[StackedModule, FitResult]:
        from gtl_lightning.studies.markov.stacked import StackedSequenceRatio

        training, (clean, _), (timed, _) = (
            self.settings.sequence,
            self.classifier(clean=True),
            self.classifier(clean=False),
        )
        module = StackedSequenceRatio(
            self._locals("sequence"),
            self.denoiser,
            held(training),
            kind=loss,
            clean=clean.network,
            timed=timed.network,
            clip=self.settings.clip,
            eta_1=eta_1,
        )
        return module, self._run(name, module, training, "local", "clip", "eta_1", "classifier")

    def _token(self, method: str) -> tuple[StackedModule, FitResult]:
        from gtl_lightning.studies.markov.local import Uninformed
        from gtl_lightning.studies.markov.stacked import StackedTokenRatio

        networks, training = self._locals("token"), self.settings.token
        alone = method == "vanilla-local"
        denoiser: nn.Module = Uninformed(networks[0].config) if alone else self.denoiser  # type: ignore[arg-type]
        module = StackedTokenRatio(
            networks, denoiser, held(training), bce_weight=0.0 if alone else self.settings.bce_weight
        )
        return module, self._run(method, module, training, "local", "bce_weight")

    def _guided(self, module: StackedModule, result: FitResult, kind: str) -> Model:
        """Select gamma on the held-out rows of the folds, at the cross-validated steps; then use the refit."""
        from gtl_lightning.core.guidance import Guidance, SequenceRatio, TokenRatio
        from gtl_lightning.studies.markov.folds import plausible_gamma

        assert module.source_denoiser is not None
        data = self.batches(self.settings.token)
        gammas = self.settings.gammas
        module.eval()
        scores = module.held_out(data.val, generator(self.seed, self.n, CHOICE_STREAM), gammas)
        best = plausible_gamma(gammas, data.by_sequence(scores))
        network = module.network.member(len(self.folds))
        ratio = TokenRatio(network) if kind == "token" else SequenceRatio(network)
        return Model(
            module.source_denoiser.network,
            Guidance(ratio, gammas[best], chunk=5 * CHUNK),
            result.best_step,
            float(scores[best].mean()),
            sum(weight.numel() for weight in network.parameters()),
            result.seconds,
        )

    def batches(self, training: Training) -> FoldData:
        """Training and held-out batches of all folds."""
        from gtl_lightning.studies.markov.folds import FoldData

        return FoldData(
            self.data,
            self.folds,
            *self.source_data,
            batch=training.batch,
            steps_per_epoch=training.check_every,
            rows_scored=self.settings.rows_scored,
            seed=mixed(self.seed, self.n, FOLD_STREAM),
        )

    def _run(self, name: str, module: StackedModule, training: Training, *reads: str) -> FitResult:
        """Fit under a state that is named by all it depends on: the settings in `reads`, and what all fits read."""
        from gtl_lightning.modules.fit import fit

        known = self.settings.model_dump(mode="json", include=set(READ_BY_ALL) | set(reads))
        settings = {"markov": known, "n": self.n, "seed": self.seed, "training": training.model_dump()}
        settings["target"] = self.target.transition.tolist()
        return fit(
            module,
            self.batches(training),
            steps=training.steps,
            check_every=training.check_every,
            patience=training.patience,
            state_dir=state_dir(f"markov-{name}-{self.n}-{self.seed}", settings, SOURCE / NETWORK, code=__name__),
            precision="32-true",  # these networks are far too narrow for bf16 to pay
            ema_decay=training.ema,
            seed=self.seed,
            accelerator="cpu",  # and for a GPU
            progress=False,
        )


def sample_model(model: Model, settings: Markov, seed: int) -> Tensor:
    """Long[samples,l] drawn by revealing one position at a time in random order."""
    import torch

    from gtl_lightning.core.sampling import sample

    draws = torch.Generator().manual_seed(seed)
    sizes = [CHUNK] * (settings.samples // CHUNK) + [settings.samples % CHUNK]
    return torch.cat(
        [
            sample(
                model.denoiser,
                batch=size,
                length=settings.length,
                mask_index=settings.states,
                guidance=model.guidance,
                generator=draws,
            )
            for size in sizes
            if size
        ]
    )


def held(training: Training) -> OptimiserConfig:
    """AdamW whose learning rate stays after the warm-up: the weights after s steps do not depend on the most."""
    from gtl_lightning.modules.base import OptimiserConfig

    return replace(OptimiserConfig.of(training, training.lr), final_share=1.0)
