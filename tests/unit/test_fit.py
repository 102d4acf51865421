"""`fit`: what it keeps, when it stops, and that killed and resumed it ends as if nothing had happened."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from filelock import FileLock

from gtl_lightning.errors import UserError
from gtl_lightning.files import write_json
from gtl_lightning.modules import base
from gtl_lightning.modules import fit as fitting
from gtl_lightning.modules.base import OptimiserConfig, mixed_seed
from gtl_lightning.modules.callbacks import Averaging
from gtl_lightning.modules.denoiser import DenoiserModule
from tests.unit.fit_kit import Counting, module, run


def weights(trained):
    return {name: value.clone() for name, value in trained.network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_seconds(result):
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]
    return result.best_score, result.best_step, result.steps, rows


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    trained = module()
    result = run(trained, tmp_path_factory.mktemp("unbroken"))
    return result, weights(trained)


class Interrupting(DenoiserModule):
    """Calls `act` once, on reaching step `at`."""

    at, act = 13, staticmethod(lambda: None)

    def loss(self, batch, generator):
        if self.global_step == self.at:
            type(self).at = None
            self.act()
        return super().loss(batch, generator)


def interrupting(act, at=13):
    return module(type("Once", (Interrupting,), {"act": staticmethod(act), "at": at}))


def score(trained):
    """The validation score of the weights as they are, from scratch."""
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trained.eval()
    return trainer.validate(trained, datamodule=Counting(1), verbose=False)[0]["val_score"]


def test_it_learns_and_the_best_weights_end_in_the_module(unbroken, tmp_path):
    result, _ = unbroken
    assert result.best_score < 0.97 * result.history[0]["score"]
    assert [row["step"] for row in result.history] == [5, 10, 15, 20, 25, 30]
    assert result.best_score == min(row["score"] for row in result.history)
    trained = module()
    again = run(trained, tmp_path)
    assert without_seconds(again) == without_seconds(result)
    assert score(trained) == pytest.approx(result.best_score, abs=1e-6)


def test_without_average_the_best_weights_are_the_raw_ones(tmp_path):
    trained = module()
    result = run(trained, tmp_path, ema_decay=0.0, steps=10)
    assert score(trained) == pytest.approx(result.best_score, abs=1e-6)


def test_the_seed_matters_and_the_global_generator_is_left_alone(unbroken, tmp_path):
    state = torch.get_rng_state()
    trained = module()
    run(trained, tmp_path, seed=4)
    assert not same(weights(trained), unbroken[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_early_stopping_restores_the_best_check(tmp_path):
    """A rate that blows the network up: the first check is the best."""
    trained = module()
    trained.optimiser = OptimiserConfig(lr=1.0, warmup_steps=0, grad_clip=1e6)
    result = run(trained, tmp_path, steps=100, patience=2, ema_decay=0.0)
    assert result.steps == result.best_step + 10 < 100
    assert score(trained) == pytest.approx(result.best_score, rel=1e-5)


def test_killed_and_run_again_ends_bit_identical(unbroken, tmp_path):
    script = Path(__file__).with_name("fit_kit.py")
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while not (tmp_path / "previous.ckpt").exists():
            assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
            time.sleep(0.01)
        time.sleep(0.1)  # into the middle of an epoch
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "result.json").exists()
    trained = module()
    result = run(trained, tmp_path)
    assert without_seconds(result) == without_seconds(unbroken[0])
    assert same(weights(trained), unbroken[1])


def test_ctrl_c_comes_out_as_an_interrupt_and_can_be_resumed(unbroken, tmp_path):
    handler = signal.getsignal(signal.SIGINT)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupting(interrupt), tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    trained = interrupting(None, at=None)
    run(trained, tmp_path)
    assert same(weights(trained), unbroken[1])


def test_sigterm_leaves_with_a_failing_status_and_can_be_resumed(tmp_path):
    with pytest.raises(SystemExit) as caught:
        run(interrupting(lambda: os.kill(os.getpid(), signal.SIGTERM)), tmp_path)
    assert caught.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "last.ckpt").exists()
    assert run(interrupting(None, at=None), tmp_path).steps == 30


def test_finished_fit_returns_at_once(tmp_path, monkeypatch):
    first = module()
    result = run(first, tmp_path, steps=10)
    monkeypatch.setattr(fitting.pl, "Trainer", None)
    again = module()
    assert run(again, tmp_path, steps=10) == result
    assert same(weights(again), weights(first))
    assert not list(tmp_path.glob("*.ckpt"))


def test_killed_after_the_last_check_it_finishes_without_training(tmp_path, monkeypatch):
    def killed(path, value):
        if path.name == "result.json":
            sys.exit(9)
        write_json(path, value)

    monkeypatch.setattr(fitting, "write_json", killed)
    first = module()
    with pytest.raises(SystemExit):
        run(first, tmp_path, steps=10)
    monkeypatch.undo()
    monkeypatch.setattr(fitting.pl, "Trainer", None)
    again = module()
    assert run(again, tmp_path, steps=10).steps == 10
    assert same(weights(again), weights(first))


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:900]), lambda path: path.unlink()])
def test_broken_last_checkpoint_falls_back_to_the_one_before(unbroken, tmp_path, caplog, damage):
    with pytest.raises(SystemExit):
        run(interrupting(lambda: sys.exit(9)), tmp_path)
    damage(tmp_path / "last.ckpt")
    trained = interrupting(None, at=None)
    with caplog.at_level(logging.INFO):
        run(trained, tmp_path)
    assert "previous.ckpt, step 5" in caplog.text
    assert same(weights(trained), unbroken[1])


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_foreign_checkpoint_is_refused_and_not_executed(tmp_path):
    run_dir, sign = tmp_path / "run", tmp_path / "executed"
    with pytest.raises(SystemExit):
        run(interrupting(lambda: sys.exit(9), at=7), run_dir)
    torch.save({"callbacks": Bomb(sign)}, run_dir / "last.ckpt")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; delete the folder"):
        run(interrupting(None, at=None), run_dir)
    assert not sign.exists()
    pickle.loads(pickle.dumps(Bomb(sign)))  # the bomb is live
    assert sign.exists()


def test_nan_loss_names_module_and_step_and_keeps_the_last_good_checkpoint(tmp_path):
    trained = interrupting(None, at=None)
    spoil = type(trained)

    def loss(self, batch, generator):
        value = super(spoil, self).loss(batch, generator)
        return value * float("nan") if self.global_step == 7 else value

    spoil.loss = loss
    with pytest.raises(UserError, match="Once: the loss became nan at step 7") as caught:
        run(trained, tmp_path)
    assert "\n" not in str(caught.value)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 5
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_a_nan_loss_is_noticed_within_some_steps_though_none_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "UNREAD", 4)
    trained, steps = interrupting(None, at=None), []
    spoil = type(trained)
    spoil.loss = lambda self, batch, generator: self.network.output.bias.sum() * (steps.append(1) or float("nan"))
    with pytest.raises(UserError, match="Once: the loss became nan at step 0"):
        run(trained, tmp_path, check_every=15)
    assert len(steps) == 4


def test_nan_score_is_refused_before_it_is_kept(tmp_path):
    trained = interrupting(None, at=None)
    cls = type(trained)
    cls.held_out_loss = lambda self, batch, generator: (torch.tensor(float("nan")), torch.tensor(1))
    cls.loss = lambda self, batch, generator: self.network.output.bias.sum() * 0
    with pytest.raises(UserError, match="validation score became nan at step 5"):
        run(trained, tmp_path)
    assert not list(tmp_path.glob("*.ckpt")) and not (tmp_path / "best.safetensors").exists()


def test_second_process_is_refused(tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(UserError, match="in use by another process"):
        run(module(), tmp_path)


@pytest.mark.parametrize("finished", [True, False])
def test_state_of_other_settings_is_refused(tmp_path, finished):
    if finished:
        run(interrupting(None, at=None), tmp_path, steps=5)
    else:
        with pytest.raises(SystemExit):
            run(interrupting(lambda: sys.exit(9), at=3), tmp_path, steps=5)
    with pytest.raises(UserError, match=r"other settings \(steps\)"):
        run(interrupting(None, at=None), tmp_path, steps=10)


def test_weights_of_another_network_are_refused(tmp_path):
    run(module(), tmp_path, steps=5)
    other = module()
    other.network.output.bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(UserError, match="belongs to another network"):
        run(other, tmp_path, steps=5)


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        run(module(), tmp_path / "file" / "state")


def test_too_few_batches_are_refused(tmp_path):
    with pytest.raises(UserError, match="training data ran out at step 3"):
        run(module(), tmp_path, data=Counting(3))


@pytest.mark.parametrize(
    ("change", "match"),
    [({"steps": 0}, "steps = 0"), ({"ema_decay": 1.0}, "ema_decay = 1.0"), ({"precision": "16"}, "precision = '16'")],
)
def test_impossible_settings_are_refused(tmp_path, change, match):
    with pytest.raises(UserError, match=match):
        run(module(), tmp_path, **change)


def on(device):
    """As much of a Trainer as says where it trains."""
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))


def test_average_is_the_recursion_with_a_warm_decay():
    """mean <- mean + (1 - min(decay, (1 + n) / (10 + n))) (new - mean); the first update copies."""
    averaging = Averaging(0.5)
    trained = module()
    averaging.setup(on("cpu"), trained, "fit")
    expected, name = None, "output.bias"
    for n in range(8):
        with torch.no_grad():
            trained.network.output.bias.copy_(torch.full((10,), float(n * n)))
        averaging._average_model.update_parameters(trained)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = float(n * n) if expected is None else decay * expected + (1 - decay) * n * n
        torch.testing.assert_close(averaging.averaged_state()[f"network.{name}"], torch.full((10,), expected))


def test_the_average_lies_where_the_weights_will_be_and_asks_the_device_nothing():
    """On a device without values whoever asks for one fails; Lightning's own stays where the weights were."""
    averaging, trained = Averaging(0.5), module()
    averaging.setup(on("meta"), trained, "fit")
    trained.to("meta")
    for _ in range(3):
        averaging._average_model.update_parameters(trained)
    assert {value.device.type for value in averaging.averaged_state().values()} == {"meta"}
    assert averaging._average_model.state_dict()["n_averaged"] == 3, "a checkpoint keeps it"


