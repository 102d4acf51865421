"""Models as folders and on a hub: what was saved is what is loaded, to the bit; a push is whole or nothing."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from gtl_lightning import Card, Guidance, GuidedModel, SequenceRatio, TokenRatio, TrainedRatio, UserError, sample
from gtl_lightning.core.guidance import LinearGamma
from gtl_lightning.files import write_json
from gtl_lightning.networks import (
    BackboneConfig,
    CausalLM,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    MaskedDenoiser,
    RatioEnsemble,
    SequenceRatioNetwork,
    TokenRatioNetwork,
    UniformDenoiser,
    seeded,
)
from gtl_lightning.networks.pretrained import PretrainedDenoiser
from gtl_lightning.sharing.hub import check_repository, licence_of
from gtl_lightning.sharing.shareable import Shareable
from gtl_lightning.workspace.closure import ROOT
from tests import pretrained_kit
from tests.hub import READER, TOKEN, Hub, serving

CONFIG = BackboneConfig(vocab_size=11, length=6, width=8, depth=1, heads=2, mask_index=9, pad_index=10)
X = torch.tensor([[1, 9, 2, 9, 9, 3], [9, 9, 9, 9, 9, 9]])
T = torch.tensor([0.5, 1.0])


def stirred(network: nn.Module) -> Any:
    """Every weight away from its start, where a ratio is 0."""
    with seeded(3), torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network.eval()


DENOISER: MaskedDenoiser = stirred(MaskedDenoiser(CONFIG))


def ratio_network() -> Any:
    return stirred(TokenRatioNetwork(CONFIG))


def networks() -> list[tuple[Any, dict[str, Any]]]:
    beside = {"denoiser": DENOISER}
    return [
        (DENOISER, {}),
        (stirred(UniformDenoiser(CONFIG)), {}),
        (stirred(CausalLM(CONFIG)), {}),
        (ratio_network(), {}),
        (stirred(SequenceRatioNetwork(CONFIG)), {}),
        (RatioEnsemble([ratio_network(), ratio_network()]).eval(), {}),
        (stirred(FeatureTokenRatio(DENOISER, rank=4)), beside),
        (stirred(DifferenceTokenRatio(DENOISER)), beside),
    ]


def said(network: Any) -> Tensor:
    with torch.no_grad():
        return network(X) if isinstance(network, CausalLM) else network(X, T)


@pytest.mark.parametrize(("network", "given"), networks(), ids=lambda one: type(one).__name__)
def test_what_was_saved_is_what_is_loaded(network: Shareable, given: dict[str, Any], tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "model")
    loaded = type(network).from_pretrained(tmp_path / "model", **given)
    assert type(loaded) is type(network) and not loaded.training
    assert torch.equal(said(loaded), said(network))


@pytest.fixture(scope="module")
def trained() -> TrainedRatio:
    return TrainedRatio(ratio_network(), "gtl", CONFIG.mask_index, CONFIG.pad_index, 6, ())


def models(ratio: TrainedRatio) -> list[GuidedModel]:
    by_sequence = SequenceRatio(stirred(SequenceRatioNetwork(CONFIG)))
    head = TokenRatio(stirred(FeatureTokenRatio(DENOISER, rank=4)))
    return [
        GuidedModel(DENOISER, None, 6, 0.7),
        GuidedModel(DENOISER, Guidance(ratio, 1.3), 6),
        GuidedModel(DENOISER, Guidance(by_sequence, 0.9, n_ratio=3, stabilise=False), 6),
        GuidedModel(DENOISER, Guidance(head, LinearGamma(2.0, 0.25)), 6, schedule="cosine"),
    ]


def drawn(model: GuidedModel) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return sample(
        model.denoiser, batch=8, length=6, mask_index=9, guidance=model.guidance, positions_per_step=1,
        generator=generator,
    )  # fmt: skip


def same(a: GuidedModel, b: GuidedModel) -> bool:
    """Settings alike, and laws to the bit."""
    settings = [(model.length, model.temperature, model.mask_index, model.guidance is None) for model in (a, b)]
    assert a.schedule == b.schedule and type(a.noise) is type(b.noise)
    if a.guidance is not None and b.guidance is not None:
        settings = [
            (one.strengths(6), one.n_ratio, one.stabilise, isinstance(one.ratio, SequenceRatio))  # type: ignore[misc]
            for one in (a.guidance, b.guidance)
        ]
    return (
        settings[0] == settings[1]
        and torch.equal(said(a.denoiser), said(b.denoiser))
        and torch.equal(drawn(a), drawn(b))
    )


@pytest.mark.parametrize("which", range(4))
def test_a_guided_model_is_one_folder_and_its_parts_are_in_it(
    which: int, trained: TrainedRatio, tmp_path: Path
) -> None:
    model = models(trained)[which]
    model.save_pretrained(tmp_path / "model")
    assert same(GuidedModel.from_pretrained(tmp_path / "model"), model)
    assert torch.equal(said(MaskedDenoiser.from_pretrained(tmp_path / "model")), said(DENOISER))
    assert torch.equal(said(MaskedDenoiser.from_pretrained(tmp_path / "model" / "denoiser")), said(DENOISER))
    if which == 1:
        again = TrainedRatio.from_pretrained(tmp_path / "model")
        assert (again.method, again.length) == ("gtl", 6) and torch.equal(said(again.network), said(trained.network))


def test_a_schedule_that_is_unknown_is_one_line(tmp_path: Path) -> None:
    model = GuidedModel(DENOISER, None, 6, schedule="tangent")
    for using in (lambda: model.noise, lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(UserError, match="schedule 'tangent' is unknown; choose one of loglinear"):
            using()
    assert not list(tmp_path.iterdir())


def test_another_librarys_denoiser_stays_its_librarys(tmp_path: Path, hub: Hub) -> None:
    """transformers reads the folder alone, and a guided model holds it as it is."""
    denoiser = pretrained_kit.denoiser("llama", sink=True)
    x = pretrained_kit.texts()
    x[:, ::2] = denoiser.mask_index
    denoiser.save_pretrained(tmp_path / "native")
    native = LlamaForCausalLM.from_pretrained(tmp_path / "native")
    assert all(torch.equal(native.state_dict()[key], value) for key, value in denoiser.model.state_dict().items())
    model = GuidedModel(denoiser, None, 7)
    model.save_pretrained(tmp_path / "model")
    denoiser.push_to_hub("me/native")
    model.push_to_hub("me/model")
    with torch.no_grad():
        for again in (
            PretrainedDenoiser.from_pretrained(tmp_path / "native"),
            PretrainedDenoiser.from_pretrained("me/native"),
            GuidedModel.from_pretrained(tmp_path / "model").denoiser,
            GuidedModel.from_pretrained("me/model").denoiser,
        ):
            assert torch.equal(again(x, torch.ones(len(x))), denoiser(x))


def test_a_folder_is_data_and_weights_alone(trained: TrainedRatio, tmp_path: Path) -> None:
    models(trained)[1].save_pretrained(tmp_path)
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors", ".md"}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda said: said.update(parts=5), "'parts' is a number, not an object"),
        (lambda said: said["parts"].update(denoiser="../denoiser"), "'../denoiser' is no path within the folder"),
        (lambda said: said["parts"].update(denoiser="/etc/passwd"), "'/etc/passwd' is no path within the folder"),
        (lambda said: said.pop("temperature"), "has no 'temperature'"),
        (lambda said: said.update(gamma=-1), "'gamma' is -1"),
        (lambda said: said.update(gamma="1"), "'gamma' is a text"),
        (lambda said: said.update(n_ratio=0), "'n_ratio' is 0"),
        (lambda said: said.update(length=0), "'length' is 0"),
        (lambda said: said.update(library_name="transformers"), "is of another library"),
        (lambda said: said.pop("library_name"), "is of another library"),
        (lambda said: said["parts"].pop("denoiser"), "holds no denoiser"),
    ],
)
def test_a_configuration_of_another_shape_is_one_line(
    spoil: Any, told: str, trained: TrainedRatio, tmp_path: Path
) -> None:
    models(trained)[1].save_pretrained(tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    spoil(found)
    write_json(tmp_path / "config.json", found)
    (tmp_path / "bundle.json").unlink()  # what is told is told of the content
    with pytest.raises(UserError, match="config.json|holds no") as caught:
        GuidedModel.from_pretrained(tmp_path)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_what_was_saved_is_named(tmp_path: Path) -> None:
    DENOISER.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("somebody's own")
    MaskedDenoiser.from_pretrained(tmp_path)
    write_json(tmp_path / "config.json", {"library_name": "gtl-lightning", "parts": {"denoiser": "other.safetensors"}})
    with pytest.raises(UserError, match=r"config.json is damaged"):
        MaskedDenoiser.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (GuidedModel(lambda x, t: x, None, 6), "the denoiser is a function"),  # type: ignore[arg-type]
        (GuidedModel(DENOISER, Guidance(TokenRatio(lambda x, t: x)), 6), "the ratio is a function"),
        (GuidedModel(DENOISER, Guidance(TokenRatio(ratio_network()), gamma=lambda share: share), 6), "gamma is a"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_nothing_is_there(model: GuidedModel, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        model.save_pretrained(tmp_path / "model")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_part_of_another_kind_is_refused(trained: TrainedRatio, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "ratio")
    DENOISER.save_pretrained(tmp_path / "denoiser")
    with pytest.raises(UserError, match="holds no denoiser, but ratio"):
        MaskedDenoiser.from_pretrained(tmp_path / "ratio")
    with pytest.raises(UserError, match="not a UniformDenoiser"):
        UniformDenoiser.from_pretrained(tmp_path / "denoiser")
    with pytest.raises(UserError, match="has no revision 'main'"):
        MaskedDenoiser.from_pretrained(tmp_path / "denoiser", revision="main")


def test_a_card_is_yaml_in_front_and_one_line_a_fact() -> None:
    card = Card("a | b\n<script>", facts=(("data", "one | two\nthree"),), license="CC-BY-4.0", datasets=("me/texts",))
    _, fields, text = card.markdown().split("---\n")
    assert yaml.safe_load(fields) == {
        "library_name": "gtl-lightning",
        "pipeline_tag": "text-generation",
        "tags": ["discrete-diffusion", "masked-diffusion", "text-generation"],
        "license": "cc-by-4.0",
        "datasets": ["me/texts"],
    }
    assert "| data | one \\| two three |" in text and "<script>" not in text
    other = Card("x", license="ours: alone").fields()
    assert (other["license"], other["license_name"]) == ("other", "ours: alone")
    assert "license" not in Card("x").fields() and "unknown: find it out" in Card("x").markdown()


# A hub


@pytest.mark.parametrize("licence", ["cc-by-4.0", "ours alone", None])
def test_the_licence_of_a_model_is_what_its_card_says(licence: str | None, hub: Hub, tmp_path: Path) -> None:
    card = Card("x", license=licence)
    DENOISER.save_pretrained(tmp_path / "model", card)
    DENOISER.push_to_hub("me/model", card=card)
    assert licence_of(str(tmp_path / "model")) == licence_of("me/model") == licence
    assert licence_of("me/none") is None and licence_of(str(tmp_path)) is None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(monkeypatch, tmp_path / "cache") as found:
        yield found


def test_what_was_pushed_is_what_comes_back(hub: Hub, trained: TrainedRatio, tmp_path: Path) -> None:
    for model in models(trained):
        assert model.push_to_hub("me/model").startswith(f"{hub.address}/me/model/commit/")
        assert same(GuidedModel.from_pretrained("me/model"), model)
    assert len(hub.repositories["me/model"].commits) == 1 + len(models(trained))
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_the_lines_of_the_page_on_sharing_run_as_they_stand(
    hub: Hub, trained: TrainedRatio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/sharing.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"denoiser": DENOISER, "ratio": trained, "tokenizer": None}
    exec(code, names)
    assert same(names["model"], GuidedModel.from_pretrained("shared/mine"))
    assert hub.repositories["me/mine"].private


def test_a_revision_is_what_it_was_and_its_files_do_not_mix(hub: Hub, trained: TrainedRatio) -> None:
    DENOISER.push_to_hub("me/model")
    first = hub.repositories["me/model"].sha_of(1)
    models(trained)[1].push_to_hub("me/model")
    files = set(hub.repositories["me/model"].head)
    assert "model.safetensors" not in files and {"denoiser/model.safetensors", ".gitattributes"} <= files
    assert torch.equal(said(MaskedDenoiser.from_pretrained("me/model", revision=first)), said(DENOISER))
    assert GuidedModel.from_pretrained("me/model").guidance is not None


def test_files_of_others_stay_and_are_not_read(hub: Hub) -> None:
    DENOISER.push_to_hub("me/model")
    hub.repositories["me/model"].head.update({"pickle.bin": b"\x80", "code.py": b"raise SystemExit", "own.json": b"{}"})
    hub.seen.clear()
    MaskedDenoiser.from_pretrained("me/model")
    assert not [line for line in hub.seen if line.endswith(("pickle.bin", "code.py"))]
    DENOISER.push_to_hub("me/model")
    assert {"pickle.bin", "code.py", "own.json"} <= set(hub.repositories["me/model"].head)


def test_what_is_in_the_cache_serves_without_a_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    DENOISER.push_to_hub("me/model")
    MaskedDenoiser.from_pretrained("me/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.seen.clear()
    assert torch.equal(said(MaskedDenoiser.from_pretrained("me/model")), said(DENOISER))
    assert not hub.seen
    with pytest.raises(UserError, match=r"me/other was not fetched: it is not on this disk, and .* cannot be reached"):
        MaskedDenoiser.from_pretrained("me/other")


@pytest.mark.parametrize("place", ["repos/create", "preupload", "objects/batch", "/store/", "/commit/"])
@pytest.mark.parametrize("there", [False, True], ids=["a new repository", "one that is there"])
def test_a_push_that_breaks_off_leaves_nothing_half_there(hub: Hub, place: str, there: bool) -> None:
    if there:
        GuidedModel(DENOISER, None, 6).push_to_hub("me/model")
    before = {name: list(one.commits) for name, one in hub.repositories.items()}
    hub.breaks = place
    with pytest.raises(
        UserError, match="^me/model was not pushed: .* broke off .*, run the same command again$"
    ) as told:
        DENOISER.push_to_hub("me/model")
    assert "\n" not in str(told.value)
    after = {name: one.commits for name, one in hub.repositories.items()}
    if there or place == "repos/create":
        assert after == before
    else:
        assert [list(files) for files in after["me/model"]] == [[".gitattributes"]]
        assert "the repository was made" in str(told.value)
    hub.breaks = ""
    DENOISER.push_to_hub("me/model")
    assert torch.equal(said(MaskedDenoiser.from_pretrained("me/model")), said(DENOISER))


def test_a_model_that_cannot_be_written_makes_no_repository(hub: Hub) -> None:
    with pytest.raises(UserError, match="the ratio is a function"):
        GuidedModel(DENOISER, Guidance(TokenRatio(lambda x, t: x)), 6).push_to_hub("me/model")
    assert not hub.repositories and not hub.seen


def test_a_private_repository_is_private_and_a_public_one_is_not_filled_with_what_should_be(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    DENOISER.push_to_hub("me/mine", private=True)
    assert hub.repositories["me/mine"].private
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(UserError, match="me/mine was not fetched: the hub does not know the token"):
        MaskedDenoiser.from_pretrained("me/mine")
    assert torch.equal(said(MaskedDenoiser.from_pretrained("me/mine", token=TOKEN)), said(DENOISER))
    DENOISER.push_to_hub("me/open", token=TOKEN)
    with pytest.raises(UserError, match="me/open is there already and everybody sees it"):
        DENOISER.push_to_hub("me/open", private=True, token=TOKEN)
    assert len(hub.repositories["me/open"].commits) == 2


@pytest.mark.parametrize(
    ("token", "told"),
    [(READER, "the token has no right to it; log in"), ("hf_unknown", "the hub does not know the token")],
)
def test_a_token_without_the_right_is_one_line(hub: Hub, token: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        DENOISER.push_to_hub("me/model", token=token)
    assert not hub.repositories


@pytest.mark.parametrize("status", [401, 403, 500])
@pytest.mark.parametrize("verb", ["push", "fetch"])
def test_a_token_is_in_no_line_log_or_file(
    hub: Hub,
    status: int,
    verb: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Not even where the server says it, nor the signature of an address that something is put to."""
    caplog.set_level(logging.DEBUG)
    DENOISER.push_to_hub("me/model", private=True)
    MaskedDenoiser.from_pretrained("me/model")
    hub.breaks = "/store/"
    with pytest.raises(UserError) as broken:
        DENOISER.push_to_hub("me/other", private=True)
    hub.breaks, hub.refuses, hub.echoes = "", status, True
    with pytest.raises(UserError) as told:
        if verb == "push":
            DENOISER.push_to_hub("me/model")
        else:
            MaskedDenoiser.from_pretrained("me/another")
    kept = b"".join(content for one in hub.repositories.values() for files in one.commits for content in files.values())
    cached = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    words = [str(broken.value), str(told.value), caplog.text, *capfd.readouterr(), kept.decode("latin-1")]
    assert broken.value.__suppress_context__ and told.value.__suppress_context__
    for text in (*words, cached.decode("latin-1")):
        assert TOKEN not in text and "s3cret" not in text


def test_without_a_token_nothing_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="me/model cannot be pushed without a token; log in"):
        DENOISER.push_to_hub("me/model")
    assert not hub.seen


def test_a_hub_that_cannot_be_reached_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match=r"me/model was not pushed: http://127.0.0.1:9 cannot be reached") as told:
        DENOISER.push_to_hub("me/model")
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("name", ["model", "a/b/c", "/b", "a/", "a b/c", "../x", "a/..", "a/b@c", "-a/b", "a/b--c", ""])
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is no OWNER/NAME of a hub"):
        check_repository(name)
