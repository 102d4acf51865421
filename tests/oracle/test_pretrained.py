"""Decoders of other libraries as denoisers: their own logits, their padding, a source like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from gtl_lightning import Guidance, TokenRatio, UserError, load_denoiser, load_pretrained, sample
from gtl_lightning.bench.conversion import OwnLoss, conversion
from gtl_lightning.bench.conversion import main as time_conversion
from gtl_lightning.core.protocols import EVERYWHERE, Look, Source
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.continuation import ContinuationModule
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.lora import add_lora, merge_lora
from gtl_lightning.networks import FeatureTokenRatio, ids_of, log_prob_of
from gtl_lightning.networks.adapters.model import Reading
from gtl_lightning.networks.families import FAMILIES, positions
from gtl_lightning.networks.pretrained import PretrainedDenoiser
from gtl_lightning.papers.ar2diff import (
    annealed_mask,
    annealed_share,
    begun,
    causal_mask,
    full_mask,
    prefix_mask,
)
from tests.oracle.test_looks import MODES
from tests.pretrained_kit import MASK, PAD, POSITIONS, ROWS, START, decoder, denoiser, texts

KINDS = tuple(FAMILIES)
every = pytest.mark.parametrize("kind", KINDS)
either = pytest.mark.parametrize("sink", [True, False])
L = 7


def upper(mask: Tensor) -> Tensor:
    return mask[..., *torch.triu_indices(*mask.shape[-2:], 1)]


@every
@either
def test_causal_shifted_and_unmasked_it_gives_the_models_own_logits_exactly(kind: str, sink: bool) -> None:
    x = texts()
    with torch.no_grad():
        own = decoder(kind)(begun(x, START, PAD), use_cache=False).logits[:, :L]
        made = denoiser(kind, sink=sink)
        h = made.encode(x, attention=causal_mask(made.reads(L)))
        assert torch.equal(made.logits(h), own)
        torch.testing.assert_close(made.logits(h, x), own.gather(-1, x[..., None]).squeeze(-1))
        log_p = own.log_softmax(-1).gather(-1, x[..., None]).squeeze(-1)
        torch.testing.assert_close(made.causal_log_prob(x), log_p)
        assert not torch.allclose(made.logits(made.encode(x)), own, atol=1e-2)  # it reads both sides


@every
def test_unshifted_it_reads_the_tokens_alone_from_both_sides(kind: str) -> None:
    x = texts()
    made, again = denoiser(kind, shift=False), decoder(kind)
    again.config.is_causal = False
    with torch.no_grad():
        assert torch.equal(made.logits(made.encode(x)), again(x, use_cache=False).logits)
        assert torch.equal(made.encode(x, attention=full_mask(L)), made.encode(x))
        changed = x.clone()
        changed[:, -1] = (x[:, -1] + 1) % PAD
        assert not torch.allclose(made.encode(changed)[:, 0], made.encode(x)[:, 0])


@every
def test_read_causally_an_unshifted_denoiser_is_the_decoder_as_well(kind: str) -> None:
    """Its states predict their own tokens as a denoiser; a decoder's predict the next, whatever it is made into."""
    x = texts()
    x[0, 4:] = PAD
    with torch.no_grad():
        own, made = denoiser(kind).causal_log_prob(x), denoiser(kind, shift=False).causal_log_prob(x)
        assert torch.equal(made, own)
        logits = decoder(kind)(begun(x[1:], START, PAD), use_cache=False).logits[:, :L]
        torch.testing.assert_close(made[1:], logits.log_softmax(-1).gather(-1, x[1:, :, None]).squeeze(-1))


WINDOWED = {"use_sliding_window": True, "sliding_window": L + 1, "max_window_layers": 0}


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"shift": False}, {"sink": True}])
def test_a_window_changes_nothing_within_it_and_no_text_is_read_past_it(kind: str, options: dict[str, bool]) -> None:
    """transformers applies it without a mask and not under one of four dimensions: past it there would be two laws."""
    windowed, plain = denoiser(kind, **options, **WINDOWED), denoiser(kind, **options)
    x = texts(length=L + 1 - options.get("shift", True))
    with torch.no_grad():
        assert torch.equal(windowed(x), plain(x))
        padded = torch.nn.functional.pad(x[:, :-2], (0, 2), value=PAD)
        torch.testing.assert_close(windowed(padded)[:, :-2], plain(x[:, :-2]), atol=1e-5, rtol=0)
        with pytest.raises(UserError, match=f"the {L + 1} positions that some layers look back in this {kind}; use"):
            windowed(texts(length=L + 2))
    assert windowed.most == x.shape[1]


