"""Denoisers of other people as sources: the logits of plain forward passes, the law's identities, no code run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from gtl_lightning import Guidance, TokenRatio, UserError, load_denoiser, sample
from gtl_lightning.core.protocols import Look, Source
from gtl_lightning.data.hub import NATIVE
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.lora import add_lora, merge_lora
from gtl_lightning.networks import FeatureTokenRatio, load_network, save_network
from gtl_lightning.networks.adapters.decoders import native
from gtl_lightning.networks.adapters.masked_lm import MaskedLMDenoiser, framed, masked_lms
from gtl_lightning.networks.adapters.mdlm import LEAST
from gtl_lightning.networks.adapters.model import ModelDenoiser
from tests.adapters_kit import ROWS, bert, llada, mdlm, plain_bert, qwen

CLS, SEP, MASK = 2, 3, 4
ROW = torch.tensor([7, 9, 4, 12, 4, 8])
"""With masks where the mask is 4; replaced elsewhere."""
PUBLISHED: dict[str, Callable[[Path], tuple[dict[str, Tensor], Any]]] = {
    "llada": llada,
    "dream": lambda folder: qwen(folder, "Dream"),
    "dllm": lambda folder: qwen(folder, "a2d-qwen3"),
    "mdlm": mdlm,
}


def opened(kind: str, folder: Path) -> tuple[ModelDenoiser, Callable[[Tensor], Tensor]]:
    """A denoiser of a published layout, and (Long[l]) -> Float[l,rows], the reference logits at each token."""
    if kind == "bert":
        bert(folder)
        weights = load_file(folder / "model.safetensors")
        ends = (torch.tensor([CLS]), torch.tensor([SEP]))
        return load_denoiser(folder), lambda ids: plain_bert(torch.cat([ends[0], ids, ends[1]]), weights)[1:-1]
    _, plain = PUBLISHED[kind](folder)
    made = load_denoiser(folder, tokenizer=f"{folder}-words" if kind == "mdlm" else None)
    if kind == "dream":  # the state before a token predicts it; the first is predicted from the start
        return made, lambda ids: plain(torch.cat([torch.tensor([1]), ids]))[:-1]
    return made, plain


def noisy(made: ModelDenoiser) -> Tensor:
    """Long[6] with two masks."""
    return torch.where(ROW == MASK, made.mask_index, ROW)


every = pytest.mark.parametrize("kind", ["bert", *PUBLISHED])


@every
def test_its_logits_are_those_of_a_plain_forward_pass(kind: str, tmp_path: Path) -> None:
    made, plain = opened(kind, tmp_path / "model")
    x_t = noisy(made)
    own = plain(x_t)
    with torch.no_grad():
        h = made.encode(x_t[None], torch.ones(1))
        found = made.logits(h)[0]
        rows = min(made.vocab_size, own.shape[1])
        torch.testing.assert_close(found[:, :rows], own[:, :rows], atol=1e-5, rtol=1e-5)
        assert isinstance(made, Source) and made.width == h.shape[-1]
        tokens = torch.tensor([[5, 6, 7, 8, 9, 10]])
        torch.testing.assert_close(made.logits(h, tokens)[0], found.gather(-1, tokens[0][:, None])[:, 0])
    assert not (tmp_path / "executed").exists()


@every
def test_its_law_is_one_over_what_texts_have_and_carries_over(kind: str, tmp_path: Path) -> None:
    made, _ = opened(kind, tmp_path / "model")
    x_t = noisy(made)[None]
    never = [made.mask_index, made.pad_index, *made.reading.excluded]
    with torch.no_grad():
        log_p = made(x_t, torch.ones(1))
        law = made.decode(made.encode(x_t, torch.ones(1)))
    torch.testing.assert_close(law.logsumexp(-1), torch.zeros(1, 6), atol=1e-5, rtol=0)
    assert (law[..., never] == -math.inf).all() and law.isfinite().sum(-1).eq(made.vocab_size - len(set(never))).all()
    kept = x_t[0] != made.mask_index
    assert torch.equal(log_p[0, kept].argmax(-1), x_t[0, kept]) and (log_p[0, kept].amax(-1) == 0).all()
    assert torch.equal(log_p[0, ~kept], law[0, ~kept])
    if kind == "bert":
        assert CLS in made.reading.excluded and SEP not in never  # a text may end; none begins anew


@every
@pytest.mark.parametrize("left", [True, False])
def test_a_padded_row_is_the_row_alone(kind: str, left: bool, tmp_path: Path) -> None:
    made, _ = opened(kind, tmp_path / "model")
    made.double()
    x_t, t = noisy(made), torch.ones(3, dtype=torch.double)
    rows = torch.stack([x_t, x_t.roll(1), x_t.flip(0)])
    if kind == "bert":
        rows[0, -1], rows[1, -1] = SEP, SEP  # a row that has its end, beside one whose end is put behind it
    for row, length in ((1, 4), (2, 1)):
        kept = rows[row, 6 - length :].clone()
        rows[row] = made.pad_index
        rows[row, slice(6 - length, 6) if left else slice(length)] = kept
    with torch.no_grad():
        together = made.encode(rows, t)
        for row, length in enumerate((6, 4, 1)):
            here = slice(6 - length, 6) if left else slice(length)
            alone = made.encode(rows[row : row + 1, here], t[:1])
            torch.testing.assert_close(together[row, here], alone[0], atol=1e-10, rtol=0)
        assert made.decode(together).isfinite().any(-1).all()
        places = torch.tensor([[0, 5], [2, 4], [5, 1]])
        assert torch.equal(made.encode(rows, t, Look(places)), together.take_along_dim(places[..., None], 1))


@every
def test_gamma_zero_is_unguided_to_the_bit_and_only_needed_positions_meet_the_vocabulary(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = opened(kind, tmp_path / "model")
    before, ratio, met = made.fingerprint(), FeatureTokenRatio(made, rank=2), []
    for weight in ratio.parameters():
        nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    linear = functional.linear

    def counted(h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if len(weight) == made.vocab_size and weight.shape[1] == made.width:
            met.append(h.shape[:-1].numel())
        return linear(h, weight, bias)

    monkeypatch.setattr(functional, "linear", counted)

    def draw(guidance: Guidance | None) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return sample(made, mask_index=made.mask_index, batch=8, length=6, guidance=guidance, generator=generator)

    plain = draw(None)
    assert met == [8] * 6  # one position a step and row, whatever the length
    met.clear()
    assert torch.equal(draw(Guidance(TokenRatio(ratio), gamma=0.0)), plain)
    assert met == [8] * 6  # guided by a head, no position meets it twice
    assert not torch.equal(draw(Guidance(TokenRatio(ratio), gamma=1.0)), plain)
    assert not torch.isin(plain, torch.tensor([made.mask_index, made.pad_index, *made.reading.excluded])).any()
    assert made.fingerprint() == before


@every
def test_copies_train_whole_or_by_low_rank_and_are_stored_and_read_again(kind: str, tmp_path: Path) -> None:
    made, _ = opened(kind, tmp_path / "model")
    x = torch.randint(5, 20, (16, 6), generator=torch.Generator().manual_seed(0))
    before = made.fingerprint()
    t = torch.ones(16)
    for adapted in (made.trainable_copy(dropout=0.0), add_lora(made, rank=4, alpha=8.0)):
        with torch.no_grad():
            assert torch.equal(adapted.eval()(x, t), made(x, t))
        module = DenoiserModule(cast(nn.Module, adapted), OptimiserConfig())
        trained = [weight for weight in module.parameters() if weight.requires_grad]
        optimiser = torch.optim.Adam(trained, lr=0.02)
        losses = []
        for _ in range(12):
            optimiser.zero_grad()
            loss = module.loss({"x_0": x}, torch.Generator().manual_seed(0))
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.95 * losses[0]
    merged = merge_lora(adapted)
    save_network(tmp_path / "tuned.safetensors", merged)
    again = cast(ModelDenoiser, load_network(tmp_path / "tuned.safetensors"))
    x_t = torch.full_like(x, made.mask_index)
    with torch.no_grad():
        assert torch.equal(again(x_t, t), merged(x_t, t)) and not torch.equal(again(x_t, t), made(x_t, t))
    assert type(again) is type(made) and again.reading == made.reading and made.fingerprint() == before
    merged.save_pretrained(tmp_path / "shared")
    with torch.no_grad():
        assert torch.equal(type(made).from_pretrained(tmp_path / "shared")(x_t, t), merged(x_t, t))


@every
def test_in_half_precision_the_law_is_in_single_and_a_head_trains(kind: str, tmp_path: Path) -> None:
    made, _ = opened(kind, tmp_path / "model")
    x_t, t = noisy(made)[None], torch.ones(1)
    with torch.no_grad():
        own = made(x_t, t)
        made.to(torch.bfloat16)
        log_p = made(x_t, t)
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp(), own.exp(), atol=0.1, rtol=0)
    torch.testing.assert_close(log_p.logsumexp(-1), torch.zeros(1, 6), atol=1e-5, rtol=0)
    ratio = FeatureTokenRatio(made, rank=2)
    ratio(x_t, t).sum().backward()
    assert {weight.grad.dtype for weight in ratio.parameters() if weight.grad is not None} == {torch.float32}


@pytest.mark.parametrize("conditioned", [False, True])
def test_mdlm_reads_the_noise_level_only_where_its_configuration_says_so(conditioned: bool, tmp_path: Path) -> None:
    _, plain = mdlm(tmp_path / "model", conditioned)
    made = load_denoiser(tmp_path / "model", tokenizer=str(tmp_path / "model-words"))
    x_t = noisy(made)
    rows = made.vocab_size - 1  # the padding is an id more, which it was trained without
    assert made.mask_index == rows - 1 and made.pad_index == rows
    with torch.no_grad():
        for t in (0.3, 1.0):
            sigma = -math.log(1 - (1 - LEAST) * t) if conditioned else 0.0
            found = made.logits(made.encode(x_t[None], torch.tensor([t])))[0, :, :rows]
            torch.testing.assert_close(found, plain(x_t, sigma), atol=1e-5, rtol=1e-5)
    if conditioned:
        with pytest.raises(UserError, match="reads the noise level; give t"):
            made.encode(x_t[None])


def test_the_padding_of_llada_and_dream_is_no_longer_their_end(tmp_path: Path) -> None:
    """Their files say one id for both, so that a text's end could not be told from what fills up a batch."""
    for kind in ("llada", "dream"):
        made, _ = opened(kind, tmp_path / kind)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        assert made.mask_index == config["mask_token_id"] == 26 and made.pad_index == 27
        assert config["pad_token_id"] == config["eos_token_id"] == 1 and 1 not in made.reading.excluded
        assert made.vocab_size == 28 < ROWS  # rows that no token has are no ids


