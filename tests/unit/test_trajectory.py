"""What a sampler did, kept choice by choice, and the page that shows it, in a browser where there is one."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from gtl_lightning import Guidance, Order, TokenRatio, UserError, sample
from gtl_lightning.core.recorder import Choice, Recorder
from gtl_lightning.report.trajectory import Trajectory, trajectory_page
from gtl_lightning.workspace.options import SampleRequest

MASK, V, LENGTH = 6, 6, 7
LAW = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.07, 0.03]).log()
LOG_R = torch.tensor([0.0, 1.0, -1.0, 2.0, -math.inf, 0.5])


def denoiser(x_t, t):
    return torch.nn.functional.pad(LAW, (0, 1), value=-math.inf).expand(*x_t.shape, V + 1)


def ratio(x_t, t):
    return torch.nn.functional.pad(LOG_R, (0, 1)).expand(*x_t.shape, V + 1)


def recorded(gamma: float | None, top: int = 8, seed: int = 0, **options: object) -> tuple[torch.Tensor, Recorder]:
    recorder = Recorder(top)
    guidance = None if gamma is None else Guidance(TokenRatio(ratio), gamma=gamma)
    x = sample(
        denoiser,
        mask_index=MASK,
        batch=4,
        length=LENGTH,
        guidance=guidance,
        generator=torch.Generator().manual_seed(seed),
        observe=recorder,
        **options,  # type: ignore[arg-type]
    )
    return x, recorder


@pytest.mark.parametrize("gamma", [None, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("order", [Order(), Order("confidence", positions_per_step=3)])
def test_the_choices_are_the_sample(gamma: float | None, order: Order) -> None:
    x, recorder = recorded(gamma, order=order)
    for row, choices in zip(x.tolist(), recorder.texts, strict=True):
        assert [choice.step for choice in choices] == sorted(choice.step for choice in choices)
        assert {choice.position: choice.token for choice in choices} == dict(enumerate(row))
        assert all(choice.replaced == MASK for choice in choices)
        assert all(choice.gamma == gamma for choice in choices)
    assert recorder.steps == math.ceil(LENGTH / order.positions_per_step)


@pytest.mark.parametrize("gamma", [None, 0.0, 1.0, 2.5])
def test_candidates_have_the_law_the_ratio_and_the_tilted_law(gamma: float | None) -> None:
    weight = 0.0 if not gamma else gamma * LOG_R
    tilted = (LAW + weight).softmax(-1).tolist()
    _, recorder = recorded(gamma)
    for choice in (choice for text in recorder.texts for choice in text):
        assert {one.token for one in choice.candidates} == set(range(V)), "the mask is none, and V are fewer than top"
        for one in choice.candidates:
            assert math.exp(one.log_p) == pytest.approx(math.exp(LAW[one.token]), abs=1e-6)
            assert math.exp(one.log_tilted) == pytest.approx(tilted[one.token], abs=1e-6)
            assert one.log_r is None if gamma is None else one.log_r == pytest.approx(float(LOG_R[one.token]), abs=1e-6)
        found = [one.log_tilted for one in choice.candidates]
        assert found == sorted(found, reverse=True)


def test_where_the_ratio_excludes_everything_the_law_is_the_denoisers() -> None:
    """As the sampler draws: not a number would stand on the page."""
    recorder = Recorder(8)
    nothing = TokenRatio(lambda x, t: torch.full((*x.shape, 5), -math.inf))
    sample(
        lambda x, t: torch.zeros(*x.shape, 5),
        mask_index=4,
        batch=1,
        length=1,
        guidance=Guidance(nothing),
        generator=torch.Generator().manual_seed(0),
        observe=recorder,
    )
    (choice,) = recorder.texts[0]
    assert [one.log_tilted for one in choice.candidates] == pytest.approx([one.log_p for one in choice.candidates])


def test_the_token_that_was_drawn_is_among_however_few_are_kept() -> None:
    x, recorder = recorded(None, top=1)
    assert all(choice.candidates[0].token == choice.token for text in recorder.texts for choice in text)
    assert all(len(choice.candidates) == 1 for text in recorder.texts for choice in text)
    assert len(set(x.flatten().tolist())) > 2, "tokens other than the likeliest were drawn"
    with pytest.raises(UserError, match="top = 0"):
        Recorder(0)


PIECES = ["the", "##s", "</script><b>", "a & b", "“q”", "<!--", "[MASK]"]


def page(runs: int = 2) -> str:
    shown = []
    for gamma in (None, 1.5)[:runs]:
        _, recorder = recorded(gamma, seed=1)
        shown.append(Trajectory(f"run {gamma}", "a note", [[MASK] * LENGTH] * 4, recorder.texts))
    return trajectory_page("How <it> writes", "one & all", shown, PIECES.__getitem__, MASK)


def test_the_page_holds_what_was_recorded_and_needs_nothing_else() -> None:
    html = page()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    found = json.loads(data)
    assert found["mask"] == MASK and found["pieces"] == {str(i): piece for i, piece in enumerate(PIECES)}
    assert [len(text["choices"]) for run in found["runs"] for text in run["texts"]] == [LENGTH] * 8
    assert "How &lt;it&gt; writes" in html and "one &amp; all" in html
    assert not re.search(r"https?:|src=|@import|url\(", html), "the page asks a network for nothing"
    assert "−∞" in data, "a ratio of zero is said"


def test_texts_without_a_choice_are_shown_as_they_were() -> None:
    html = trajectory_page("t", "n", [Trajectory("r", "", [[0, MASK]], [[]])], PIECES.__getitem__, MASK)
    assert '"choices":[]' in html
    one = Choice(1, 0, 2, MASK, 1.0, None, ())
    assert '"start":[6]' in trajectory_page("t", "n", [Trajectory("r", "", [[6]], [[one]])], PIECES.__getitem__, MASK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beside": "finetune"}, "--trace"),
        ({"beside": "finetuned", "trace": Path("t.html")}, "'finetuned' is unknown"),
        ({"trace": Path(), "count": 2}, "is a folder"),
        ({"trace": Path("t.html"), "count": 65}, "64 texts"),
        ({"trace": Path("t.html"), "watch": True}, "give one of them"),
    ],
)
def test_a_trace_that_cannot_be_is_refused_before_anything_is_drawn(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        SampleRequest(**options)  # type: ignore[arg-type]


ACTS = """
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const out = [];
const shown = () => panes.map((pane) => [...pane.children].filter((one) => !one.classList.contains("masked")).length);
out.push(["end", at.textContent, shown()]);
press("Home"); out.push(["start", at.textContent, shown()]);
press("ArrowRight"); out.push(["one", at.textContent, shown(), document.querySelectorAll(".fresh:not(span)").length]);
search.value = "##S"; search.dispatchEvent(new Event("input"));
search.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true}));
out.push(["found", opened !== null, details.map((pane) => pane.querySelectorAll("tbody tr").length)]);
const before = Number(text.value);
press("ArrowDown"); out.push(["text", Number(text.value) - before]);
out.push(["width", document.documentElement.scrollWidth <= window.innerWidth]);
document.title = JSON.stringify(out);
"""


def test_a_browser_opens_steps_and_searches_without_an_error(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    file = tmp_path / "trace.html"
    file.write_text(page().replace("</body>", f"<script>{ACTS}</script></body>"))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,800",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert ":CONSOLE" not in done.stderr, done.stderr
    (title,) = re.findall(r"<title>(.*?)</title>", done.stdout, re.S)
    found = {name: rest for name, *rest in json.loads(title.replace("&quot;", '"'))}
    assert found["end"] == [f"{LENGTH} of {LENGTH}", [LENGTH, LENGTH]]
    assert found["start"] == [f"0 of {LENGTH}", [0, 0]]
    assert found["one"] == [f"1 of {LENGTH}", [1, 1], 2]
    assert found["found"][0] and max(found["found"][1]) == V
    assert found["text"] == [1]
    assert found["width"] == [True], "a phone scrolls one way"
