"""Parts of the guard: what a run notes, when it looks at the device, and what it does to modules."""

from __future__ import annotations

import math
from argparse import Namespace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gtl_lightning.core.callables import evaluating
from gtl_lightning.core.guard import UNREAD, Guard, check_weights, law, tensor_of, wide
from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.planner import PlannerModule
from gtl_lightning.networks import BackboneConfig, FeatureTokenRatio, MaskedDenoiser, PositionNetwork, seeded
from tests.oracle.test_reuse_law import Looks

NAN, INF = math.nan, math.inf


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros(*x.shape, 4)


def test_nothing_is_looked_at_before_the_end_of_a_run() -> None:
    guard = Guard(3, network, ratio=network)
    with Looks() as looks, guard.run():
        for _ in range(50):
            guard.law(torch.randn(6, 4))
            guard.note("ratio", torch.randn(6, 4))
        assert looks.count == 0


def test_the_first_fault_is_the_one_that_is_named() -> None:
    guard = Guard(3, network, ratio=network)
    for step, value in enumerate((0.0, NAN, NAN)):
        guard.where = f"step {step}"
        guard.law(torch.full((2, 4), value))
        guard.note("ratio", torch.full((2, 4), value))
    with pytest.raises(UserError, match=r"the denoiser \(network\) gave NaN .* at step 1"):
        guard.settle()
    guard.settle()  # what was read is gone


def test_a_long_run_is_read_before_its_notes_fill_the_memory() -> None:
    guard = Guard(3, network)
    guard.law(torch.full((2, 4), NAN))
    with pytest.raises(UserError, match="the denoiser"):
        for _ in range(UNREAD):
            guard.law(torch.zeros(2, 4))


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("promised", [True, False])
def test_one_number_among_many_is_seen(row: int, bad: float, promised: bool) -> None:
    class Gives:
        normalised = promised

    for column in (0, 1, 7, 64, 998, 999):
        output = torch.full((3, 1000), 1e-3).log()
        output[row, column] = bad
        guard = Guard(None, Gives())
        guard.law(output)
        with pytest.raises(UserError, match=r"the denoiser \(Gives\) (gave NaN or infinity|has normalised)"):
            guard.settle()


def test_what_is_not_read_of_a_mask_is_not_looked_at() -> None:
    guard = Guard(0, network)
    for value in (NAN, INF, -INF, 7.0):
        found = guard.law(torch.tensor([[value, 1.0, 2.0, -INF]]))
        torch.testing.assert_close(found.exp().sum(), torch.tensor(1.0))
        assert found[0, 0] == found[0, 3] == -INF
    guard.settle()


def test_impossible_is_a_word_of_a_ratio_and_no_fault() -> None:
    guard = Guard(3, network, ratio=network)
    guard.note("ratio", torch.full((2, 4), -INF))
    guard.note("ratio", torch.zeros(0, 4))
    guard.settle()


PROBABILITIES = torch.tensor([0.7, 0.2, 0.1, 0.0])
READ = {
    "probabilities": (PROBABILITIES, True),
    "in half precision": (PROBABILITIES.bfloat16(), True),
    "with mass on the mask": (torch.tensor([0.6, 0.2, 0.1, 0.1]), True),
    "their logarithm": (PROBABILITIES.log(), False),
    "logits": (PROBABILITIES.log() + 3.0, False),
    "logits from 0 to 1": (torch.tensor([0.9, 0.4, 0.1, 0.0]), False),
    "alike for all tokens, which is one law either way": (torch.full((4,), 0.25), False),
    "zeros": (torch.zeros(4), False),
}


@pytest.mark.parametrize("name", READ)
def test_probabilities_are_read_as_logits_and_it_is_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not refused: numbers from 0 to 1 of sum one are logits too. What is a law either way is not spoken of."""
    row, said = READ[name]
    with Guard(3, network).run() as guard:
        for _ in range(3):
            law = guard.law(row.expand(5, 4))
    assert torch.allclose(law[..., :3], torch.log_softmax(row.float()[:3], -1).expand(5, 3))
    lines = [record.getMessage() for record in caplog.records if "probabilities" in record.getMessage()]
    assert len(lines) == said and all("the denoiser (network) gave numbers from 0 to 1" in line for line in lines)


def test_precision_is_single_at_least_and_double_stays() -> None:
    for given, wanted in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        values = torch.tensor([1.0, 2.0], dtype=given)
        assert wide(values).dtype == law(values).dtype == wanted
    same = torch.ones(2)
    assert wide(same) is same


def test_integers_are_taken_as_the_numbers_they_are() -> None:
    large = torch.tensor([2**40 + 1, 2**40])
    assert tensor_of(large, (2,), len, "planner").tolist() == [2.0**40 + 1, 2.0**40]


class Doubled(nn.Module):
    """Two parts in different modes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Dropout(0.5), nn.Dropout(0.5)

    def call(self, x: Tensor) -> Tensor:
        return self.a(x)