def test_what_is_shifted_is_said_by_the_kind_or_by_the_caller(tmp_path: Path) -> None:
    assert (
        opened("dream", tmp_path / "dream")[0].reading.shift and not opened("dllm", tmp_path / "dllm")[0].reading.shift
    )
    assert not load_denoiser(tmp_path / "dream", shift=False).reading.shift
    assert load_denoiser(tmp_path / "dllm", shift=True).reading.start_index == 1


def test_ends_stand_around_each_row_and_never_twice_behind() -> None:
    x = torch.tensor([[7, 8, 9], [7, 3, 0], [7, 0, 0]])
    both = torch.tensor([[2, 7, 8, 9, 3], [2, 7, 3, 0, 0], [2, 7, 3, 0, 0]])
    assert torch.equal(framed(x, 2, 3, 0), both)
    assert torch.equal(framed(x, None, 3, 0), both[:, 1:]) and torch.equal(framed(x, None, None, 0), x)
    assert torch.equal(framed(x, 2, None, 0), torch.tensor([[2, 7, 8, 9], [2, 7, 3, 0], [2, 7, 0, 0]]))


READ = (
    "albert", "bert", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "esm",
    "eurobert", "megatron-bert", "modernbert", "mpnet", "roberta", "roberta-prelayernorm", "roformer", "squeezebert",
    "xlm-roberta",
)  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_masked_language_models_give_their_own_logits_between_their_ends(kind: str, tmp_path: Path) -> None:
    """The whole model of transformers with [CLS] and [SEP] around; padded on either side as alone."""
    model = bert(tmp_path, kind)
    made = load_denoiser(tmp_path)
    x = ROW[None]
    ends = torch.cat([torch.tensor([[CLS]]), x, torch.tensor([[SEP]])], 1)
    with torch.no_grad():
        own = model(ends).logits[:, 1:-1]
        torch.testing.assert_close(made.logits(made.encode(x)), own[..., : made.vocab_size], atol=1e-5, rtol=1e-5)
        for pads in ((0, 3), (3, 0)):
            padded = torch.cat([nn.functional.pad(x, pads, value=0), torch.randint(5, 20, (1, 9))])
            found = made.encode(padded)[:1, pads[0] : pads[0] + 6]
            torch.testing.assert_close(found, made.encode(x), atol=2e-5, rtol=1e-4)
    assert made.pad_index == 0 and (made.reading.start_index, made.reading.end_index) == (CLS, SEP)


