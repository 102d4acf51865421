"""The public functions: what they learn, that they are the pipeline's, what they accept, what they refuse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch import Tensor, nn

import gtl_lightning
from gtl_lightning import (
    Guidance,
    GuidedModel,
    TokenRatio,
    UserError,
    advise,
    load_ratio,
    mauve,
    nelbo,
    sample,
    select_gamma,
)
from gtl_lightning.api.ratio import train_ratio
from gtl_lightning.api.reading import Reading
from gtl_lightning.core.guidance import guided_log_probs
from gtl_lightning.core.schedule import Cosine
from gtl_lightning.evaluation import likelihood
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.evaluation.mauve import mauve_score
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.fit import fit
from gtl_lightning.modules.ratio import TokenRatioModule
from gtl_lightning.networks import BackboneConfig, Ids, MaskedDenoiser, Plain, TokenRatioNetwork, seeded
from gtl_lightning.networks.block import NO_PAD
from tests.oracle.foreign import Foreign

MASK = 3
P, Q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.1, 0.3, 0.6])
"""Laws of each token, independently, in the source and in the target."""
SHORT: dict[str, Any] = {"mask_index": MASK, "steps": 8, "check_every": 4, "progress": False}


def exact(x_t: Tensor, t: Tensor) -> Tensor:
    """The source's denoiser: log P at every position."""
    return torch.cat([P.log(), torch.tensor([-math.inf])]).expand(*x_t.shape, -1)


