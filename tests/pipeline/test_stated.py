"""DVC on a file that states what differs: what states nothing, `methods.NAME: {}`, is a parameter like others."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtl_lightning.workspace.params import Params, override, write_params

PIPELINE = """
stages:
  source:
    cmd: echo source > source
    params: [train.default, train.source]
    outs: [source]
  ratio:
    matrix: {method: [gtl, gtl-warm]}
    cmd: echo ${item.method} > ${item.method}
    params: [networks.default, train.default, "methods.${item.method}"]
    outs: ["${item.method}"]
"""
STALE = {
    "methods.gtl.train.lr=0.001": {"ratio@gtl"},
    "train.source.steps=900": {"source"},
    "train.default.clip=2.0": {"source", "ratio@gtl", "ratio@gtl-warm"},
}


def test_dvc_reads_what_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    write_params(Params())
    assert "  gtl: {}  # " in (tmp_path / "params.yaml").read_text()
    with Repo.init(no_scm=True) as repo:
        assert len(repo.reproduce()) == 3
        assert not repo.status()
        for change, stale in STALE.items():
            write_params(override(Params(), (change,)))
            assert set(repo.status()) == stale, change
        write_params(override(Params(), ("methods.gtl.train.lr=0.001",)))
        assert [stage.addressing for stage in repo.reproduce()] == ["ratio@gtl"]
        write_params(Params())
        assert set(repo.status()) == {"ratio@gtl"}