def test_modes_come_back_part_by_part_also_after_an_error() -> None:
    network = Doubled().train()
    network.b.eval()
    for who in (network, network.call):
        with pytest.raises(ZeroDivisionError), evaluating(who, None, len):
            assert not any(module.training for module in network.modules())
            raise ZeroDivisionError
        assert [network.training, network.a.training, network.b.training] == [True, True, False]


class Owner:
    """No module, and not callable."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.args, self.keywords, self.func = Namespace(lr=1), None, 3  # names that functools.partial has too

    def log_probs(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x)

    def closure(self) -> Any:
        return lambda x, t: self.network(x)


class Slotted:
    __slots__ = ("network",)

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def log_probs(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x)


class OneSlot:
    __slots__ = "network"

    def __init__(self, network: nn.Module) -> None:
        self.network = network


class Hidden:
    __slots__ = ("__network", "empty")

    def __init__(self, network: nn.Module) -> None:
        self.__network = network


class Proxy(dict[str, Any]):
    """Its keys are its attributes; of another it raises what is no AttributeError."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Unregistered(nn.Module):
    """Its network lies in a list, where torch does not see it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.networks = [network]


@pytest.mark.parametrize(
    "shape",
    [
        "bound method",
        "closure over self",
        "slots",
        "one slot",
        "a private slot",
        "a module's list",
        "an object's object",
    ],
)
def test_a_network_is_in_eval_mode_whatever_holds_it(shape: str) -> None:
    """Its dropout would sample in silence, and a likelihood with it."""
    network = nn.Dropout(0.5).train()
    held = {
        "bound method": Owner(network).log_probs,
        "closure over self": Owner(network).closure(),
        "slots": Slotted(network).log_probs,
        "one slot": partial(len, OneSlot(network)),
        "a private slot": partial(len, Hidden(network)),
        "a module's list": Unregistered(network),
        "an object's object": Owner(Owner(network)).log_probs,  # type: ignore[arg-type]
    }[shape]
    with evaluating(held):
        assert not network.training
    assert network.training


class Anything:
    """Has every attribute there is."""

    def __getattr__(self, name: str) -> Any:
        return self


class Broken:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not connected")


@pytest.mark.parametrize("kept", [Proxy(lr=1), Anything(), Broken()], ids=["dict", "anything", "broken"])
def test_what_answers_to_any_name_is_not_asked(kept: object) -> None:
    network = Unregistered(nn.Dropout(0.5)).train()
    network.settings = kept  # type: ignore[assignment]
    with evaluating(network):
        assert not network.networks[0].training


def test_a_vocabulary_that_a_network_keeps_is_passed_over() -> None:
    """Looked through word by word it would take longer than the network's own passes."""

    class Counted(dict[int, object]):
        def values(self) -> Any:
            for value in super().values():
                asked.append(value)
                yield value

    asked: list[object] = []
    network = Unregistered(nn.Dropout(0.5)).train()
    network.words = Counted((index, f"word {index}") for index in range(100_000))
    with evaluating(network):
        assert not network.networks[0].training
    assert len(asked) < 2


CONFIG = BackboneConfig(9, 6, 8, 1, 2, mask_index=7, pad_index=8, cond_dim=0, dropout=0.5)


def test_the_frozen_denoiser_of_a_ratio_comes_along() -> None:
    with seeded(0):
        denoiser = MaskedDenoiser(CONFIG)
        ratio = FeatureTokenRatio(denoiser, rank=2)
    denoiser.train()
    with evaluating(ratio):
        assert not denoiser.backbone.training
    assert denoiser.backbone.training


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_frozen_network_with_a_bad_weight_trains_nothing(bad: float) -> None:
    """The planner's labels are the denoiser's choices: NaN among them would be wrong labels, not a NaN loss."""
    with seeded(0):
        denoiser, planner = MaskedDenoiser(CONFIG).requires_grad_(False), PositionNetwork(CONFIG)
    module: Any = PlannerModule(planner, denoiser, OptimiserConfig())
    module.on_fit_start()
    denoiser.backbone.blocks[0].down.weight[1, 2] = bad
    with pytest.raises(UserError, match=r"weight backbone.blocks.0.down.weight of the MaskedDenoiser holds NaN"):
        module.on_fit_start()
    check_weights(nn.Dropout(0.5))
