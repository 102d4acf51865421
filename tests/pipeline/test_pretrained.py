"""`gtl ar2diff`: what it writes, what it says of it, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gtl_lightning import UserError, load_denoiser, load_pretrained, sample
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.data.checkpoint import checkpoint, roles
from gtl_lightning.data.tokens import load_tokenizer, read_texts
from gtl_lightning.modules.blank import DRAWS, choose_blank, frequent
from gtl_lightning.modules.continuation import ContinuationModule, counted
from gtl_lightning.networks.families import FAMILIES, read_config, read_model
from gtl_lightning.networks.pretrained import PretrainedDenoiser
from gtl_lightning.papers.ar2diff import targets
from gtl_lightning.stages.ar2diff import convert, with_rows
from gtl_lightning.workspace.converting import ConversionRequest
from gtl_lightning.workspace.params import Params
from tests.pipeline.conftest import inside, tiny
from tests.pretrained_kit import decoder, denoiser, folder, texts, tokenizer

RESERVED = ("<|reserved_0|>", "<|reserved_1|>")
LENGTH = 12


def params() -> Params:
    return tiny("train.val_examples=16")


@pytest.fixture
def workspace(tokenised: Path, tmp_path: Path) -> Iterator[Path]:
    """Splits, a Llama of their words with ids to spare (`llama`) and a GPT-2 without (`gpt2`)."""
    copy = Path(shutil.copytree(tokenised, tmp_path / "workspace"))
    with inside(copy):
        found = chain.from_iterable(chain.from_iterable(map(read_texts, sorted(Path("splits").glob("*.parquet")))))
        words = sorted(set(chain.from_iterable(text.split() for text in found)))
        for kind, special in (("llama", RESERVED), ("gpt2", ())):
            made = tokenizer(*special, words=words)
            made.save_pretrained(kind)
            decoder(kind, rows=len(made)).save_pretrained(kind)
        yield copy


def asked(name: str, out: str, **changed: Any) -> ConversionRequest:
    own = {"steps": 6, "length": LENGTH, "check_every": 2, "lr": 0.02, "warmup": 1, **changed}
    return ConversionRequest(name, Path(out), **own)


def own_nats(kind: str) -> float:
    """The decoder's nats per token on the held-out texts that are measured, by transformers alone."""
    model = getattr(transformers, FAMILIES[kind]).from_pretrained(kind)
    words = load_tokenizer(kind)
    kept = list(chain.from_iterable(read_texts(Path("splits/target_val.parquet"))))[:16]
    total, count = 0.0, 0
    for text in kept:
        ids = torch.tensor([1, *words.encode(text, add_special_tokens=False), 1][: LENGTH + 1])
        with torch.no_grad():
            log_p = model(ids[None]).logits[0].log_softmax(-1)
        total -= float(log_p[:-1].gather(-1, ids[1:, None]).sum())
        count += len(ids) - 1
    return total / count


