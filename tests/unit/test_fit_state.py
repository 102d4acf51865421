"""State of `fit` that is not what was written: said in one line, not used, and the fit ends as if it were whole."""

import json
import logging
import shutil
import sys
import zipfile

import pytest
import torch

from gtl_lightning.errors import UserError
from gtl_lightning.files import load_tensors, read_json, save_tensors, write_json
from gtl_lightning.modules.callbacks import BEST, LAST, PREVIOUS
from tests.unit.fit_kit import module, run
from tests.unit.test_fit import interrupting, same, weights, without_seconds

STEPS = 15  # three checks


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Folder, result and weights of a finished fit."""
    folder, trained = tmp_path_factory.mktemp("ended"), module()
    return folder, run(trained, folder, steps=STEPS), weights(trained)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Folder of a fit that was killed after its second check."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(SystemExit):
        run(interrupting(lambda: sys.exit(9)), folder, steps=STEPS)
    assert (folder / LAST).exists() and (folder / PREVIOUS).exists()
    return folder


def copied(folder, target):
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target


def flip(path, place, bit=0):
    """Flip a bit of a file; `place` is a share of it, or an offset."""
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


def flip_tensor(checkpoint):
    """Flip a bit in the middle of a checkpoint's largest tensor."""
    with zipfile.ZipFile(checkpoint) as archive:
        entry = max(archive.infolist(), key=lambda item: item.file_size)
        content = archive.read(entry)
    place = checkpoint.read_bytes().find(content)
    assert place > 0
    flip(checkpoint, place + len(content) // 2)


def again(folder):
    trained = interrupting(None, at=None) if (folder / PREVIOUS).exists() else module()
    return run(trained, folder, steps=STEPS), weights(trained)


def is_whole(made, ended):
    return without_seconds(made[0]) == without_seconds(ended[1]) and same(made[1], ended[2])


@pytest.mark.parametrize("place", [3, 60, 0.5, 0.75, 1.0])
def test_a_finished_fit_whose_best_weights_have_a_flipped_bit_is_made_again(ended, tmp_path, caplog, place):
    folder = copied(ended[0], tmp_path)
    flip(folder / BEST, place)
    made = again(folder)
    assert is_whole(made, ended)
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert BEST in line and "made again" in line
    caplog.clear()
    assert is_whole(again(folder), ended)
    assert not caplog.records


def test_whole_best_weights_of_another_moment_are_not_taken_for_the_best(ended, tmp_path):
    folder = copied(ended[0], tmp_path)
    tensors, meta = load_tensors(folder / BEST)
    save_tensors(folder / BEST, {name: value + 1 for name, value in tensors.items()}, meta)
    assert is_whole(again(folder), ended)


def text_of(ended):
    return (ended[0] / "result.json").read_text()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "[]",
        lambda text: "",
        lambda text: text[:-30],
        lambda text: json.dumps({"settings": {}, "result": {}}),
        lambda text: json.dumps({**json.loads(text), "result": None}),
        lambda text: text.replace('"best_step": 1', '"best_step": 2'),
        lambda text: text.replace('"steps": 15', '"steps": 16', 1),
    ],
)
def test_a_result_that_is_not_what_was_written_is_made_again(ended, tmp_path, caplog, spoil):
    folder = copied(ended[0], tmp_path)
    spoilt = spoil(text_of(ended))
    assert spoilt != text_of(ended)
    (folder / "result.json").write_text(spoilt)
    assert is_whole(again(folder), ended)
    assert "result.json" in caplog.text


def test_a_last_checkpoint_with_a_flipped_tensor_falls_back_to_the_one_before(stopped, ended, tmp_path, caplog):
    folder = copied(stopped, tmp_path)
    flip_tensor(folder / LAST)
    with caplog.at_level(logging.INFO):
        assert is_whole(again(folder), ended)
    assert "previous.ckpt, step 5" in caplog.text


@pytest.mark.parametrize("place", [n / 20 for n in range(21)])
def test_a_flipped_bit_anywhere_in_the_last_checkpoint_changes_nothing(stopped, ended, tmp_path, place):
    folder = copied(stopped, tmp_path)
    flip(folder / LAST, place, bit=6)
    assert is_whole(again(folder), ended)


