"""`make demo`: everything runs, in a folder of its own, and page and terminal say what it is and what comes next."""

from __future__ import annotations

import logging
import webbrowser
from pathlib import Path

import pytest

from gtl_lightning.report import DEMO
from gtl_lightning.stages import demo
from gtl_lightning.stages.demo import run_demo
from gtl_lightning.workspace import browser
from gtl_lightning.workspace.browser import show
from gtl_lightning.workspace.params import Params, configure
from tests.pipeline.conftest import inside, tiny

ROOT = Path(__file__).parents[2]


def small() -> Params:
    """The demo's parameters as small as the other tests'."""
    params = tiny("sweep.fractions=[0.3]", "sweep.baselines=[finetune]", "sweep.ratios=[gtl]", "ablation.fraction=0.3")
    return params.model_copy(update={"profile": "demo"})


def test_a_demo_ends_in_a_report_that_says_so_and_touches_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(demo, "show", lambda address: opened.append(address) or True)
    own = {"params.yaml": "the user's\n", "reports/report.html": "the user's\n", ".demo/old.txt": "of another demo\n"}
    for name, text in own.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with inside(tmp_path), caplog.at_level(logging.INFO):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        page = run_demo(small(), {"source_records": 400, "target_records": 300})
        assert Path.cwd() == tmp_path
    assert opened == [page.as_uri()] and page == tmp_path / ".demo" / "reports" / "report.html"
    for path in (page, page.with_suffix(".md")):
        text = path.read_text()
        assert "Demo: guided transfer against fine-tuning" in text and "make repro" in text
        assert text.index(DEMO) < text.index("is best") < text.index("Next, the comparison itself")
        assert "sweep.seeds=" not in text and "make ui" not in text, "that is the checkout's next step, not a demo's"
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count(DEMO) == 2 and lines.index(DEMO) < lines.index("[2 of 15] disjoint splits")
    last = lines[-3:]
    assert last[0] == f"report: {page} (opened in the browser)"
    assert last[1].startswith("next: make repro ") and "gtl data import" in last[2]
    assert (tmp_path / ".demo" / "mlflow.db").exists() and not (tmp_path / ".demo" / "old.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "reports", ".demo"}
    assert (tmp_path / "reports" / "report.html").read_text() == own["reports/report.html"]


def test_the_profile_of_the_demo_is_small_and_compares_gtl_with_fine_tuning() -> None:
    params, main = configure("demo", profiles=ROOT / "profiles"), configure()
    assert {"finetune", "gtl"} <= set(params.sweep.methods) and 0.05 in params.sweep.fractions
    assert params.train.source.steps * params.networks.denoiser.width < main.train.source.steps * 50
    assert params.profile == "demo" and params.tracking == main.tracking


@pytest.mark.parametrize("found", [True, False])
def test_a_page_is_opened_where_there_is_a_screen_and_a_browser(
    found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: asked.append(address) or found)
    monkeypatch.setattr(browser.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert not show((tmp_path / "report.html").as_uri()) and asked == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert show((tmp_path / "report.html").as_uri()) is found
    assert asked == [(tmp_path / "report.html").as_uri()]