def test_a_run_that_was_stopped_ends_as_the_unbroken_one_and_says_its_health(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    wanted = asked("llama", "models/ar2diff", anneal=0.5)
    step = ContinuationModule.loss

    def stopping(self: Any, *arguments: Any) -> Any:
        if self.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(ContinuationModule, "loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(params(), wanted)
    assert not wanted.out.exists() or not any(wanted.out.iterdir())
    monkeypatch.setattr(ContinuationModule, "loss", step)
    caplog.clear()
    convert(params(), wanted)
    assert "resuming from" in caplog.text
    stopped = load_pretrained(wanted.out)
    shutil.rmtree(".state")
    convert(params(), asked("llama", "models/again", anneal=0.5))
    unbroken = load_pretrained("models/again")
    assert stopped.fingerprint() == unbroken.fingerprint()
    said, again = (json.loads(Path(out, "ar2diff.json").read_text()) for out in ("models/ar2diff", "models/again"))
    assert said == again
    assert said["ar_before"] == pytest.approx(own_nats("llama"), abs=1e-5)
    assert said["nelbo_after"] < said["nelbo_before"] - 0.1
    assert said["held_out_texts"] == 16 and said["steps"] == 6 and said["from"] == "llama"
    health = next(line for line in caplog.messages if line.startswith("health"))
    for key in ("ar_before", "ar_after", "nelbo_before", "nelbo_after"):
        assert f"{said[key]:.3f}" in health
    assert said["shift"] and said["sink"] and stopped.reading.sink
    assert "<|reserved_1|> (reserved)" in said["ids"] and said["ids"] in caplog.text
    words = load_tokenizer("models/ar2diff")
    assert (words.mask_token_id, words.pad_token_id) == (stopped.mask_index, stopped.pad_index)
    x = sample(stopped, mask_index=stopped.mask_index, batch=4, length=LENGTH)
    assert not torch.isin(x, torch.tensor([stopped.mask_index, stopped.pad_index])).any()
    with pytest.raises(UserError, match="read from both sides already"):
        convert(params(), asked("models/ar2diff", "models/twice"))


def test_low_rank_updates_change_the_projections_alone_and_new_rows_are_said(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = transformers.GPT2LMHeadModel.from_pretrained("gpt2").state_dict()
    given = {
        "lora": 2,
        "checkpointing": True,
        "precision": "bf16-mixed",
        "prefix": 3,
        "shift": False,
        "domain": "source",
    }
    convert(params(), asked("gpt2", "out", **given))
    assert "a new row: the tokenizer has no id to spare" in caplog.text
    made = load_pretrained("out")
    after, rows = made.model.state_dict(), len(before["transformer.wte.weight"])
    assert made.mask_index == rows and made.pad_index == rows + 1 and made.vocab_size == rows + 2
    assert not made.reading.shift and not made.reading.sink
    table = after["transformer.wte.weight"]
    assert torch.equal(table[:rows], before["transformer.wte.weight"])
    said = json.loads(Path("out/ar2diff.json").read_text())
    words = load_tokenizer("out").convert_tokens_to_ids(said["mask_read_as"] or [])
    torch.testing.assert_close(table[rows], (table[words] if words else table[:rows]).mean(0))
    torch.testing.assert_close(table[rows + 1], table[:rows].mean(0))
    changed = {name for name, value in before.items() if "wte" not in name and "lm_head" not in name
               and not torch.equal(after[name], value)}  # fmt: skip
    assert changed == {name for name in before if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))}
    said = json.loads(Path("out/ar2diff.json").read_text())
    assert said["sink"] is False
    assert 0 < said["trained_parameters"] < sum(value.numel() for value in before.values()) / 2
    convert(params(), asked("gpt2", "untrained", steps=0, check_every=None))
    said = json.loads(Path("untrained/ar2diff.json").read_text())
    assert said["nelbo_before"] == said["nelbo_after"]
    assert said["ar_before"] == pytest.approx(own_nats("gpt2"), abs=1e-5)


def test_the_start_reads_itself_alone_unless_it_is_not_wanted_and_whoever_opens_the_folder_does_so(
    workspace: Path,
) -> None:
    """By its note, with another tokenizer, or by the configuration where there is no note; unshifted there is none."""
    bounds, x = [], torch.randint(4, 20, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    for sink in (None, True, False):
        out = f"sink-{sink}"
        convert(params(), asked("gpt2", out, steps=0, check_every=None, sink=sink))
        said = json.loads(Path(out, "ar2diff.json").read_text())
        assert said["ar_before"] == said["ar_after"] == pytest.approx(own_nats("gpt2"), abs=1e-5)
        assert said["sink"] == (sink is not False)
        bounds.append(said["nelbo_after"])
        own = load_denoiser(out)
        assert not load_denoiser(out, shift=False).reading.sink
        found = [load_denoiser(out, tokenizer=out)]
        Path(out, "denoiser.json").unlink()
        found.append(load_denoiser(out))
        for again in (own, *found):
            assert again.reading.sink == said["sink"]
            with torch.no_grad():
                assert torch.equal(again.encode(x), own.encode(x))
    assert bounds[0] == bounds[1] != bounds[2]


def test_a_new_row_leaves_the_decoders_logits_and_ties() -> None:
    x = texts()
    for kind, tied in (("gpt2", True), ("llama", False), ("llama", True)):
        model = decoder(kind, tie_word_embeddings=tied)
        with torch.no_grad():
            before = model(x, use_cache=False).logits
            after = with_rows(model, 42)(x, use_cache=False).logits
        torch.testing.assert_close(after[..., :40], before)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
        assert model.config.vocab_size == after.shape[-1] == 42
        torch.testing.assert_close(after[..., 40], before.mean(-1))


def test_an_id_that_no_text_had_is_read_as_the_mean_of_all_and_the_others_as_before() -> None:
    for kind in ("gpt2", "llama"):
        model = decoder(kind)
        before = model.get_input_embeddings().weight.detach().clone()
        after = with_rows(model, 41, (3, 40)).get_input_embeddings().weight.detach()
        torch.testing.assert_close(after[[3, 40]], before.mean(0).expand(2, -1))
        others = [index for index in range(40) if index != 3]
        assert torch.equal(after[others], before[others])


@pytest.mark.parametrize("shift", [True, False])
def test_the_mask_is_read_as_the_mean_of_frequent_tokens_that_the_texts_are_likeliest_with(shift: bool) -> None:
    """Every choice is scored anew, by the bound itself under the same masks; no other weight is touched."""
    made, x = denoiser("llama", shift=shift), texts()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    row = cast(torch.nn.Embedding, made.model.get_input_embeddings()).weight

    def bound() -> float:
        target, total, count = targets(x, made.pad_index), 0.0, 0
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(draw)
            with torch.no_grad():
                found = counted(made, x, target, None, LogLinear(), generator)
            total, count = total + float(found[0]), count + int(found[1])
        return total / count

    candidates = frequent(x, made.excluded, 6)
    own = bound()
    found = choose_blank(made, x, candidates)
    assert found.before == pytest.approx(own) and found.after == pytest.approx(bound()) and found.after <= own
    after = made.state_dict()
    for name, value in before.items():
        changed = (after[name] != value).reshape(len(value), -1).any(-1)
        assert changed.nonzero().flatten().tolist() in ([], [made.mask_index])
    chosen, singles = row.detach()[made.mask_index].clone(), {}
    for token in candidates:
        with torch.no_grad():
            row[made.mask_index] = row[token]
        singles[token] = bound()
    assert found.after <= min(singles.values()) + 1e-6
    if found.tokens:
        best = sorted(candidates, key=singles.__getitem__)[: len(found.tokens)]
        assert list(found.tokens) == best
        torch.testing.assert_close(chosen, row.detach()[best].mean(0))


def test_frequent_tokens_are_counted_without_those_that_no_text_has() -> None:
    tokens, excluded = torch.tensor([3, 1, 1, 0, 0, 0, 2, 2, 2, 2]), torch.tensor([True, False, False, False, False])
    assert frequent(tokens, excluded) == [2, 1, 3]
    assert frequent(tokens, excluded, 1) == [2]


@pytest.mark.parametrize(
    ("special", "named", "rows", "mask", "pad"),
    [
        (("<m>", "<p>"), {"mask_token": "<m>", "pad_token": "<p>"}, 36, (2, "own"), (3, "own")),
        (RESERVED, {"pad_token": "<end>"}, 36, (3, "reserved"), (2, "reserved")),
        ((), {}, 40, (34, "row of the embedding"), (35, "row of the embedding")),
        (("<a>", "<b>", "<c>"), {"bos_token": "<b>"}, 37, (4, "without a part"), (2, "without a part")),
        (("<a>",), {}, 35, (2, "without a part"), (35, "a new row")),
        ((), {}, 34, (34, "a new row"), (35, "a new row")),
    ],
)
def test_mask_and_padding_are_ids_that_stand_for_nothing_else(
    special: tuple[str, ...], named: dict[str, str], rows: int, mask: tuple[int, str], pad: tuple[int, str]
) -> None:
    words = tokenizer(*special, **named)
    assert len(words) == 34 + len(special)
    found = roles(words, rows)
    assert (found.mask_index, found.pad_index) == (mask[0], pad[0])
    of_mask, of_pad = found.said.split("; ")
    assert mask[1] in of_mask and pad[1] in of_pad
    assert found.start_index == (3 if "bos_token" in named else 1) and found.end_index == 1
    assert (words.mask_token_id, words.pad_token_id) == (mask[0], pad[0])
    assert found.rows == max(rows, mask[0] + 1, pad[0] + 1)
    assert found.unread == tuple(index for index, where in (mask, pad) if where != "own")
    of_texts = set(words.get_vocab().values()) - set(words.added_tokens_decoder) | {0, 1}
    assert set(range(found.rows)) - of_texts == {mask[0], pad[0], *found.excluded}


ELSEWHERE = """
import sys
sys.modules["gtl_lightning"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
for kind in {kinds}:
    expected = load_file(kind + ".safetensors")
    model = AutoModelForCausalLM.from_pretrained(kind, trust_remote_code=False)
    ids, given = expected["read"], {{}}
    if model.config.sink:
        n = ids.shape[1]
        attention = torch.ones(1, 1, n, n, dtype=torch.bool)
        attention[..., 0, 1:] = False
        given = {{"attention_mask": attention}}
    with torch.no_grad():
        logits = model(ids, use_cache=False, **given).logits[:, :expected["logits"].shape[1]]
    print(type(model).__name__, (logits - expected["logits"]).abs().max().item())
"""


@pytest.mark.parametrize(("shift", "sink"), [(True, True), (True, False), (False, False)])
def test_others_load_what_is_written_with_transformers_alone(tmp_path: Path, shift: bool, sink: bool) -> None:
    """As docs/ar2diff.md says it: without a mask, or with the start's."""
    x = texts()
    for kind in FAMILIES:
        made = denoiser(kind, shift, sink=sink)
        made.save(tmp_path / kind)
        with torch.no_grad():
            said = {"read": made.begun(x) if shift else x, "logits": made.logits(made.encode(x))}
        save_file(said, tmp_path / f"{kind}.safetensors")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE.format(kinds=tuple(FAMILIES))],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{name} 0.0" for name in FAMILIES.values()], done.stderr


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_code(path: Path, sentinel: Path) -> None:
    (path / "own.py").write_text(f"from pathlib import Path\nPath({str(sentinel)!r}).touch()\n")
    change(path / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"})


def pickled(path: Path, sentinel: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def encoder_decoder(path: Path, sentinel: Path) -> None:
    change(path / "config.json", model_type="t5", is_encoder_decoder=True)


def other(path: Path, sentinel: Path) -> None:
    change(path / "config.json", model_type="mamba")


def no_model(path: Path, sentinel: Path) -> None:
    (path / "config.json").unlink()


def no_weights(path: Path, sentinel: Path) -> None:
    (path / "model.safetensors").unlink()


def no_positions(path: Path, sentinel: Path) -> None:
    change(path / "config.json", max_position_embeddings=None)


def no_heads(path: Path, sentinel: Path) -> None:
    change(path / "config.json", num_attention_heads=0)


def no_unknown(path: Path, sentinel: Path) -> None:
    change(path / "tokenizer_config.json", unk_token=None)
    words = json.loads((path / "tokenizer.json").read_text())
    words["model"]["unk_token"] = "none"
    (path / "tokenizer.json").write_text(json.dumps(words))


def no_end(path: Path, sentinel: Path) -> None:
    change(path / "tokenizer_config.json", eos_token=None)


def no_tokenizer(path: Path, sentinel: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()


def a_pipe(path: Path, sentinel: Path) -> None:
    os.mkfifo(path / "more.safetensors")


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (with_code, "brings code of its own .`auto_map`"),
        (pickled, r"weights in a pickle alone .pytorch_model\.bin."),
        (encoder_decoder, "is an encoder-decoder .t5.; give a decoder"),
        (other, "model of type 'mamba'; give a decoder of one of llama, qwen2, qwen3, gpt2"),
        (no_model, r"is no model: it holds no config\.json"),
        (no_weights, r"holds no weights"),
        (no_positions, "holds no model that can be loaded .*max_position_embeddings"),
        (no_heads, "holds no model that can be loaded"),
        (no_unknown, "cannot read every text .WordLevel error.*; give one that has an unknown token"),
        (no_end, "names no end token"),
        (no_tokenizer, "holds no tokenizer that can be loaded"),
        (a_pipe, "Is a pipe"),
    ],
)
def test_a_checkpoint_that_will_not_do_is_refused_in_one_line(breaks: Any, message: str, tmp_path: Path) -> None:
    folder(tmp_path / "model")
    breaks(tmp_path / "model", tmp_path / "executed")
    with inside(tmp_path), pytest.raises(UserError, match=message) as caught:
        convert(params(), asked("model", "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


def test_weights_that_are_cut_off_are_refused_in_one_line(tmp_path: Path) -> None:
    weights = folder(tmp_path / "model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="holds no model that can be loaded") as caught:
        read_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def reweighed(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Other weights, by name, in the place of those of a folder."""
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def with_nan(path: Path) -> None:
    reweighed(path, lambda own: {**own, "model.norm.weight": torch.full_like(own["model.norm.weight"], torch.nan)})


def without_head(path: Path) -> None:
    reweighed(path, lambda own: {name: own[name] for name in own if name != "lm_head.weight"})


def without_block(path: Path) -> None:
    reweighed(path, lambda own: {name: own[name] for name in own if ".layers.1." not in name})


def shallower(path: Path) -> None:
    change(path / "config.json", num_hidden_layers=1)


def with_biases(path: Path) -> None:
    reweighed(path, lambda own: {**own, "model.layers.0.self_attn.q_proj.bias": torch.ones(16)})


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (with_nan, r"model\.norm\.weight holds NaN or infinite numbers"),
        (without_head, r"lacks weights of a LlamaForCausalLM .lm_head\.weight, 1 in all."),
        (without_block, r"lacks weights of a LlamaForCausalLM .model\.layers\.1\."),
        (shallower, r"LlamaForCausalLM of its config\.json has no place for .model\.layers\.1\."),
        (with_biases, r"no place for .model\.layers\.0\.self_attn\.q_proj\.bias, 1 in all."),
    ],
)
def test_weights_of_another_model_than_the_configurations_are_refused(
    breaks: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    """transformers would draw what is missing at random, and leave out what has no place, with a warning at most."""
    breaks(folder(tmp_path / "model"))
    with pytest.raises(UserError, match=message) as caught:
        read_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_tables_that_older_versions_wrote_beside_the_weights_are_no_obstacle(tmp_path: Path) -> None:
    tables = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    reweighed(folder(tmp_path / "model"), lambda own: {**own, **tables})
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(read_model(tmp_path / "model")(tokens).logits, decoder("llama")(tokens).logits)


def test_a_tokenizer_of_more_tokens_than_rows_is_refused(workspace: Path) -> None:
    """Its words would be read as the mean of all, and scored as the last one."""
    rows = json.loads((workspace / "llama" / "config.json").read_text())["vocab_size"]
    words = load_tokenizer(workspace / "llama")
    decoder("llama", rows=rows - 3).save_pretrained("few")
    words.save_pretrained("few")
    with pytest.raises(
        UserError, match=rf"has 3 tokens that the model has no row for .id {rows - 3}, .*{rows - 3} rows"
    ):
        convert(params(), asked("few", "out"))


@pytest.mark.parametrize("role", ["mask", "padding"])
def test_a_mask_or_padding_that_is_a_word_of_the_texts_is_refused(role: str, workspace: Path) -> None:
    text = next(iter(next(iter(read_texts(Path("splits/target_train.parquet"))))))
    word = text.split()[0]
    change(workspace / "llama" / "tokenizer_config.json", **{"mask_token" if role == "mask" else "pad_token": word})
    with pytest.raises(UserError, match=f"texts have the token '{word}', which is the {role} of llama"):
        convert(params(), asked("llama", "out"))
    assert not Path("out").exists()


def test_what_the_end_needs_is_asked_for_before_the_work(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that can be written, and the data's provenance: no weight is read before."""
    monkeypatch.setattr("gtl_lightning.stages.ar2diff.read_model", lambda *_: pytest.fail("weights were read"))
    Path("file").touch()
    with pytest.raises(UserError, match="cannot write file/out"):
        convert(params(), asked("llama", "file/out"))
    Path("data/provenance.json").unlink()
    with pytest.raises(UserError, match=r"data/provenance\.json does not exist"):
        convert(params(), asked("llama", "new/out"))
    assert not Path("new").exists()


def test_a_text_longer_than_the_positions_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "model", "gpt2")
    with inside(tmp_path), pytest.raises(UserError, match="24 tokens and the start before them do not fit the 24 posi"):
        convert(params(), asked("model", "out", length=24))


def test_gguf_without_its_package_is_refused_and_a_hub_out_of_reach_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gtl_lightning.data.checkpoint.find_spec", lambda name: None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    for name, message in (
        (str(tmp_path / "model.gguf"), r"pip install 'gtl-lightning\[gguf\]'"),
        ("nowhere.gguf", "does not exist"),
        ("nobody/nothing", "'nobody/nothing' is no folder here, and http://127.0.0.1:9 cannot be reached"),
        ("../no such", "neither a folder nor OWNER/NAME"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint(name)
    assert time.monotonic() - began < 60  # its client alone would try again for longer


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF0000", b"GGUF" + bytes(range(64)), b"no such thing"])
def test_a_damaged_gguf_is_one_line_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.gguf holds no model that can be loaded \(") as caught:
        read_config(tmp_path, "model.gguf")
    assert "\n" not in str(caught.value)


def test_too_little_memory_names_the_options_that_take_less(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")

    for owner, name in ((ContinuationModule, "loss"), (PretrainedDenoiser, "encode")):
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match="--checkpointing .* --batch .* --lora") as it,
        ):
            patch.setattr(cast(Any, owner), name, refuse)
            convert(params(), asked("llama", "out"))
        assert "\n" not in str(it.value)