def test_no_text_is_longer_than_rotations_that_are_not_stretched() -> None:
    """transformers stretches them by the longest row of a batch: the law of a row would be that of its company."""
    said = {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 4}
    said |= {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    config = LlamaConfig(max_position_embeddings=16, rope_parameters=said)
    assert positions(config) == 4 and positions(LlamaConfig(max_position_embeddings=16)) == 16


@every
@either
def test_suffix_masks_give_the_conditionals_and_their_sum_the_likelihood(kind: str, sink: bool) -> None:
    """Causal attention, the suffix masked: the law at the first mask is the model's own, in fp64 to 1e-10."""
    made, x = denoiser(kind, excluded=(), sink=sink).double(), texts()
    attention = causal_mask(made.reads(L))
    with torch.no_grad():
        own = made.causal_log_prob(x)
        for first in range(L):
            x_t = torch.where(torch.arange(L) >= first, MASK, x)
            h = made.encode(x_t, attention=attention)[:, first]
            log_p = made.logits(h).log_softmax(-1).gather(-1, x[:, first : first + 1]).squeeze(-1)
            torch.testing.assert_close(log_p, own[:, first], atol=1e-10, rtol=0)


@every
@pytest.mark.parametrize(("shift", "sink"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("left", [True, False])
def test_rows_of_a_padded_batch_are_those_that_stand_alone(kind: str, shift: bool, sink: bool, left: bool) -> None:
    made, x = denoiser(kind, shift, sink=sink).double(), texts()
    x[0, 2] = MASK
    lengths = (L, 4, 1)
    for row, length in enumerate(lengths):
        x[row, : L - length] = PAD if left else x[row, : L - length]
        x[row, length:] = x[row, length:] if left else PAD
    causal = causal_mask(made.reads(L))
    with torch.no_grad():
        together, read = made.encode(x), made.encode(x, attention=causal)
        for row, length in enumerate(lengths):
            here = slice(L - length, L) if left else slice(0, length)
            alone = x[row : row + 1, here]
            torch.testing.assert_close(together[row, here], made.encode(alone)[0], atol=1e-12, rtol=0)
            one = made.encode(alone, attention=causal_mask(made.reads(length)))[0]
            torch.testing.assert_close(read[row, here], one, atol=1e-12, rtol=0)
        assert made.decode(together).isfinite().any(-1).all()


@every
@either
def test_a_decoder_that_comes_with_another_attention_reads_the_same_masks(kind: str, sink: bool) -> None:
    """transformers' `eager` adds what it is handed: under a mask of booleans everything would still be read."""
    made, x = denoiser(kind, sink=sink), texts()
    other = PretrainedDenoiser(decoder(kind, attn_implementation="eager"), made.reading).eval()
    x[1, 5:] = PAD
    with torch.no_grad():
        for attention in (None, causal_mask(made.reads(L))):
            assert torch.equal(other.encode(x, attention=attention), made.encode(x, attention=attention))


@every
def test_prefix_states_do_not_depend_on_what_follows(kind: str) -> None:
    made, x = denoiser(kind), texts()
    attention = prefix_mask(full_mask(made.reads(L)), torch.full((len(x),), 4))
    other = torch.where(torch.arange(L) < 3, x, texts(seed=1))
    with torch.no_grad():
        a, b = made.encode(x, attention=attention), made.encode(other, attention=attention)
    assert torch.equal(a[:, :3], b[:, :3]) and not torch.allclose(a[:, 4:], b[:, 4:])


@every
def test_the_start_that_reads_itself_alone_is_the_same_for_every_text_masked_or_not(kind: str) -> None:
    """To the bit, under any attention, and the state that the causal model has of it; what follows reads both sides."""
    made, other, x = denoiser(kind, sink=True), denoiser(kind), texts()
    n = made.reads(L)
    some = annealed_mask(n, 1, 4, torch.Generator().manual_seed(0))
    rows = prefix_mask(full_mask(n), torch.tensor([0, 3, 5]))
    masked = torch.where(torch.arange(L) % 2 == 0, MASK, texts(seed=1))
    with torch.no_grad():
        own = other.encode(x, attention=causal_mask(n))[:, 0]
        for attention in (None, full_mask(n), some, rows, causal_mask(n)):
            h = made.encode(x, attention=attention)
            assert torch.equal(h[:, 0], own)
            assert torch.equal(made.encode(masked, attention=attention)[:, 0], own)
        assert torch.equal(made.encode(x, attention=full_mask(n)), made.encode(x))
        assert not torch.allclose(other.encode(x)[:, 0], own, atol=1e-2)
        changed = x.clone()
        changed[:, -1] = (x[:, -1] + 1) % PAD
        assert not torch.allclose(made.encode(changed)[:, 1], made.encode(x)[:, 1])


@every
@pytest.mark.parametrize("left", [True, False])
def test_read_causally_nothing_is_changed_by_it(kind: str, left: bool) -> None:
    made, other, x = denoiser(kind, sink=True), denoiser(kind), texts()
    with torch.no_grad():
        assert torch.equal(made.causal_log_prob(x), other.causal_log_prob(x))
        x[0, : 3 if left else 0] = PAD
        x[1, 7 if left else 3 :] = PAD
        assert torch.equal(made.causal_log_prob(x), other.causal_log_prob(x))
        assert not torch.allclose(made.encode(x), other.encode(x), atol=1e-2)


def test_its_law_has_neither_mask_nor_padding_nor_what_no_text_has() -> None:
    made, x = denoiser("llama", excluded=(0, 5)), texts()
    x_t = torch.where(torch.arange(L) % 2 == 0, MASK, x)
    assert isinstance(made, Source) and ids_of(made) == (MASK, PAD)
    with torch.no_grad():
        log_p = made(x_t, torch.ones(3))
        h = made.encode(x_t)
    assert (log_p[:, ::2][..., [0, 5, MASK, PAD]] == -torch.inf).all()
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, L))
    assert torch.equal(log_p[:, 1::2].argmax(-1), x[:, 1::2])  # carried over
    assert (log_p[:, 1::2].amax(-1) == 0).all()
    at = x_t == MASK
    torch.testing.assert_close(log_prob_of(made, h[at], x[at]), log_p[at].gather(-1, x[at][:, None]).squeeze(-1))
    places = torch.tensor([[0, 6], [2, 4], [5, 1]])
    assert torch.equal(made.encode(x_t, None, Look(places)), h.take_along_dim(places[..., None], 1))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_at_every_step_the_model_is_handed_the_annealed_share(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table that arrives in transformers: all below the diagonal, above it the share; then none, which is all."""
    seen: list[Any] = []
    made, x = denoiser(kind), texts(4, 20)
    made.model.base_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given.get("attention_mask")), with_kwargs=True
    )
    module = ContinuationModule(made, anneal_steps=5)
    shares = []
    for step in range(6):
        monkeypatch.setattr(ContinuationModule, "global_step", step)
        seen.clear()
        for draw in range(40):
            module.loss({"x_0": x}, torch.Generator().manual_seed(draw))
        if step < 4:
            masks = torch.cat(seen)
            assert masks.shape == (40, 1, 21, 21) and (masks | ~causal_mask(21)).all()
            shares.append(float(upper(masks).double().mean()))
            bound = 4 * (0.25 / (40 * 210)) ** 0.5
            assert shares[-1] == pytest.approx(annealed_share(step, 5), abs=bound)
        else:
            assert seen == [None] * 40
    assert shares == sorted(shares)
    full = annealed_mask(21, 4, 5, None)
    with torch.no_grad():
        assert torch.equal(made.encode(x, attention=full), made.encode(x))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_masks_that_the_model_is_handed_have_the_start_read_itself_alone(kind: str) -> None:
    """One for all rows without padding; behind padding its row is where it stands; all else is as it was asked for."""
    seen: list[Tensor] = []
    made, x = denoiser(kind, sink=True), texts()
    made.model.base_model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["attention_mask"]), with_kwargs=True
    )
    n, alone = made.reads(L), torch.eye(made.reads(L), dtype=torch.bool)
    some = annealed_mask(n, 2, 4, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for attention in (full_mask(n), some, causal_mask(n)):
            made.encode(x, attention=attention)
            (mask,) = seen.pop()[:, 0]  # one for the batch
            assert torch.equal(mask[0], alone[0]) and torch.equal(mask[1:], attention[1:])
        x[0, :3], x[1, 4:] = PAD, PAD
        made.encode(x, attention=some)
    masks = seen.pop()[:, 0]
    valid = begun(x, START, PAD) != PAD
    for mask, real, place in zip(masks, valid, (3, 0, 0), strict=True):
        assert torch.equal(mask[place], alone[place])
        others = real & (torch.arange(n) != place)
        assert torch.equal(mask[others], (some & real)[others] | alone[others])


@pytest.mark.parametrize("name", MODES)
def test_frozen_under_a_ratio_gamma_zero_is_unguided_to_the_bit(name: str) -> None:
    options, _ = MODES[name]
    made = denoiser("qwen3")
    before = made.fingerprint()
    ratio = FeatureTokenRatio(made, rank=2)
    with torch.no_grad():
        for weight in ratio.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(1))

    def draw(guidance: Guidance | None) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return sample(made, mask_index=MASK, batch=16, length=L, guidance=guidance, generator=generator, **options)

    plain = draw(None)
    assert torch.equal(draw(Guidance(TokenRatio(ratio), gamma=0.0)), plain)
    assert not torch.equal(draw(Guidance(TokenRatio(ratio), gamma=1.0)), plain)
    assert not torch.isin(plain, torch.tensor([0, MASK, PAD])).any()
    assert made.fingerprint() == before


@every
def test_a_copy_is_fine_tuned_whole_or_by_low_rank_updates(kind: str) -> None:
    """Both start at its law and learn; merged, the updates are what was trained; the original stays."""
    made, x = denoiser(kind), texts(16)
    before = made.fingerprint()
    for adapted in (made.trainable_copy(dropout=0.0), add_lora(made, rank=4, alpha=8.0)):
        with torch.no_grad():
            assert torch.equal(adapted.eval()(x, torch.ones(16)), made(x, torch.ones(16)))
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
        assert losses[-1] < 0.8 * losses[0]
    merged = merge_lora(adapted)
    assert merged.state_dict().keys() == made.state_dict().keys()
    x_t = torch.full_like(x, MASK)
    with torch.no_grad():
        torch.testing.assert_close(merged(x_t), adapted.eval()(x_t), atol=1e-4, rtol=1e-4)
    assert made.fingerprint() == before


@every
def test_states_that_are_computed_again_give_the_same_gradient(kind: str) -> None:
    """With checkpointing the blocks run twice."""
    found = []
    for checkpointing in (False, True):
        made, runs = denoiser(kind), 0

        def count(*_: Any) -> None:
            nonlocal runs
            runs += 1

        made.recompute(checkpointing)
        made.train()
        for layer in made.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        next(layer for layer in made.modules() if isinstance(layer, nn.LayerNorm) or "RMSNorm" in type(layer).__name__
             ).register_forward_hook(count)  # fmt: skip
        module = ContinuationModule(made)
        module.loss({"x_0": texts()}, torch.Generator().manual_seed(0)).backward()
        found.append((runs, {name: weight.grad for name, weight in made.named_parameters()}))
    (once, plain), (twice, again) = found
    assert (once, twice) == (1, 2)
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad)


def test_more_tokens_than_positions_are_refused() -> None:
    fits = POSITIONS - 1
    made = denoiser("gpt2")
    made.encode(texts(1, fits))
    with pytest.raises(UserError, match=f"texts of {POSITIONS} tokens and the start before them .* at most {fits}"):
        made.encode(texts(1, POSITIONS))
    denoiser("gpt2", shift=False).encode(texts(1, POSITIONS))


def test_to_write_from_left_to_right_is_refused() -> None:
    with pytest.raises(UserError, match=r"generate\(\) writes from left to right.*sample") as caught:
        denoiser("llama").generate(texts(), max_new_tokens=3)
    assert "\n" not in str(caught.value)


@every
def test_what_is_written_is_read_again_here(kind: str, tmp_path: Path) -> None:
    made, x = denoiser(kind, excluded=(0, 3), shift=kind != "qwen2", sink=kind in ("llama", "gpt2")), texts()
    made.save(tmp_path)
    again = load_pretrained(tmp_path)
    assert type(again) is PretrainedDenoiser and not again.training
    assert again.reading == made.reading and again.fingerprint() == made.fingerprint()
    with torch.no_grad():
        assert torch.equal(again(x, torch.ones(3)), made(x, torch.ones(3)))
    config = again.model.config
    assert (config.is_causal, config.mask_token_id) == (False, MASK)
    assert (config.shift, config.sink) == (made.reading.shift, made.reading.sink)
    assert config.vocab_size == ROWS and made.encode(x, None, EVERYWHERE).shape == (3, L, made.width)


def test_a_folder_without_a_word_on_the_sink_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Those of before had none, whether transformers' configuration says the key or not."""
    made, x = denoiser("llama"), texts()
    made.save(tmp_path)
    note = tmp_path / "denoiser.json"
    said = json.loads(note.read_text())
    assert said.pop("sink") is False
    note.write_text(json.dumps(said))
    again = load_pretrained(tmp_path)
    assert again.reading == made.reading and not again.reading.sink
    with torch.no_grad():
        assert torch.equal(again(x, torch.ones(3)), made(x, torch.ones(3)))
        assert not torch.allclose(denoiser("llama", sink=True).encode(x), made.encode(x), atol=1e-2)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"start_index": None}, r"denoiser\.json: shift = true, and nothing predicts the first token: set start_index"),
        ({"pad_index": MASK}, f"mask_index {MASK} and pad_index {MASK} are to be two ids"),
        ({"mask_index": 5}, f"says mask_index 5, config.json beside it mask_token_id {MASK}"),
        ({"excluded": list(range(ROWS - 2))}, f"{ROWS} of {ROWS} are never predicted"),
        ({"excluded": [10**6]}, f"its rows disagree: id 1000000, and {ROWS} rows"),
        ({"pad_index": 10**6}, f"its rows disagree: id 1000000, and {ROWS} rows"),
    ],
)
def test_ids_that_give_no_law_or_another_models_are_refused(
    broken: dict[str, Any], message: str, tmp_path: Path
) -> None:
    denoiser("llama").save(tmp_path)
    note = tmp_path / "denoiser.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | broken))
    for load in (load_pretrained, load_denoiser):
        with pytest.raises(UserError, match=message) as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [{"shift": False}, {"start_index": None}])