class Own(nn.Module):
    """A module of no class of ours, with dropout; as the exact denoiser, and it excludes the mask by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(P.log())
        self.drop = nn.Dropout(0.5)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        own = torch.cat([self.logits, torch.tensor([-math.inf])])
        return own.expand(*x_t.shape, -1) + 0 * self.drop(x_t.float())[..., None]


def texts(law: Tensor, count: int, length: int = 2) -> Tensor:
    """In exact proportion: every sequence as often as the law has it, Long[count,length]."""
    words = torch.tensor(list(itertools.product(range(3), repeat=length)))
    times = (law[words].prod(1) * count).round().long()
    return words.repeat_interleave(times, 0)


SOURCE, TARGET = texts(P, 100), texts(Q, 100)


# What is learned


SMALL = {"network": {"width": 8, "depth": 1, "heads": 2, "dropout": 0.0}, "lr": 0.01}
COPY = {"members": 1, "dropout": 0.0, "lr": 0.05}


@pytest.mark.parametrize(
    ("denoiser", "method", "options"),
    [(exact, "gtl", SMALL), (Own(), "gtl-warm", COPY)],
    ids=["a function, a small network", "a module, a copy of it"],
)
def test_the_guided_law_becomes_the_targets(denoiser: Any, method: str, options: dict[str, Any]) -> None:
    """Tokens are independent, so that the guided law at any masked place is Q, whatever is seen."""
    ratio = train_ratio(
        denoiser, SOURCE, TARGET, method=method, mask_index=MASK, held_out=TARGET, progress=False, steps=300,
        check_every=100, patience=9, batch=100, **options,
    )  # fmt: skip
    x_t = torch.tensor([[MASK, 0], [MASK, 2], [MASK, MASK]])
    log_r = ratio.f(x_t, torch.full((3,), 0.5))[:, 0]
    log_p = torch.cat([P.log(), torch.tensor([-math.inf])]).expand(3, -1)
    guided = guided_log_probs(log_p, log_r.detach()).exp()
    assert torch.allclose(guided[:, :3], Q.expand(3, -1), atol=0.03)
    assert nelbo(denoiser, TARGET, Guidance(ratio), draws=64).nats_per_token == pytest.approx(
        float(-(Q * Q.log()).sum()), abs=0.01
    )
    assert select_gamma(denoiser, ratio, TARGET, [0.0, 0.5, 1.0, 2.0]).gamma == 1.0


def test_a_copy_is_silent_before_it_is_trained_and_differs_where_the_denoiser_excludes_nothing() -> None:
    from gtl_lightning.networks import DifferenceTokenRatio

    source = Plain(Own(), Ids(MASK, NO_PAD), 4)
    g = DifferenceTokenRatio(source, dropout=0.25)
    assert torch.equal(g(SOURCE[:4], torch.ones(4)), torch.zeros(4, 2, 4))
    assert [layer.p for layer in g.modules() if isinstance(layer, nn.Dropout)] == [0.25]
    assert source.network.drop.p == 0.5
    with torch.no_grad():
        g.shifted.network.logits += torch.tensor([1.0, 0.0, -1.0])
    moved = g(SOURCE[:4], torch.ones(4))
    assert torch.allclose(moved[0, 0], torch.tensor([1.0, 0.0, -1.0, 0.0]))
    h = source.encode(SOURCE[:4], torch.ones(4))
    assert torch.equal(source.logits(h, SOURCE[:4]), source.logits(h).gather(-1, SOURCE[:4, :, None])[..., 0])


def test_what_is_trained_is_what_the_modules_train(tmp_path: Path) -> None:
    """One implementation: module, data and fit put together by hand end in the same weights, to the bit."""
    from gtl_lightning.data.dataset import TokenDataset
    from gtl_lightning.data.loading import DomainDataModule

    size = {"width": 8, "depth": 1, "heads": 2, "cond_dim": 0, "dropout": 0.1, "tied": True}
    ratio = train_ratio(Own(), SOURCE, TARGET, held_out=TARGET, network=size, seed=3, method="gtl", **SHORT)
    with seeded(3):
        network = TokenRatioNetwork(BackboneConfig(4, 2, mask_index=MASK, pad_index=NO_PAD, **size))  # type: ignore[arg-type]
    optimiser = OptimiserConfig(lr=2e-3, weight_decay=0.1, warmup_steps=2)
    source = Plain(Own().eval(), Ids(MASK, NO_PAD), 4)
    module = TokenRatioModule(network, source, optimiser=optimiser, draws=2)

    def data_of(x: Tensor) -> TokenDataset:
        return TokenDataset.from_arrays(x.flatten().numpy(), torch.arange(0, x.numel() + 1, 2).numpy(), NO_PAD)

    both = (data_of(SOURCE), data_of(TARGET))
    data = DomainDataModule(*both, *both, batch=64, steps_per_epoch=4, seed=3, pad_index=NO_PAD)
    result = fit(
        module, data, steps=8, check_every=4, patience=4, ema_decay=0.98, seed=3, state_dir=tmp_path,
        precision="32-true", accelerator="cpu", progress=False,
    )  # fmt: skip
    assert ratio.fits[0].best_score == result.best_score
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, ratio.network.state_dict()[name]), name


def test_measures_are_those_of_the_evaluation() -> None:
    ratio = TokenRatio(lambda x_t, t: torch.tensor([-0.5, 0.0, 0.5, 0.0]).expand(*x_t.shape, -1))
    masking = Masking(mask_index=MASK, pad_index=NO_PAD)
    ours = nelbo(exact, TARGET, Guidance(ratio), mask_index=MASK)
    theirs = likelihood.nelbo(exact, TARGET, masking, Guidance(ratio))
    assert torch.equal(ours.per_sequence, theirs.per_sequence)
    choice = select_gamma(exact, ratio, TARGET, [0.0, 1.0], mask_index=MASK)
    assert choice.rows() == likelihood.select_gamma(exact, TARGET, masking, Guidance(ratio), [0.0, 1.0]).rows()


def test_mauve_is_that_of_the_features() -> None:
    def featurizer(side: Any) -> Any:
        return torch.tensor([[len(text), float(hash(text) % 7)] for text in side]).numpy()

    one, other = ["a" * (n % 5) for n in range(40)], ["b" * (n % 9) for n in range(50)]
    assert mauve(one, other, featurizer=featurizer) == mauve_score(featurizer(one), featurizer(other))  # type: ignore[arg-type]


def test_the_advisor_tells_domains_that_overlap_from_those_that_do_not() -> None:
    far, near = torch.zeros(120, 8, dtype=torch.long), torch.ones(120, 8, dtype=torch.long)
    ids = torch.arange(120)[:, None] % 2
    assert advise(far + ids, near + 1 + ids, mask_index=MASK + 1, progress=False).verdict == "poor overlap"
    said = advise(texts(P, 200), texts(torch.tensor([0.5, 0.3, 0.2]), 200), mask_index=MASK, progress=False)
    assert said.verdict in ("go", "caution") and said.sentence and len(said.levels) == 5


def test_the_advisor_weighs_with_a_classifier_of_ones_own() -> None:
    """With the exact log-ratio of clean text the weights average 1, and so says its level."""

    def log_ratio(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.cat([(Q / P).log(), torch.zeros(1)])[x_t].sum(1)

    said = advise(SOURCE, TARGET, log_ratio, mask_index=MASK)
    assert said.levels[0].mean_weight == pytest.approx(1, abs=0.05)
    assert said.levels[0].n_source == len(SOURCE) and said.levels[0].n_target == len(TARGET)


# What is accepted


def test_texts_are_tensors_lists_arrays_or_strings() -> None:
    """The same ids, however they come, give the same ratio; strings are read as the pipeline reads them."""
    rows = SOURCE.tolist(), TARGET.tolist()
    arrays = SOURCE.numpy(), TARGET.numpy()
    ratios = [train_ratio(exact, *pair, **SHORT) for pair in ((SOURCE, TARGET), rows, arrays)]
    for other in ratios[1:]:
        for one, two in zip(ratios[0].network.parameters(), other.network.parameters(), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_ids_of_few_bits_are_the_ids_they_are(dtype: torch.dtype) -> None:
    """A padding beyond 8 bits is another id in them, and no padding is 255."""
    rows = torch.tensor([[1, 2, 3], [3, 0, 100]])
    for ids in (Ids(200, 257), Ids(200, NO_PAD)):
        read = Reading(ids, None, None).read(rows.to(dtype), "texts")
        assert [row.tolist() for row in read] == rows.tolist()
    high = torch.tensor([[1, 255]], dtype=torch.uint8)
    assert [row.tolist() for row in Reading(Ids(300, NO_PAD), None, None).read(high, "texts")] == [[1, 255]]


def test_padding_within_a_text_is_refused() -> None:
    """It would be cut out and the text close up."""
    with pytest.raises(UserError, match="texts: text 1 holds the padding, id 0, within it"):
        Reading(Ids(9, 0), None, None).read(torch.tensor([[0, 5, 6], [5, 0, 7]]), "texts")


def test_a_tokenizers_padding_that_ends_texts_is_none_for_ids_and_refused_for_strings() -> None:
    """Of ids it would strip the ends; of strings no end would be learned or counted."""
    from gtl_lightning.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["a b"], 30)
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    asked: dict[str, Any] = {"tokenizer": tokenizer, "mask_index": None, "length": None}
    ids = [[20, 21, end], [20, end, end]]

    def reading(*known: object, pad_index: int | None = None) -> Reading:
        return Reading.of(*known, pad_index=pad_index, **asked)

    assert reading().ids == Ids(tokenizer.mask_token_id, NO_PAD)
    assert [row.tolist() for row in reading().read(ids, "texts")] == ids
    with pytest.raises(UserError, match="several lengths; give pad_index"):
        reading().read([[20, end], [20, 21, end]], "texts")
    for known, given in (((), end), ((SimpleNamespace(pad_index=end),), None)):
        said = reading(*known, pad_index=given)
        assert [row.tolist() for row in said.read(ids, "texts")] == [[20, 21], [20]]
        with pytest.raises(UserError, match="is the tokenizer's end token too.*, or token ids$"):
            said.read(["a b"], "texts")
    with pytest.raises(UserError, match=f"the padding, id {end}, is the tokenizer's end token too"):
        reading().read(["a b"], "texts")
    (row,) = reading(pad_index=end + 1).read(["a b"], "texts")
    assert row[-1] == end


def test_a_ratio_says_its_schedule_and_a_model_of_another_is_refused(tmp_path: Path) -> None:
    with seeded(0):
        denoiser = MaskedDenoiser(BackboneConfig(4, 2, 8, 1, 2, mask_index=MASK, pad_index=NO_PAD)).eval()
    for given, name in ((None, "loglinear"), (Cosine(), "cosine")):
        ratio = train_ratio(denoiser, SOURCE, TARGET, method="gtl", schedule=given, members=1, **SHORT)
        assert ratio.schedule == name
        ratio.save(tmp_path / name)
        assert load_ratio(tmp_path / name).schedule == name
    with pytest.raises(UserError, match=r"trained on the schedule 'cosine', .*; give GuidedModel.*schedule='cosine'"):
        GuidedModel(denoiser, Guidance(ratio), 2)
    assert isinstance(GuidedModel(denoiser, Guidance(ratio), 2, schedule="cosine").noise, Cosine)


def test_strengths_of_numpy_are_numbers() -> None:
    ratio = TokenRatio(lambda x, t: torch.cat([(Q / P).log(), torch.zeros(1)]).expand(*x.shape, -1))
    found = select_gamma(exact, ratio, TARGET, np.linspace(0, 2, 5), mask_index=MASK)
    assert found.gamma == select_gamma(exact, ratio, TARGET, [0.0, 0.5, 1.0, 1.5, 2.0], mask_index=MASK).gamma
    one, same = (nelbo(exact, TARGET, Guidance(ratio, gamma), mask_index=MASK) for gamma in (np.float64(1), 1.0))
    assert one.nats_per_token == same.nats_per_token


def test_a_denoiser_that_reads_the_time_reads_that_of_its_schedule() -> None:
    """Of 200 tokens the masked share tells alpha_t to .2 or better; the two schedules' times differ by up to .3."""
    off: list[Tensor] = []

    def timed(x_t: Tensor, t: Tensor) -> Tensor:
        off.append((Cosine().alpha(t) - (x_t != 2).float().mean(-1)).abs())
        return torch.tensor([0.0, -1.0, -30.0]).expand(*x_t.shape, 3)

    def told(call: Callable[[], object]) -> float:
        off.clear()
        call()
        return float(torch.cat(off).mean())

    generator = torch.Generator().manual_seed(0)
    source, target = ((torch.rand(64, 200, generator=generator) < share).long() for share in (0.5, 0.1))
    silent = TokenRatio(lambda x, t: torch.zeros(*x.shape, 3))
    training: dict[str, Any] = {"steps": 4, "check_every": 2, "batch": 16, "progress": False, "method": "gtl-warm"}
    training |= {"members": 1, "borrowed": 0}
    for schedule, within in ((Cosine(), 0.05), (None, 1.0)):
        known: dict[str, Any] = {"mask_index": 2, "schedule": schedule}
        calls: list[Callable[[], object]] = [
            partial(nelbo, timed, target, draws=4, **known),
            partial(select_gamma, timed, silent, target, [0.0, 1.0], draws=4, **known),
            partial(train_ratio, Timed(timed), source, target, **known, **training),
        ]
        for call in calls:
            assert told(call) < within
            assert schedule is not None or told(call) > 0.08


