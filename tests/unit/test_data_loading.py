"""Data modules: deterministic, resumable at epochs, unbiased, padded no further than the batch."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st

from gtl_lightning.data.loading import DomainDataModule, TextDataModule, TokenDataset, epoch_indices
from gtl_lightning.errors import UserError

PAD = 0


def dataset(n: int, seed: int = 0, low: int = 1, high: int = 30) -> TokenDataset:
    """Example i repeats the token i + 1, so that a row tells which example it is."""
    sizes = np.random.default_rng(seed).integers(low, high, n)
    flat = np.repeat(np.arange(1, n + 1), sizes).astype(np.uint16)
    return TokenDataset.from_arrays(flat, np.concatenate([[0], np.cumsum(sizes)]), PAD)


def text_module(n: int = 100, *, batch: int = 8, steps: int = 10, seed: int = 0) -> TextDataModule:
    return TextDataModule(dataset(n), dataset(13, 1), batch=batch, steps_per_epoch=steps, seed=seed, pad_index=PAD)


def domain_module(n_source: int, n_target: int, *, batch: int = 8, steps: int = 10, parts: int = 1) -> DomainDataModule:
    return DomainDataModule(
        dataset(n_source),
        dataset(n_target, 1),
        dataset(9, 2),
        dataset(5, 3),
        batch=batch,
        steps_per_epoch=steps,
        seed=0,
        pad_index=PAD,
        parts=parts,
    )


def ragged(x_0: torch.Tensor) -> list[list[int]]:
    return [row[row != PAD].tolist() for row in x_0]


def test_ragged_round_trip_and_padding_to_the_longest() -> None:
    data = dataset(50)
    x_0 = data.batch([3, 49, 0])
    assert x_0.dtype == torch.long
    assert x_0.shape == (3, data.lengths[[3, 49, 0]].max())
    assert ragged(x_0) == [[i + 1] * int(data.lengths[i]) for i in (3, 49, 0)]
    assert [row.tolist() for row in data] == [[i + 1] * int(data.lengths[i]) for i in range(50)]


def test_subsets_are_prefixes() -> None:
    data = dataset(50)
    small = data.subset(7)
    assert len(small) == 7
    assert torch.equal(small.batch(range(7)), data.batch(range(7)))
    for n in (0, 51):
        with pytest.raises(UserError, match=rf"a subset of {n} examples of 50"):
            data.subset(n)


def test_examples_are_taken_and_joined_in_the_order_asked_for() -> None:
    data = dataset(50)
    taken = data.tail(3).take(np.array([7, 2, 7]))
    assert [row.tolist() for row in taken] == [data[i].tolist() for i in (10, 5, 10)]
    joined = data.tail(48).joined(taken)
    assert [row.tolist() for row in joined] == [data[i].tolist() for i in (48, 49, 10, 5, 10)]
    assert joined.lengths.tolist() == data.lengths[[48, 49, 10, 5, 10]].tolist()


def test_files_are_mapped_and_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tokens\.npy does not exist"):
        TokenDataset(tmp_path, "a", PAD)
    np.save(tmp_path / "a.tokens.npy", np.arange(6, dtype=np.uint16))
    np.save(tmp_path / "a.offsets.npy", np.array([0, 2, 6]))
    assert ragged(TokenDataset(tmp_path, "a", 9).batch([1])) == [[2, 3, 4, 5]]
    np.save(tmp_path / "a.offsets.npy", np.array([0, 2, 7]))
    with pytest.raises(UserError, match="disagree"):
        TokenDataset(tmp_path, "a", PAD)
    whole = (tmp_path / "a.tokens.npy").read_bytes()
    for content in (whole[:-3], whole[:50], b"", b"no array"):
        (tmp_path / "a.tokens.npy").write_bytes(content)
        with pytest.raises(UserError, match="truncated or no array file"):
            TokenDataset(tmp_path, "a", PAD)


@pytest.mark.parametrize(("batch", "said"), [(7, "6 or 8"), (1, "at least 2")])
def test_a_batch_that_is_no_two_halves_is_refused(batch: int, said: str) -> None:
    """Every loss reads the logit of P(target) as log q/p, which it is where both domains come equally often."""
    with pytest.raises(UserError, match=said):
        domain_module(50, 30, batch=batch)


def test_a_split_without_examples_is_readable_and_refused_for_training(tmp_path: Path) -> None:
    np.save(tmp_path / "a.tokens.npy", np.empty(0, np.uint16))
    np.save(tmp_path / "a.offsets.npy", np.zeros(1, np.int64))
    empty = TokenDataset(tmp_path, "a", PAD)
    assert len(empty) == 0
    with pytest.raises(UserError, match="no val examples"):
        TextDataModule(dataset(5), empty, batch=2, steps_per_epoch=1, seed=0, pad_index=PAD)


@given(n=st.integers(1, 70), batch=st.integers(1, 20), steps=st.integers(1, 80), epoch=st.integers(0, 5))
def test_every_example_appears_equally_often(n: int, batch: int, steps: int, epoch: int) -> None:
    lengths = np.random.default_rng(n).integers(1, 30, n)
    plan = epoch_indices(lengths, batch, steps, seed=3, epoch=epoch)
    assert [len(rows) for rows in plan] == [batch] * steps
    counts = np.bincount(np.concatenate(plan), minlength=n)
    assert counts.max() - counts.min() <= 1


def test_long_and_short_examples_are_drawn_alike_over_epochs() -> None:
    lengths = np.arange(1, 101)
    drawn: Counter[int] = Counter()
    for epoch in range(400):  # 20 of 100 examples an epoch
        drawn.update(np.concatenate(epoch_indices(lengths, 4, 5, seed=0, epoch=epoch)).tolist())
    counts = np.array([drawn[i] for i in range(100)])
    # binomial(400, 0.2): mean 80, deviation 8; correlation with length has deviation 0.1
    assert counts.sum() == 8000
    assert np.abs(counts - 80).max() < 40
    assert abs(np.corrcoef(counts, lengths)[0, 1]) < 0.4


def test_bucketing_saves_padding() -> None:
    module = text_module(2000, batch=16, steps=100)
    lengths = module.train.lengths
    batches = [batch["x_0"] for batch in module.train_dataloader()]
    share = sum(int((x_0 == PAD).sum()) for x_0 in batches) / sum(x_0.numel() for x_0 in batches)
    assert share < 0.1 < 1 - lengths.mean() / 29


def test_batches_of_an_epoch_do_not_come_sorted_by_length() -> None:
    widths = [batch["x_0"].shape[1] for batch in text_module(2000, batch=16, steps=100).train_dataloader()]
    assert abs(np.corrcoef(widths, range(100))[0, 1]) < 0.4


@pytest.mark.parametrize("n", [1, 3, 100])
def test_padding_never_passes_the_longest_example(n: int) -> None:
    module = text_module(n)
    for batch in (*module.train_dataloader(), *module.val_dataloader()):
        assert (batch["x_0"] != PAD).any(0).all()
        assert (batch["x_0"] != PAD).any(1).all()
    for batch in domain_module(n, 2).train_dataloader():
        assert (batch["x_0"] != PAD).any(0).all()


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    def epoch(module: TextDataModule, number: int) -> list[list[list[int]]]:
        batches = module.epoch_batches(number)
        return [ragged(batches[i]["x_0"]) for i in range(len(batches))]  # type: ignore[arg-type]  # it is sized

    first = text_module()
    assert epoch(first, 3) == epoch(text_module(), 3)
    assert epoch(first, 3) != epoch(first, 4)
    assert epoch(first, 3) != epoch(text_module(seed=1), 3)
    assert len(epoch(first, 0)) == 10


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_come_out_of_pinned_memory(device: str) -> None:
    module = text_module()
    assert not module.val_dataloader().pin_memory, "without a trainer nothing is said of a device"
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), current_epoch=0)
    module.trainer = trainer  # type: ignore[assignment]
    assert {loader.pin_memory for loader in (module.train_dataloader(), module.val_dataloader())} == {device == "cuda"}


def test_validation_is_whole_fixed_and_in_order() -> None:
    module = text_module()
    rows = [row for batch in module.val_dataloader() for row in ragged(batch["x_0"])]
    assert [row[0] for row in rows] == list(range(1, 14))


@pytest.mark.parametrize(("n_source", "n_target", "batch"), [(100, 40, 8), (100, 1, 8), (2, 3, 16), (50, 50, 6)])
def test_domains_are_balanced_and_labelled(n_source: int, n_target: int, batch: int) -> None:
    module = domain_module(n_source, n_target, batch=batch)
    batches = list(module.train_dataloader())
    assert len(batches) == 10
    drawn: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    for item in batches:
        assert item["is_target"].dtype == torch.bool
        assert item["x_0"].shape[0] == len(item["is_target"]) == batch
        assert int(item["is_target"].sum()) == batch // 2
        for row, is_target in zip(ragged(item["x_0"]), item["is_target"].tolist(), strict=True):
            data = module.target if is_target else module.source
            assert len(row) == data.lengths[row[0] - 1]
            drawn[is_target][row[0] - 1] += 1
    for is_target, n in ((False, n_source), (True, n_target)):
        counts = [drawn[is_target][i] for i in range(n)]
        assert max(counts) - min(counts) <= 1


def test_domain_validation_is_balanced_and_fixed() -> None:
    batches = list(domain_module(10, 10).val_dataloader())
    assert [batch["is_target"].tolist() for batch in batches] == [[False] * 4 + [True] * 4, [False, True]]
    assert [row[0] for row in ragged(batches[0]["x_0"])] == [1, 2, 3, 4] * 2


def test_a_batch_of_one_has_no_room_for_two_domains() -> None:
    with pytest.raises(UserError, match="batch = 1 has no room"):
        domain_module(4, 4, batch=1)


def test_parts_of_a_half_are_equal_or_an_example_would_weigh_more() -> None:
    with pytest.raises(UserError, match="batch = 12 does not divide into halves of 4 equal parts.*a multiple of 8"):
        domain_module(20, 20, batch=12, parts=4)
    sizes = {len(batch["x_0"]) for batch in domain_module(20, 20, batch=16, parts=4).train_dataloader()}
    assert sizes == {4}


class Recorder(pl.LightningModule):
    """Keeps what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        self.seen.append(ragged(batch["x_0"]))
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_at_an_epoch_sees_the_same_batches(tmp_path: Path) -> None:
    def fit(epochs: int, checkpoint: Path | None = None) -> tuple[Recorder, pl.Trainer]:
        model = Recorder()
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, datamodule=text_module(), ckpt_path=str(checkpoint) if checkpoint else None)
        return model, trainer

    whole, _ = fit(4)
    first, trainer = fit(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, _ = fit(4, tmp_path / "half.ckpt")
    assert len(whole.seen) == 40
    assert first.seen + second.seen == whole.seen
    assert whole.seen[:10] != whole.seen[10:20]


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_hold_its_examples_and_processes_share_them(parts: int) -> None:
    """Every step's examples are those of the whole batch, both domains in each part, whatever the number of parts."""
    whole = domain_module(50, 30).epoch_batches(0)
    ranks = [whole.in_parts(parts, rank, 2) for rank in range(2)]
    mine = parts // 2
    for step, batch in enumerate(whole):
        pieces = [rank[step * mine + i] for rank in ranks for i in range(mine)]
        assert all(len(piece["x_0"]) == 8 // parts for piece in pieces)
        assert all(piece["is_target"].any() and not piece["is_target"].all() for piece in pieces)
        found = Counter(tuple(row) for piece in pieces for row in ragged(piece["x_0"]))
        assert found == Counter(tuple(row) for row in ragged(batch["x_0"]))
    module = TextDataModule(dataset(9), dataset(3), batch=8, steps_per_epoch=3, seed=0, pad_index=PAD, parts=parts)
    assert len(module.train_dataloader()) == 3 * parts
    assert len(module.val_dataloader()) == 1


def test_parts_that_do_not_divide_a_batch_are_refused() -> None:
    with pytest.raises(UserError, match="batch = 8 does not divide into 3 parts"):
        TextDataModule(dataset(9), dataset(3), batch=8, steps_per_epoch=3, seed=0, pad_index=PAD, parts=3)
