"""`gtl source check`: it says what is wrong, by data that decide it, and what to set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from gtl_lightning.cli import app
from gtl_lightning.core.protocols import EVERYWHERE, Look
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.conformance import (
    batch_check,
    fitted_temperature,
    known_check,
    law_checks,
    levels,
    lowest,
    shift_check,
)
from gtl_lightning.workspace.params import Params, validated, write_params
from tests.adapters_kit import WORDS, bert, mdlm, qwen, tokenizer

V, MASK, PAD = 12, 10, 11
T = torch.ones(1)


class Table(nn.Module):
    """A source of tokens that count upwards, exact where a neighbour is to be seen: its state is its law's logits.

    `late` states stand at the place before, as in a model of the next token; `leaks` gives the padding mass.
    """

    normalised = True
    vocab_size, mask_index, pad_index, width = V, MASK, PAD, V

    def __init__(self, late: bool = False, leaks: bool = False, sharp: float = 6.0, attends: bool = False) -> None:
        super().__init__()
        self.late, self.leaks, self.sharp, self.attends = late, leaks, sharp, attends

    def encode(self, x: Tensor, t: Tensor | None, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        before = nn.functional.pad(x, (1, 0), value=MASK)[:, :-1]
        seen = (before != MASK) & (before != PAD)
        h = self.sharp * nn.functional.one_hot((before + 1) % 10, V).float() * seen[..., None]
        if self.attends:
            h = h + (x == PAD).sum(1)[:, None, None] * torch.arange(V)
        return look.of(torch.roll(h, -1, 1) if self.late else h)

    def logits(self, h: Tensor, tokens: Tensor | None = None) -> Tensor:
        return h

    def decode(self, h: Tensor) -> Tensor:
        never = torch.tensor([MASK] if self.leaks else [MASK, PAD])
        return h.index_fill(-1, never, -math.inf).log_softmax(-1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        own = nn.functional.one_hot(x, V).bool()
        carried = torch.where(own, 0.0, -math.inf)
        return torch.where((x == MASK)[..., None], self.decode(self.encode(x, t)), carried)


def rows(count: int = 20, length: int = 12) -> list[Tensor]:
    first = torch.arange(count)[:, None]
    return list((first + torch.arange(length)) % 10)


NEVER = torch.tensor([index in (MASK, PAD) for index in range(V)])
NOISY = rows(1)[0].masked_fill(torch.arange(12) % 3 == 0, MASK)


def test_a_law_that_holds_passes_and_each_fault_is_named() -> None:
    def holds(source: nn.Module) -> list[bool | None]:
        return [check.holds for check in law_checks(source, NOISY[None], T, NEVER)]  # type: ignore[arg-type]

    class Over(Table):
        def decode(self, h: Tensor) -> Tensor:
            return super().decode(h) + 0.1

    class Forgets(Table):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.decode(self.encode(x, t))

    assert holds(Table()) == [True, True, True]
    assert holds(Over()) == [False, True, True]
    assert holds(Table(leaks=True)) == [True, False, True]
    assert holds(Forgets()) == [True, True, False]


def test_states_that_depend_on_padding_are_found() -> None:
    noisy = [NOISY, NOISY[:5], NOISY[:2]]
    assert batch_check(Table(), noisy, PAD).holds  # type: ignore[arg-type]
    assert not batch_check(Table(attends=True), noisy, PAD).holds  # type: ignore[arg-type]

    class Empty(Table):
        """A row with padding is no number, as by a softmax over nothing."""

        def decode(self, h: Tensor) -> Tensor:
            return super().decode(h) + 0 * h.amax(-1, keepdim=True)

        def encode(self, x: Tensor, t: Tensor | None, look: Look = EVERYWHERE, features: Any = None) -> Tensor:
            return super().encode(x, t, look, features).masked_fill((x == PAD).any(1)[:, None, None], math.nan)

    assert not batch_check(Empty(), noisy, PAD).holds  # type: ignore[arg-type]


def test_the_shift_is_decided_by_data() -> None:
    """States that stand a place too early are seen by the likelihood of the texts; a law that knows nothing is not."""
    assert shift_check(Table(), rows()).holds  # type: ignore[arg-type]
    late = shift_check(Table(late=True), rows())  # type: ignore[arg-type]
    assert late.holds is False and late.mend == "set --shift"
    assert shift_check(Table(sharp=0.0), rows()).holds is None  # type: ignore[arg-type]


def test_the_fitted_temperature_is_the_one_that_the_logits_were_divided_by() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 6, generator=generator)
    true = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    for temperature in (0.5, 1.0, 2.5):
        sharper = (logits * temperature).log_softmax(-1)
        assert fitted_temperature(sharper, true) == pytest.approx(temperature, rel=0.05)
    assert lowest(lambda x: (x - 1.25) ** 2, 0.1, 8.0) == pytest.approx(1.25, abs=1e-5)


def test_texts_of_another_alphabet_are_found() -> None:
    strange = [row.masked_fill(torch.arange(len(row)) % 5 == 0, V) for row in rows()]
    found = known_check(strange, V)
    assert found.holds is False and "unknown" in found.found
    assert known_check(rows(), V).holds and known_check(strange, None).holds


def test_levels_are_the_cross_entropy_of_each_band() -> None:
    """Next to nothing masked the neighbour is there; all masked nothing is, and the law is uniform over ten."""
    found = levels(Table(), [row for row in rows(400)])  # type: ignore[arg-type]
    assert [level.low for level in found] == [0.0, 0.25, 0.5, 0.75]
    nats = [level.nats for level in found]
    assert nats == sorted(nats) and nats[0] < 0.6 and abs(nats[-1] - math.log(10)) < 0.6
    assert found[0].accuracy > 0.8 > found[-1].accuracy


def check(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["source", "check", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_report_of_a_bert_in_the_terminal_and_as_json(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(WORDS[(row + at) % 24] for at in range(3 + row % 5)) for row in range(30)))
    said = check(str(tmp_path / "model"), "--texts", str(texts), "--json", str(tmp_path / "r.json"), "--length", "12")
    report = json.loads((tmp_path / "r.json").read_text())
    assert [check["holds"] for check in report["checks"][:4]] == [True] * 4
    assert len(report["levels"]) == 4 and report["texts"] == 30 and report["nelbo"] > 0
    assert report["tokens_per_second"] > 0 and report["weights_mb"] == pytest.approx(report["parameters"] * 4e-6)
    assert report["adapter"] == "MaskedLMDenoiser" and len(report["sha256"]) == 64
    assert "NELBO" in said and report["verdict"] and report["verdict"] in " ".join(said.split())


def test_without_texts_it_says_what_it_could_not_look_at(tmp_path: Path) -> None:
    qwen(tmp_path / "dream", "Dream")
    said = check(str(tmp_path / "dream"))
    assert "give --texts FILE" in said and not (tmp_path / "executed").exists()


def test_of_one_short_text_no_temperature_and_no_standard_error_is_told(tmp_path: Path) -> None:
    bert(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(WORDS[:6]))
    said = check(str(tmp_path / "model"), "--texts", str(tmp_path / "text.txt"))
    assert "one text, no standard error" in said and "nan" not in said
    assert "give more texts" in said and "sample at" not in said


def test_texts_that_the_tokenizer_does_not_know_are_refused(tmp_path: Path) -> None:
    """All of them the unknown token, they would be learned and measured as if they were text."""
    bert(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("quite other words than these\n" * 60)
    done = CliRunner().invoke(app, ["source", "check", str(tmp_path / "model"), "--texts", str(tmp_path / "texts.txt")])
    assert isinstance(done.exception, UserError) and "\n" not in str(done.exception)
    assert "83% of their tokens are [UNK]" in str(done.exception)


def test_an_end_that_is_the_unknown_token_too_is_not_counted_as_one(tmp_path: Path) -> None:
    """As in gpt2's tokenizer, which an MDLM has: ends of short texts are known."""
    mdlm(tmp_path / "model")
    words = tokenizer({"unk_token": "<end>", "eos_token": "<end>", "bos_token": "<start>"})
    words.save_pretrained(tmp_path / "words")
    (tmp_path / "texts.txt").write_text("\n".join(WORDS))
    out = tmp_path / "r.json"
    check(
        str(tmp_path / "model"),
        "--tokenizer",
        str(tmp_path / "words"),
        "--texts",
        str(tmp_path / "texts.txt"),
        "--json",
        str(out),
    )
    found = {each["name"]: each["holds"] for each in json.loads(out.read_text())["checks"]}
    assert found["texts are in its tokens"]


@pytest.mark.parametrize("command", ["check", "import"])
def test_a_shift_of_a_kind_that_has_none_is_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken and not done, the report and params.yaml would say what is not so."""
    monkeypatch.chdir(tmp_path)
    bert(tmp_path / "model")
    write_params(validated(Params, {"tokenizer": {"length": 16}}, "here"))
    before = Path("params.yaml").read_text()
    done = CliRunner().invoke(app, ["source", command, "model", "--shift"])
    assert isinstance(done.exception, UserError) and "(bert) has no states that predict" in str(done.exception)
    assert Path("params.yaml").read_text() == before
    assert CliRunner().invoke(app, ["source", command, "model", "--no-shift"]).exit_code == 0