def test_learning_rate_warms_up_and_falls_to_its_share():
    config = OptimiserConfig(warmup_steps=4, final_share=0.1)
    factors = [config.factor(step, 20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[20] == pytest.approx(0.1)
    assert factors[12] == pytest.approx(0.55)
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_mixed_seeds_do_not_collide():
    seeds = {mixed_seed(a, b, c) for a in range(20) for b in range(200) for c in range(3)}
    assert len(seeds) == 20 * 200 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_lines_show_step_loss_rate_and_time_left(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(module(), tmp_path, steps=5)
    assert "DenoiserModule: step 5/5, train_loss" in caplog.text
    assert "steps/s, 0 s left" in caplog.text


def test_lightning_is_silent(tmp_path, capfd, recwarn):
    run(module(), tmp_path, steps=5)
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    assert not [str(warning.message) for warning in recwarn]


def test_auto_precision_takes_bf16_where_it_pays(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(fitting, "has_bf16", lambda kind: kind == "cpu")
    assert fitting.resolve_precision("auto", 128) == "bf16-mixed"
    assert fitting.resolve_precision("auto", 96) == "32-true"
    assert fitting.resolve_precision("32-true", 512) == "32-true"
    monkeypatch.setattr(fitting, "has_bf16", lambda kind: kind == "cuda")
    assert fitting.resolve_precision("auto", 128) == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fitting.resolve_precision("auto", 8) == "bf16-mixed"
    assert fitting.resolve_precision("auto", 8, accelerator="cpu") == "32-true"


class Parted(Counting):
    """The same batches, each in two parts; a process gets its own."""

    def train_dataloader(self):
        whole = super().train_dataloader().dataset
        rank, world = self.trainer.global_rank, self.trainer.world_size
        parts = [
            {key: value[i::2] for key, value in whole[index].items()} for index in range(len(whole)) for i in (0, 1)
        ]
        return torch.utils.data.DataLoader(parts[rank::world], batch_size=None)


def test_accumulated_parts_make_the_steps_of_whole_batches(tmp_path):
    """As many steps, checks and rates; the parts have noise of their own, so that scores agree as runs do."""
    seen = []

    class Watching(DenoiserModule):
        def loss(self, batch, generator):
            if self.training:
                seen.append((self.global_step, len(batch["x_0"]), generator.initial_seed()))
            return super().loss(batch, generator)

    whole = run(module(), tmp_path / "whole")
    parts = run(module(Watching), tmp_path / "parts", data=Parted(5), accumulate=2)
    assert parts.steps == whole.steps
    assert [step for step, _, _ in seen[:4]] == [0, 0, 1, 1]
    assert {size for _, size, _ in seen} == {8}
    assert len({seed for _, _, seed in seen}) == len(seen)
    assert abs(parts.best_score - whole.best_score) < 0.25 * whole.history[0]["score"]


def test_two_processes_share_each_batch(tmp_path):
    """DDP on two processes of the CPU: one run's files, the steps of whole batches, and the best weights come back."""
    trained = module()
    result = run(trained, tmp_path / "ddp", data=Parted(5), devices=2, steps=10, progress=False)
    assert [row["step"] for row in result.history] == [5, 10]
    assert result.best_score == min(row["score"] for row in result.history)
    again = module()
    assert run(again, tmp_path / "ddp", data=Parted(5), devices=2, steps=10, progress=False) == result
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
