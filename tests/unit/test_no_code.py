"""No loader runs code that comes with a model, a tokenizer or a data set, nor asks whether it may."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gtl_lightning.data.download import download
from gtl_lightning.data.tokenizer import load_tokenizer
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.features import load_featurizer
from gtl_lightning.stages import data as stages
from gtl_lightning.workspace.params import configure
from tests.unit.test_evaluation_features import tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder with code in it that leaves a file; whoever asks at the terminal is told yes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a person was asked"))
    tiny_model(tmp_path / "model")
    code = f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
    code += "from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast\n"
    code += "class Own(GPT2Config): model_type = 'own'\nclass Model(GPT2Model): config_class = Own\n"
    code += "class Tokens(PreTrainedTokenizerFast): pass\n"
    (tmp_path / "model" / "own.py").write_text(code)
    return tmp_path / "model"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def of_model(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Model"}, model_type="own")


def of_known_model(folder: Path) -> None:
    """Without its code another model would be loaded, in silence."""
    change(folder / "config.json", auto_map={"AutoModel": "own.Model"})


def of_tokenizer(folder: Path) -> None:
    names = {"auto_map": {"AutoTokenizer": [None, "own.Tokens"]}, "tokenizer_class": "Tokens"}
    change(folder / "tokenizer_config.json", **names)


@pytest.mark.parametrize("brings", [of_model, of_known_model, of_tokenizer])
@pytest.mark.parametrize("load", [load_featurizer, load_tokenizer])
def test_a_folder_that_brings_code_is_refused_in_one_line(
    folder: Path, brings: Callable[[Path], None], load: Callable[[str], object]
) -> None:
    load("./model")
    brings(folder)
    with pytest.raises(UserError) as caught:
        load("./model")
    assert "\n" not in str(caught.value)
    assert "folder ./model" in str(caught.value) and "auto_map" in str(caught.value)
    assert not (folder.parent / "executed").exists()


def test_a_featurizer_that_brings_code_is_refused_before_anything_is_trained(folder: Path) -> None:
    of_model(folder)
    with pytest.raises(UserError, match=r"folder \./model brings code"):
        stages.tokenize(configure(overrides=("evaluation.featurizer=./model",)))


def test_a_data_set_with_a_script_runs_nothing(tmp_path: Path) -> None:
    script = tmp_path / "set" / "set.py"
    script.parent.mkdir()
    script.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n")
    for name in (script.parent, script):
        with pytest.raises(UserError):
            download(str(name), tmp_path / "data")
    assert not (tmp_path / "executed").exists()


def test_every_loader_is_told_to_trust_no_code() -> None:
    """Left out, transformers asks the person at the terminal; torch's unpickler is told as well."""
    told = 0
    for path in sorted(ROOT.glob("gtl_lightning/**/*.py")) + sorted(ROOT.glob("flows/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            said = ast.unparse(node)
            if node.func.attr == "from_pretrained":
                assert "trust_remote_code=False" in said, f"{path}: {said}"
                told += 1
            if said.startswith("torch.load("):
                assert "weights_only=True" in said, f"{path}: {said}"
                told += 1
            assert not said.startswith(("pickle.load", "joblib.load", "yaml.unsafe_load", "pd.read_pickle")), said
            assert "allow_pickle" not in said, said
    assert told == 10