class Timed(nn.Module):
    """A function as a module with a weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.shift = function, nn.Parameter(torch.zeros(3))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.function(x_t, t) + self.shift


def test_strings_take_a_tokenizer_which_says_mask_and_padding() -> None:
    from gtl_lightning.data.tokenizer import train_tokenizer

    source = [f"the sum of {n} terms" for n in range(30)]
    target = [f"a field of {n} photons moves" for n in range(30)]
    tokenizer = train_tokenizer([*source, *target], 512, "wordpiece")

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.zeros(*x_t.shape, 512)

    ratio = train_ratio(
        denoiser, source, target, tokenizer=tokenizer, steps=4, check_every=2, progress=False, network={"width": 8}
    )
    assert (ratio.mask_index, ratio.pad_index) == (tokenizer.mask_token_id, tokenizer.pad_token_id)
    assert nelbo(denoiser, target, Guidance(ratio), tokenizer=tokenizer).lengths.max() == ratio.length


def test_a_source_gets_a_head_on_its_features_and_anything_else_a_small_network() -> None:
    laws = Foreign().laws
    source = texts(P, 60, length=3)
    target = texts(Q, 60, length=3)
    ratio = train_ratio(Foreign(), source, target, steps=4, check_every=2, progress=False)
    assert ratio.method == "gtl-head" and ratio.mask_index == laws.mask_index
    assert train_ratio(exact, SOURCE, TARGET, **SHORT).method == "gtl"


def test_the_denoiser_is_left_as_it_was() -> None:
    denoiser = Own().train()
    before = deepcopy(denoiser.state_dict())
    ratio = train_ratio(denoiser, SOURCE, TARGET, method="gtl-warm", **SHORT)
    assert denoiser.training and all(module.training for module in denoiser.modules())
    assert all(torch.equal(before[name], value) for name, value in denoiser.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in denoiser.parameters())
    assert len(ratio.fits) == 2
    x = sample(denoiser, batch=3, length=2, mask_index=MASK, guidance=Guidance(ratio, gamma=0.5))
    assert x.shape == (3, 2) and (x != MASK).all()


def test_a_module_copies_itself_where_it_can() -> None:
    class Copies(Own):
        def trainable_copy(self, dropout: float | None = None) -> Copies:
            copy = Copies()
            copy.by_hand = dropout
            return copy

        def __deepcopy__(self, memo: Any) -> None:
            raise RuntimeError("not this way")

    source = Plain(Copies(), Ids(MASK, NO_PAD), 4)
    assert source.trainable_copy(0.3).network.by_hand == 0.3
    copy = Plain(Own(), Ids(MASK, NO_PAD), 4).trainable_copy()
    assert copy.network.drop.p == 0.5 and all(weight.requires_grad for weight in copy.parameters())


@pytest.mark.parametrize(("method", "denoiser"), [("gtl", Own()), ("gtl-warm", Own()), ("gtl-head", Foreign())])
def test_a_ratio_is_kept_and_read_back(method: str, denoiser: nn.Module, tmp_path: Path) -> None:
    source, target = texts(P, 60, length=3), texts(Q, 60, length=3)
    ratio = train_ratio(
        denoiser, source, target, method=method, steps=4, check_every=2, progress=False, mask_index=MASK
    )
    ratio.save(tmp_path / "ratio.safetensors")
    again = load_ratio(tmp_path / "ratio.safetensors", denoiser)
    t = torch.full((len(source),), 0.5)
    x_t = source.clone()
    x_t[:, 1] = MASK
    assert torch.equal(ratio.f(x_t, t), again.f(x_t, t))
    assert {**vars(ratio), "f": None} == {**vars(again), "f": None}
    if method == "gtl":
        assert load_ratio(tmp_path / "ratio.safetensors").method == "gtl"
        return
    with pytest.raises(UserError, match="give the one it was trained on"):
        load_ratio(tmp_path / "ratio.safetensors")
    if method == "gtl-warm":
        other = Own()
        with torch.no_grad():
            other.logits += 1
        with pytest.raises(UserError, match="trained on another denoiser"):
            load_ratio(tmp_path / "ratio.safetensors", other)


# Callbacks, a Trainer, stopping, resuming


class Counting(Callback):
    def __init__(self) -> None:
        self.steps, self.scores = 0, list[float]()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.steps += 1

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.scores.append(float(trainer.callback_metrics["val_score"]))


def test_callbacks_of_ones_own_are_called_and_may_stop() -> None:
    seen = Counting()
    ratio = train_ratio(exact, SOURCE, TARGET, **SHORT, callbacks=[seen])
    assert seen.steps == 8 and seen.scores == [row["score"] for row in ratio.fits[0].history]
    stop = EarlyStopping("val_score", stopping_threshold=1e9)
    stopped = train_ratio(exact, SOURCE, TARGET, **SHORT, callbacks=[stop])
    assert stopped.fits[0].steps == 4 and stopped.fits[0].history == stopped.fits[0].history[:1]


def test_a_callback_that_stops_between_checks_leaves_what_was_best() -> None:
    class At(Callback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= self.step

    assert train_ratio(exact, SOURCE, TARGET, **SHORT, callbacks=[At(6)]).fits[0].steps == 4
    with pytest.raises(UserError, match="stopped before its first check, at step 4"):
        train_ratio(exact, SOURCE, TARGET, **SHORT, callbacks=[At(2)])


@pytest.mark.parametrize("form", ["instance", "class", "function"])
def test_a_trainer_of_ones_own_trains_the_same(form: str) -> None:
    """Its devices, precision and callbacks stay; length and checks are the arguments': equal to the bit."""
    seen = Counting()

    class Mine(pl.Trainer):
        pass

    def make(**arguments: Any) -> pl.Trainer:
        return Mine(**{**arguments, "callbacks": [*arguments["callbacks"], seen]})

    instance = Mine(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[seen],
        enable_model_summary=False, max_epochs=1, max_steps=3,
    )  # fmt: skip
    trainer: Any = {"instance": instance, "class": Mine, "function": make}[form]
    plain = train_ratio(exact, SOURCE, TARGET, **SHORT)
    ratio = train_ratio(exact, SOURCE, TARGET, **SHORT, trainer=trainer)
    assert seen.steps == (0 if form == "class" else 8)
    assert [row["score"] for row in ratio.fits[0].history] == [row["score"] for row in plain.fits[0].history]
    for one, two in zip(plain.network.parameters(), ratio.network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_one_trainer_trains_one_network() -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(**quiet, enable_model_summary=False)
    with pytest.raises(UserError, match="gtl-warm trains 2 networks and a Trainer fits one; give members=1"):
        train_ratio(Own(), SOURCE, TARGET, method="gtl-warm", **SHORT, trainer=trainer)
    train_ratio(exact, SOURCE, TARGET, **SHORT, trainer=trainer)
    with pytest.raises(UserError, match="this Trainer has trained already"):
        train_ratio(exact, SOURCE, TARGET, **SHORT, trainer=trainer)


def test_training_stops_when_held_out_texts_gain_nothing_and_keeps_the_best() -> None:
    """Held-out texts of the source: every step towards the target is a loss on them, from the first check on."""
    own = {**SHORT, "steps": 200, "patience": 2, "lr": 0.05}
    ratio = train_ratio(exact, SOURCE, TARGET, held_out=SOURCE, **own)
    (fitted,) = ratio.fits
    assert fitted.steps == fitted.best_step + 2 * 4 < 200


def test_a_folder_makes_it_resumable(tmp_path: Path) -> None:
    one = train_ratio(exact, SOURCE, TARGET, **SHORT, folder=tmp_path)
    seen = Counting()
    again = train_ratio(exact, SOURCE, TARGET, **SHORT, folder=tmp_path, callbacks=[seen])
    assert seen.steps == 0 and again.fits == one.fits
    assert any(tmp_path.iterdir())


def test_every_ratio_of_the_registry_is_trained_or_says_that_it_needs_a_classifier() -> None:
    from gtl_lightning.methods import names

    source, target = texts(P, 60, length=3), texts(Q, 60, length=3)
    for method in names("ratio"):
        try:
            ratio = train_ratio(Foreign(), source, target, method=method, steps=2, check_every=2, progress=False)
        except UserError as error:
            assert "learns from a classifier" in str(error) and method.startswith("gtl-sequence"), method
        else:
            assert ratio.method == method and Guidance(ratio)


# What is refused, in one line


class Gives(nn.Module):
    """A denoiser that gives what it is told."""

    def __init__(self, *shape: int, value: float = 0.0) -> None:
        super().__init__()
        self.shape, self.value = shape, value

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.full((*x_t.shape, *self.shape), self.value)


def other(x_t: Tensor, t: Tensor) -> Tensor:
    """Of another law than `exact`."""
    return torch.cat([Q.log(), torch.tensor([-math.inf])]).expand(*x_t.shape, -1)


FOREIGN: dict[str, tuple[Any, Tensor, Tensor, dict[str, Any], str]] = {
    "a function of another law": (other, SOURCE, TARGET, {}, "denoiser"),
    "source texts": (exact, SOURCE[1:], TARGET, {}, "source_texts"),
    "target texts": (exact, SOURCE, TARGET[9:], {}, "target_texts, held_out"),
    "held-out texts": (exact, SOURCE, TARGET, {"held_out": TARGET[:30]}, "target_texts, held_out"),
    "a setting": (exact, SOURCE, TARGET, {"bce_weight": 0.5}, "settings"),
    "a size": (exact, SOURCE, TARGET, {"network": {"width": 24}}, "settings"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_gives_no_ratio_of_other_inputs(name: str, tmp_path: Path) -> None:
    """What was trained on other texts, beside another denoiser or with other settings is named and not returned."""
    train_ratio(exact, SOURCE, TARGET, **SHORT, folder=tmp_path)
    denoiser, source, target, options, parts = FOREIGN[name]
    with pytest.raises(UserError, match=rf"holds a fit with other settings \({parts}\); delete it"):
        train_ratio(denoiser, source, target, **SHORT, **options, folder=tmp_path)


def test_a_folder_tells_modules_by_their_weights(tmp_path: Path) -> None:
    one, two = Own(), Own()
    with torch.no_grad():
        two.logits += torch.tensor([1.0, 0.0, 0.0])
    again = train_ratio(one, SOURCE, TARGET, **SHORT, folder=tmp_path)
    assert train_ratio(deepcopy(one), SOURCE, TARGET, **SHORT, folder=tmp_path).fits == again.fits
    with pytest.raises(UserError, match=r"other settings \(denoiser\)"):
        train_ratio(two, SOURCE, TARGET, **SHORT, folder=tmp_path)


TERNARY = texts(P, 60, length=3).clamp(max=1)


class Small(nn.Embedding):
    """It forgot the mask."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().forward(x_t)


REFUSED = {
    "alike": (exact, SOURCE, SOURCE.flip(0), {}, "source_texts and target_texts are the same texts"),
    "no source": (exact, SOURCE[:0], TARGET, {}, "source_texts is empty"),
    "no target": (exact, SOURCE, [], {}, "target_texts is empty"),
    "one target": (exact, SOURCE, TARGET[:1], {}, "target_texts is one text; give at least 2"),
    "no held-out": (exact, SOURCE, TARGET, {"held_out": []}, "held_out is empty"),
    "one string": (exact, SOURCE, "a text", {}, "target_texts is one string"),
    "strings": (exact, ["a"], ["b"], {}, "source_texts holds strings; give tokenizer"),
    "mixed": (exact, ["a", [1]], ["b"], {}, "neither strings nor token ids"),
    "an empty text": (exact, [[1], []], TARGET, {}, "a text without tokens"),
    "fractions": (exact, SOURCE.float(), TARGET, {}, "numbers that are no token ids"),
    "three axes": (exact, SOURCE[None], TARGET, {}, "no Long[n,l]"),
    "two lengths": (exact, [[1], [1, 2]], TARGET, {}, "several lengths; give pad_index"),
    "one length each": (exact, SOURCE, TERNARY, {}, "differ in length; give pad_index"),
    "too long": (exact, SOURCE, TARGET, {"length": 1}, "holds a text of 2 tokens; length = 1"),
    "an id too large": (exact, SOURCE, TARGET + 3, {"mask_index": 3}, "target_texts"),
    "an id outside": (exact, SOURCE + 4, TARGET, {}, "source_texts holds token 6; ids must lie in 0..3"),
    "masks among them": (exact, SOURCE, TARGET + 1, {}, "target_texts holds the mask, id 3"),
    "no mask": (exact, SOURCE, TARGET, {"mask_index": None}, "nothing says which id is the mask"),
    "a mask too large": (exact, SOURCE, TARGET, {"mask_index": 9}, "mask_index = 9 is no id of the denoiser's 4"),
    "a mask below 0": (exact, SOURCE, TARGET, {"mask_index": -1}, "mask_index = -1 is no token id"),
    "another mask": (Foreign(), SOURCE, TARGET, {"mask_index": 7}, "mask_index = 7, but the mask of the denoiser"),
    "a padding too large": (exact, SOURCE, TARGET, {"pad_index": 9}, "pad_index = 9 is no id"),
    "another padding": (
        Foreign(),
        TERNARY,
        TERNARY[1:],
        {"pad_index": 2},
        "but that of the denoiser (Foreign) is None",
    ),
    "padding alone": (exact, [[0, 1], [2, 2]], TARGET, {"pad_index": 2}, "source_texts: token sequence 1 is empty"),
    "NaN": (Gives(4, value=math.nan), SOURCE, TARGET, {}, "the denoiser (Gives) gave NaN"),
    "no vocabulary": (Gives(), SOURCE, TARGET, {}, "gave a tensor of shape [2, 2]"),
    "two vocabularies": (Gives(4, 4), SOURCE, TARGET, {}, "gave a tensor of shape [2, 2, 4, 4]"),
    "no tensor": (lambda x_t, t: None, SOURCE, TARGET, {}, "gave a NoneType"),
    "one argument": (lambda x_t: exact(x_t, x_t), SOURCE, TARGET, {}, "is called with 2 arguments; it takes (x_t)"),
    "a module of one argument": (nn.Embedding(4, 4), SOURCE, TARGET, {}, "(Embedding) is called with 2 arguments"),
    "a mask that is padding": (exact, SOURCE, TARGET, {"pad_index": MASK}, "mask_index and pad_index are both 3"),
    "texts that end": (exact, iter(SOURCE), TARGET, {}, "give a list of texts"),
    "a table of texts": (exact, {"text": [1]}, TARGET, {}, "source_texts is a dict; give a list of texts"),
    "no texts": (exact, SOURCE, None, {}, "target_texts is a NoneType; give a list of texts"),
    "no seed": (exact, SOURCE, TARGET, {"seed": -1}, "seed = -1 is no seed"),
    "a seed too large": (exact, SOURCE, TARGET, {"seed": 2**32}, "is no seed"),
    "no callback": (exact, SOURCE, TARGET, {"callbacks": "x"}, "callbacks must be a list"),
    "no logger": (exact, SOURCE, TARGET, {"logger": "x"}, "logger is a str"),
    "no trainer": (exact, SOURCE, TARGET, {"trainer": "x"}, "trainer is a str"),
    "no such accelerator": (exact, SOURCE, TARGET, {"accelerator": "hpu2"}, "Lightning makes no Trainer"),
    "no function": (3, SOURCE, TARGET, {}, "the denoiser is a int"),
    "an embedding too small": (Small(), SOURCE, TARGET, {}, "refuses mask_index = 3"),
    "no method": (exact, SOURCE, TARGET, {"method": "gtl-nosuch"}, "method = 'gtl-nosuch' is no ratio"),
    "no ratio": (exact, SOURCE, TARGET, {"method": "finetune"}, "method = 'finetune' is no ratio; choose one of gtl"),
    "no setting": (exact, SOURCE, TARGET, {"nosuch": 1}, "gtl: nosuch: "),
    "a bad setting": (exact, SOURCE, TARGET, {"bce_weight": -1.0}, "gtl: bce_weight: "),
    "no steps": (exact, SOURCE, TARGET, {"steps": 0}, "gtl: steps: "),
    "borrowing": (exact, SOURCE, TARGET, {"borrowed": 5}, "gtl learns from a classifier"),
    "a head on nothing": (exact, SOURCE, TARGET, {"method": "gtl-head"}, "gtl-head reads hidden states"),
    "a copy of nothing": (exact, SOURCE, TARGET, {"method": "gtl-warm"}, "no copy of it can be trained"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_one_line(name: str) -> None:
    denoiser, source, target, options, words = REFUSED[name]
    with pytest.raises(UserError) as refused:
        train_ratio(denoiser, source, target, **{**SHORT, **options})
    line = str(refused.value)
    assert words in line and "\n" not in line, line


def test_a_module_that_cannot_be_copied_is_one_line() -> None:
    class Held(Own):
        def __deepcopy__(self, memo: Any) -> None:
            raise RuntimeError("it holds a stream")

    with pytest.raises(
        UserError, match=r"the denoiser \(Held\) cannot be copied \(it holds a stream\); give it a method"
    ):
        train_ratio(Held(), SOURCE, TARGET, method="gtl-warm", **SHORT)


def pair_of_logits(x_t: Tensor, t: Tensor) -> Tensor:
    """A classifier of two classes, where one number a text is asked for."""
    return torch.zeros(len(x_t), 2)


def test_measures_refuse_in_one_line() -> None:
    ratio = TokenRatio(lambda x_t, t: torch.zeros(*x_t.shape, 4))
    wide = TokenRatio(lambda x_t, t: torch.zeros(*x_t.shape, 9))
    own = {"mask_index": MASK}
    for call, words in (
        (lambda: select_gamma(exact, ratio, TARGET, [], **own), "gammas is empty"),
        (lambda: select_gamma(exact, ratio, TARGET, [-1.0], **own), "gammas holds -1.0"),
        (lambda: select_gamma(exact, wide, TARGET, **own), "knows 9 tokens, the denoiser 4"),
        (lambda: select_gamma(exact, ratio, TARGET, 1.0, **own), "gammas is a float; give a list"),  # type: ignore[arg-type]
        (lambda: select_gamma(exact, ratio, TARGET, ["1"], **own), "gammas holds '1'"),  # type: ignore[list-item]
        (lambda: nelbo(exact, [], **own), "texts is empty"),
        (lambda: nelbo(None, TARGET, **own), "the denoiser is a NoneType"),  # type: ignore[arg-type]
        (lambda: nelbo(exact, TARGET, exact, **own), "guidance is a function, not a Guidance"),  # type: ignore[arg-type]
        (lambda: nelbo(exact, TARGET, seed=-1, **own), "seed = -1 is no seed"),
        (lambda: nelbo(exact, TARGET, batch=0, **own), "needs at least 1 of each"),
        (lambda: nelbo(exact, TARGET, draws=1.5, **own), "draws must be a whole number"),  # type: ignore[arg-type]
        (lambda: advise(SOURCE, TARGET, seed=-1, **own), "seed = -1 is no seed"),
        (lambda: advise(SOURCE, TARGET, pair_of_logits, **own), "gave a tensor of shape [64, 2]; let it return one"),
        (lambda: advise(SOURCE, TARGET, lambda x_t: x_t[:, 0], **own), "is called with 2 arguments"),  # type: ignore[arg-type, misc]
        (lambda: mauve("a" * 30, ["b"] * 30), "texts must be a list of strings"),
        (lambda: mauve(["a"] * 30, [None] * 30, featurizer=len), "real_texts must be a list of strings"),  # type: ignore[list-item, arg-type]
        (lambda: nelbo(exact, TARGET), "nothing says which id is the mask"),
        (lambda: nelbo(Gives(4, value=math.nan), TARGET, **own), "gave NaN"),
        (lambda: nelbo(exact, TARGET, mask_index=7), "mask_index = 7 is no id"),
        (lambda: advise(SOURCE, SOURCE, **own), "the same texts"),
        (lambda: advise(SOURCE, TARGET[:1], progress=False, **own), "target_texts is one text"),
        (lambda: mauve(["a"], ["b"]), "needs at least 20 a side"),
        (lambda: mauve(["a"] * 30, ["b"] * 30, featurizer="no/such/model"), "featurizer 'no/such/model'"),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert words in str(refused.value) and "\n" not in str(refused.value)


def test_the_package_shows_its_public_names() -> None:
    assert set(dir(gtl_lightning)) == {*gtl_lightning.__all__, "__version__"}
    for name in dir(gtl_lightning):
        assert getattr(gtl_lightning, name)
    assert sorted(gtl_lightning.__all__) == gtl_lightning.__all__
    assert set(gtl_lightning._HOMES) == set(gtl_lightning.__all__)


def test_a_masked_denoiser_of_ours_is_a_source_and_used_as_it_is() -> None:
    from gtl_lightning.api.reading import as_source

    with seeded(0):
        denoiser = MaskedDenoiser(BackboneConfig(5, 4, 8, 1, 2, mask_index=3, pad_index=4))
    assert as_source(denoiser, Ids(3, 4), 4) is denoiser
    assert isinstance(as_source(lambda x, t: denoiser(x, t), Ids(3, 4), 4), Plain)
