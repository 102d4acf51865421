"""`gtl explore`: what the page asks is what the sampler draws; it is served to this machine alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gtl_lightning.errors import UserError
from gtl_lightning.stages.explore import Explorer, application
from gtl_lightning.stages.report import trajectory
from gtl_lightning.stages.sample import sample_cell
from gtl_lightning.workspace.options import SampleRequest
from gtl_lightning.workspace.params import load_params
from gtl_lightning.workspace.paths import Cell
from tests.pipeline.conftest import inside
from tests.pipeline.malformed import Line

CELL = Cell("gtl", 0.3, 0)
PROMPT = "we study [MASK] [MASK] of"


@pytest.fixture
def here(trained: Path) -> Iterator[Path]:
    with inside(trained):
        yield trained


def client(cell: Cell = CELL, other: str | None = None) -> TestClient:
    return TestClient(application(Explorer.open(load_params(), cell, other)), base_url="http://127.0.0.1")


def runs(asked: dict[str, Any], **of: Any) -> list[dict[str, Any]]:
    answer = client(**of).get("/texts", params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["runs"]


def test_the_texts_are_those_of_the_command_line(here: Path, tmp_path: Path) -> None:
    """Of a prompt, a strength and a temperature that were moved; beside them the same without the ratio."""
    asked = {"count": 2, "seed": 3, "length": 9, "gamma": 1.5, "temperature": 0.8, "prompt": PROMPT}
    unguided, guided = runs(asked)
    assert guided["texts"] == sample_cell(load_params(), CELL, SampleRequest(**asked, out=tmp_path))
    assert (guided["name"], guided["note"]) == ("GTL, 30\xa0% of the target", "gamma 1.5, temperature 0.8, seed 3")
    assert unguided["note"] == "temperature 0.8, seed 3"
    assert [text.startswith("we study") for text in (*unguided["texts"], *guided["texts"])] == [True] * 4
    zero, at_zero = runs({**asked, "gamma": 0})
    assert zero["texts"] == at_zero["texts"] == unguided["texts"], "gamma = 0 is unguided to the bit"


@pytest.mark.parametrize(
    ("cell", "other", "names"),
    [
        (CELL, "finetune", ["fine-tuning, 30\xa0% of the target", "GTL, 30\xa0% of the target"]),
        (Cell("finetune", 0.3, 0), None, ["source", "fine-tuning, 30\xa0% of the target"]),
    ],
)
def test_two_methods_stand_side_by_side(here: Path, cell: Cell, other: str | None, names: list[str]) -> None:
    found = runs({"count": 2, "length": 6, "seed": 1}, cell=cell, other=other)
    assert [run["name"] for run in found] == names
    assert found[0]["texts"] != found[1]["texts"]


def test_how_they_come_about_is_the_page_of_the_same_texts(here: Path) -> None:
    asked = {"count": 2, "length": 6, "seed": 1, "prompt": "", "gamma": ""}
    served = client()
    page, texts = served.get("/trace", params=asked), served.get("/texts", params=asked).json()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.text, re.DOTALL)[1])  # type: ignore[index]
    assert [run["name"] for run in data["runs"]] == [run["name"] for run in texts["runs"]]
    assert all(len(text["choices"]) == 6 for run in data["runs"] for text in run["texts"])


def test_the_report_shows_how_the_ablations_cell_writes(here: Path) -> None:
    """Unguided beside guided, drawn by the report: made again it is the same; of no cell that there is not."""
    page = (here / "reports" / "figures" / "trajectory.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert [run["name"] for run in data["runs"]] == ["Unguided: the denoiser alone", "GTL, 30\xa0% of the target"]
    assert [len(text["choices"]) for text in data["runs"][0]["texts"]] == [32] * 3
    assert page == trajectory(load_params())
    assert 'srcdoc="&lt;!DOCTYPE html&gt;' in (here / "reports" / "report.html").read_text()
    params = load_params()
    elsewhere = params.model_copy(update={"ablation": params.ablation.model_copy(update={"fraction": 0.01})})
    assert trajectory(elsewhere) is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"length": 10**4}, "length 10000 is above the model's 32; ask for at most that"),
        ({"length": 0}, "length: "),
        ({"gamma": -1}, "gamma: "),
        ({"gamma": "nan"}, "gamma: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"count": 9}, "count: "),
        ({"seed": -1}, "seed: "),
        ({"prompt": "a " * 40, "length": 5}, "the prompt has"),
        ({"prompt": "a" * 10_001}, "prompt: "),
        ({"path": "/etc/passwd"}, "path: "),
    ],
)
@pytest.mark.parametrize("place", ["/texts", "/trace"])
def test_what_cannot_be_drawn_is_one_line(here: Path, place: str, asked: dict[str, Any], told: str) -> None:
    answer = client().get(place, params=asked)
    assert answer.status_code == 400
    line = answer.json()["error"]
    assert line.startswith(told) and "\n" not in line and "--" not in line


def test_the_page_loads_nothing_and_is_given_to_this_machine_alone(here: Path) -> None:
    served = client()
    page = served.get("/")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page.text)
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert served.get("/", headers={"Host": "somewhere.example"}).status_code == 400
    assert served.get("/texts", headers={"Host": "somewhere.example:80"}).status_code == 400
    assert served.post("/texts").status_code == 405
    for path in ("/docs", "/openapi.json", "/../params.yaml", "/params.yaml"):
        assert served.get(path).status_code == 404
    for header in ("Access-Control-Allow-Origin", "Set-Cookie"):
        assert header not in page.headers


def test_a_cell_without_a_ratio_has_no_gamma_to_move(here: Path) -> None:
    assert 'name="gamma"' in client().get("/").text
    assert 'name="gamma"' not in client(Cell("lora", 0.3, 0)).get("/").text


def test_it_is_served_until_ctrl_c(here: Path, tmp_path: Path) -> None:
    """A process of its own, as a user runs it; another asks, and a browser, which has nothing to complain of."""
    command = [sys.executable, "-m", "gtl_lightning.cli", "explore", CELL.name, "--no-browser"]
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stderr is not None
            line = running.stderr.readline()
            address = re.match(r"(http://127\.0\.0\.1:\d+): ", line)
            assert address, line
            with urllib.request.urlopen(f"{address[1]}/texts?count=1&length=4", timeout=60) as answer:
                assert len(json.load(answer)["runs"]) == 2
            if browser := shutil.which("chromium") or shutil.which("google-chrome"):
                opened = subprocess.run(
                    [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,800",
                     f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--virtual-time-budget=30000",
                     "--dump-dom", address[1]],
                    capture_output=True, text=True, timeout=120, check=True,
                )  # fmt: skip
                assert ":CONSOLE" not in opened.stderr, opened.stderr
                assert opened.stdout.count("<li>") == 6 and opened.stdout.count('<section class="run">') == 2
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 0
            assert "Traceback" not in running.stderr.read()
        finally:
            running.kill()


def test_a_cell_or_a_port_that_cannot_be_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = Line(monkeypatch, capsys)
    line.refused("explore gtl-0.3-7 --no-browser", here, "models/gtl-0.3-7")
    line.refused("explore gtl", here, "'gtl' names no cell")
    line.refused(f"explore {CELL.name} --beside nothing", here, "method 'nothing' is unknown")
    with pytest.raises(UserError, match="source-0 is the source itself"):
        Explorer.open(load_params(), Cell("source", None, 0), None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line.refused(f"explore {CELL.name} --no-browser --port {port}", here, f"--port {port} cannot be served")