def test_a_sink_without_a_start_is_refused_and_its_file_named(broken: dict[str, Any], tmp_path: Path) -> None:
    denoiser("llama", sink=True).save(tmp_path)
    note = tmp_path / "denoiser.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | broken))
    with pytest.raises(UserError, match=r"denoiser\.json: sink = true.* set shift and start_index") as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="and none is read"):
        Reading(MASK, PAD, None, sink=True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [((), 2, "arguments are required: FOLDER"), (("nowhere",), 2, "error: nowhere is no folder"), (("--help",), 0, "")],
)
def test_the_command_that_times_a_conversion_refuses_in_a_line(
    words: tuple[str, ...],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("sys.argv", ["conversion", *words])
    try:
        ended: int | str | None = time_conversion()
    except SystemExit as exit:  # argparse's
        ended = exit.code
    assert ended == code
    assert said in capsys.readouterr().err + caplog.text


@every
def test_the_step_that_a_conversion_is_timed_beside_is_the_decoders_own(kind: str) -> None:
    """Its loss is the mean of the decoder's own nats, though the model reads both sides elsewhere."""
    made, x = denoiser(kind, sink=True), texts()
    with torch.no_grad():
        own = OwnLoss(made).loss({"x_0": x}, torch.Generator())
        torch.testing.assert_close(own, -made.causal_log_prob(x).mean())
    found = conversion(made, batch=2, length=5, rounds=1)
    assert found["own_seconds"] > 0 and found["masks"] == pytest.approx(found["annealed"] / found["full"])