def test_two_damaged_checkpoints_are_one_line_that_says_what_to_delete(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    flip_tensor(folder / LAST)
    flip_tensor(folder / PREVIOUS)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; delete the folder") as caught:
        again(folder)
    assert "\n" not in str(caught.value)


def _other_step(path):
    tensors, meta = load_tensors(path)
    save_tensors(path, tensors, {**meta, "step": 5})


@pytest.mark.parametrize("spoil", [lambda path: flip(path, 0.75), lambda path: path.unlink(), _other_step])
def test_without_its_best_weights_a_stopped_fit_starts_from_the_beginning(stopped, ended, tmp_path, caplog, spoil):
    folder = copied(stopped, tmp_path)
    spoil(folder / BEST)
    assert is_whole(again(folder), ended)
    assert "from the beginning" in caplog.text and BEST in caplog.text


def test_the_checkpoints_that_a_fresh_start_leaves_behind_are_gone(stopped, ended, tmp_path):
    """A step 10 of before would pass for the last one, should the new run be killed at its first check."""
    folder = copied(stopped, tmp_path)
    flip(folder / BEST, 0.75)
    with pytest.raises(SystemExit):
        run(interrupting(lambda: sys.exit(9), at=7), folder, steps=STEPS)
    assert torch.load(folder / LAST, weights_only=True)["global_step"] == 5
    assert not (folder / PREVIOUS).exists()
    trained = interrupting(None, at=None)
    assert is_whole((run(trained, folder, steps=STEPS), weights(trained)), ended)


def test_a_checkpoint_of_another_network_is_one_line(stopped, tmp_path):
    folder, other = copied(stopped, tmp_path), interrupting(None, at=None)
    other.network.output.bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(UserError, match="belongs to another network; delete") as caught:
        run(other, folder, steps=STEPS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{", '{"module": 1}'])
def test_settings_of_another_shape_are_one_line(stopped, tmp_path, content):
    folder = copied(stopped, tmp_path)
    (folder / "settings.json").write_text(content)
    with pytest.raises(UserError, match="delete it") as caught:
        again(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_whole_checksums_still_executes_nothing(stopped, tmp_path):
    from tests.unit.test_fit import Bomb

    folder, sign = copied(stopped, tmp_path / "run"), tmp_path / "executed"
    for name in (LAST, PREVIOUS):
        torch.save({"callbacks": Bomb(sign)}, folder / name)
    with pytest.raises(UserError, match="no checkpoint in"):
        again(folder)
    assert not sign.exists()


def test_half_files_of_a_killed_process_are_swept_away(ended, tmp_path):
    folder = copied(ended[0], tmp_path)
    (folder / ".last.ckpt.4711.tmp").write_bytes(b"half")
    again(folder)
    assert {path.name for path in folder.iterdir()} <= {BEST, "result.json", "settings.json", "lock"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (BEST, r"cannot write .*best\.safetensors"),
        (LAST, "no checkpoint in .* can be read; delete the folder"),
        ("result.json", r"cannot write .*result\.json"),
        ("settings.json", r"cannot read .*settings\.json"),
    ],
)
def test_a_folder_in_place_of_a_file_is_one_line(tmp_path, name, said):
    (tmp_path / name / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=said) as caught:
        run(module(), tmp_path, steps=STEPS)
    assert "\n" not in str(caught.value)


def test_a_score_of_the_result_is_what_json_keeps(ended):
    """The seal is of what is read again, to the last bit."""
    stored = read_json(ended[0] / "result.json")
    assert stored["result"]["best_score"] == ended[1].best_score
    write_json(ended[0] / "copy.json", stored)
    assert (ended[0] / "copy.json").read_text() == text_of(ended)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")])
def test_too_little_memory_is_one_line(tmp_path, error):
    def refuse():
        raise error

    with pytest.raises(UserError, match="Once: not enough memory to train") as caught:
        run(interrupting(refuse, at=3), tmp_path, steps=STEPS)
    assert "\n" not in str(caught.value)