@pytest.mark.parametrize(("kind", "why"), [("fnet", "depend on padding"), ("bart", "left to right")])
def test_models_without_a_law_of_a_row_alone_are_refused(kind: str, why: str, tmp_path: Path) -> None:
    bert(tmp_path, kind, **({"d_model": 16} if kind == "bart" else {}))
    with pytest.raises(UserError, match=why):
        load_denoiser(tmp_path)


def test_every_kind_of_the_table_has_an_adapter_and_its_tokenizer() -> None:
    """docs/method.md's table: what may bring code is what is read without."""
    assert {"bert", "roberta", "modernbert", "distilbert", "esm", "eurobert"} <= masked_lms().keys()
    assert {kind for kind in NATIVE if native({"model_type": kind})} == NATIVE.keys() - {"mdlm"}


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    bert(tmp_path / "roberta", "roberta")
    most = {"bert": 22, "roberta": 21}  # 24 positions, two ends, and one that RoBERTa leaves out
    for name, length in most.items():
        made = cast(MaskedLMDenoiser, load_denoiser(tmp_path / name))
        assert made.encode(torch.full((1, length), 7)).shape[1] == length
        with pytest.raises(UserError, match=f"texts of {length + 1} tokens .* at most {length}"):
            made.encode(torch.full((1, length + 1), 7))
