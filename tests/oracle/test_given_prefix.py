"""Behind a prefix: cached is uncached, prefix states know nothing of the targets, the loss nothing of the prefix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gtl_lightning.core.sampling import sample
from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.modules.base import TrainedModule
from gtl_lightning.modules.causal import CausalLMModule
from gtl_lightning.modules.concrete_score import DistilledModule, distilled
from gtl_lightning.modules.continuation import ContinuationModule, masked, sundae, uniform_nelbo
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.uniform import UniformDenoiserModule
from gtl_lightning.networks import BackboneConfig, CausalLM, Frozen, MaskedDenoiser, UniformDenoiser, seeded
from gtl_lightning.networks.given import Following, apart, continued
from gtl_lightning.papers.ar2diff import at, causal_mask, decode, full_mask, prefix_mask
from tests.oracle.looking import shaken

P, T = 4, 5
V, MASK, PAD = 7, 7, 8
END = 6
CONFIG = BackboneConfig(V + 2, P + T, 16, 2, 2, mask_index=MASK, pad_index=PAD, cond_dim=0)


def seed(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def causal() -> CausalLM:
    with seeded(1):
        return shaken(CausalLM(CONFIG)).double().eval()


def denoiser(shift: bool = True, cls: type[MaskedDenoiser] = MaskedDenoiser) -> MaskedDenoiser:
    return cls.from_causal(causal(), shift=shift).eval()


def given(n: int = 6) -> Tensor:
    """Prefixes, some padded on the left."""
    prefix = torch.randint(V, (n, P), generator=seed(2))
    prefix[0, :2], prefix[1, :3] = PAD, PAD
    return prefix


def fixed(lengths: Tensor, generator: torch.Generator) -> Tensor:
    return torch.full_like(lengths, P)


@pytest.mark.parametrize("visible", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_continuation_that_keeps_what_it_read_is_the_one_that_reads_all_anew(
    visible: bool, temperature: float
) -> None:
    """In double precision, token by token: laws to 1e-12, draws the same; with and without a prefix-LM."""
    model, prefix = causal(), given()
    tokens, log_p = continued(model, prefix, T, temperature=temperature, visible=visible, generator=seed(3))
    attention = prefix_mask(causal_mask(P + T), torch.tensor([P + 1])) if visible else None
    x = torch.cat([prefix, torch.full((len(prefix), T), MASK)], 1)
    for place in range(P, P + T):
        law = model(x, attention)[:, place]
        torch.testing.assert_close(log_p[:, place - P].double(), at(law, tokens[:, place - P]), rtol=0, atol=1e-6)
        if temperature == 0:
            assert torch.equal(tokens[:, place - P], law.argmax(-1))
        x[:, place] = tokens[:, place - P]
    whole = model.log_prob(x, attention=attention)[:, P:]
    torch.testing.assert_close(log_p, whole.to(log_p.dtype), rtol=0, atol=1e-6)
    again, _ = continued(model, prefix, T, temperature=temperature, visible=visible, generator=seed(3))
    assert torch.equal(again, tokens)


def test_a_row_of_a_batch_is_continued_as_if_it_stood_alone() -> None:
    model, prefix = causal(), given()
    tokens, _ = continued(model, prefix, T, temperature=0.0)
    for row in range(len(prefix)):
        alone = prefix[row][prefix[row] != PAD][None]
        assert torch.equal(continued(model, alone, T, temperature=0.0)[0], tokens[row : row + 1])


def test_sampled_continuations_have_the_models_law() -> None:
    model = causal()
    prefix = given(2)[1:].expand(20_000, P)
    tokens, log_p = continued(model, prefix, 2, generator=seed(0))
    code = tokens[:, 0] * V + tokens[:, 1]
    found = torch.bincount(code, minlength=V * V).double() / len(code)
    law = model(torch.cat([prefix[:V], torch.arange(V)[:, None], torch.zeros(V, 1).long()], 1)).exp()
    expected = (law[0, P, :V, None] * law[:, P + 1, :V]).flatten()
    assert 0.5 * (found - expected).abs().sum() < 0.02
    torch.testing.assert_close(log_p.sum(1).double(), expected[code].log(), rtol=0, atol=1e-5)


def test_without_a_prefix_a_text_is_begun_and_once_all_have_ended_the_rest_is_filled() -> None:
    model = causal()
    with torch.no_grad():
        model.output.bias[END] = 50.0
    tokens, log_p = continued(model, torch.zeros(3, 0).long(), T, end_index=END)
    assert (tokens == END).all() and (log_p[:, 1:] == 0).all()
    assert (continued(model, torch.zeros(3, 0).long(), T)[0] == END).all()


@pytest.mark.parametrize("length", [0, T + 1])
def test_more_than_there_is_room_for_is_one_line(length: int) -> None:
    with pytest.raises(UserError, match="made for length = 9"):
        continued(causal(), given(), length)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("cls", [MaskedDenoiser, UniformDenoiser])
def test_a_denoiser_behind_a_prefix_passes_over_it_once(shift: bool, cls: type[MaskedDenoiser]) -> None:
    """Step by step the hidden states are those of a pass over everything, to 1e-10; fewer positions are seen."""
    network, prefix = denoiser(shift, cls), given()
    following, seen = Following(network, prefix), []
    network.backbone.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    n = network.reads(P + T)
    attention = apart(network)(full_mask(n), torch.full((len(prefix),), P) + (n - P - T))
    with torch.no_grad():
        for step in range(4):
            x = torch.randint(V + 1, (len(prefix), T), generator=seed(step))
            t = torch.rand(len(prefix), generator=seed(step))
            whole = network.encode(torch.cat([prefix, x], 1), t, attention=attention)
            torch.testing.assert_close(following.encode(x, t), whole[:, P:], rtol=0, atol=1e-10)
            torch.testing.assert_close(following(x), network.decode(whole[:, P:]), rtol=0, atol=1e-10)
    # Whole passes apart, a step passes over the targets alone, and over the state that predicts the first of them.
    assert [width for width in seen if width != n] == [T + shift] * 7
    x = torch.randint(V, (len(prefix), T - 1), generator=seed(9))
    mask = apart(network)(full_mask(n - 1), torch.full((len(prefix),), P) + (n - P - T))
    shorter = network.encode(torch.cat([prefix, x], 1), t, attention=mask)[:, P:]
    torch.testing.assert_close(following.encode(x, t), shorter, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="5 rows behind 6"):
        following.encode(x[:5], t[:5])


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("cls", [MaskedDenoiser, UniformDenoiser])
def test_behind_nothing_a_denoiser_is_itself(shift: bool, cls: type[MaskedDenoiser]) -> None:
    network = denoiser(shift, cls)
    following = Following(network, torch.zeros(6, 0).long())
    with torch.no_grad():
        for step in range(3):
            x, t = torch.randint(V + 1, (6, T), generator=seed(step)), torch.rand(6, generator=seed(step))
            torch.testing.assert_close(following.encode(x, t), network.encode(x, t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shift", [True, False])
def test_states_of_the_prefix_do_not_depend_on_the_targets_and_targets_do_on_it(shift: bool) -> None:
    network, prefix = denoiser(shift), given()
    n = network.reads(P + T)
    mask = apart(network)(full_mask(n), torch.full((len(prefix),), P) + (n - P - T))
    kept: list[Tensor] = []
    network.backbone.blocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output[0]))
    t = torch.zeros(len(prefix))
    for step in range(2):
        network.encode(torch.cat([prefix, torch.randint(V, (6, T), generator=seed(step))], 1), t, attention=mask)
    other = prefix.clone()
    other[:, -1] = (prefix[:, -1] + 1) % V
    network.encode(torch.cat([other, torch.randint(V, (6, T), generator=seed(0))], 1), t, attention=mask)
    assert torch.equal(kept[0][:, :P], kept[1][:, :P])
    assert ((kept[0][:, P:] != kept[1][:, P:]).any(-1)).all()
    assert ((kept[0][:, P:] != kept[2][:, P:]).any(-1)).all()


def modules(shift: bool) -> list[TrainedModule]:
    options = {"prefix": fixed}
    network, uniform = denoiser(shift), denoiser(shift, UniformDenoiser)
    teacher = Frozen(causal())

    def taught(*arguments: object) -> tuple[Tensor, Tensor]:
        return distilled(*arguments, teacher=teacher)  # type: ignore[arg-type]

    return [
        CausalLMModule(causal(), prefix=fixed),
        ContinuationModule(network, masked, visible=apart(network), **options),
        ContinuationModule(uniform, sundae, visible=apart(uniform), scored=uniform_nelbo, **options),
        ContinuationModule(network, taught, visible=apart(network), scored=masked, **options),
    ]


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("index", range(4))
def test_the_loss_is_of_the_targets_alone(shift: bool, index: int) -> None:
    """Labels in the place of prefix tokens change nothing as long as the network reads the same."""
    module = modules(shift)[index]
    x_0 = torch.cat([given(), torch.randint(V, (6, T), generator=seed(4))], 1)
    changed = x_0.clone()
    changed[:, :P] = torch.where(x_0[:, :P] == PAD, PAD, (x_0[:, :P] + 1) % V)

    def total(labels: Tensor) -> tuple[Tensor, Tensor]:
        """The network reads the prefix of x_0, whatever the labels are."""
        handle = module.network.backbone.register_forward_pre_hook(  # type: ignore[union-attr]
            lambda inner, inputs: (torch.cat([x_0[:, :P], inputs[0][:, P:]], 1), *inputs[1:])
        )
        with torch.no_grad():
            found = module.held_out_loss({"x_0": labels}, seed(5)), module.loss({"x_0": labels}, seed(6))
        handle.remove()
        return found[0][0], found[1]

    if index == 3:  # what a teacher says of a target is of the whole text
        with torch.no_grad():
            assert module.held_out_loss({"x_0": x_0}, seed(5))[1] == 6 * T
        return
    assert all(map(torch.equal, total(x_0), total(changed)))
    other = x_0.clone()
    other[:, -1] = (x_0[:, -1] + 1) % V
    assert not torch.equal(total(x_0)[0], total(other)[0])
    with torch.no_grad():
        assert module.held_out_loss({"x_0": x_0}, seed(5))[1] == 6 * T


def test_the_distilled_objective_and_the_uniform_bound_are_the_modules_of_the_same_name() -> None:
    """On whole texts, draw by draw."""
    plain = replace(CONFIG, cond_dim=0)
    x_0 = torch.randint(V, (16, P + T), generator=seed(1))
    everything = torch.ones_like(x_0, dtype=torch.bool)
    network = denoiser()
    teacher = causal()
    total, count = distilled(network, x_0, everything, None, LogLinear(), seed(7), teacher=Frozen(teacher))
    torch.testing.assert_close(total / count, DistilledModule(network, teacher=teacher).loss({"x_0": x_0}, seed(7)))
    with seeded(0):
        uniform = shaken(UniformDenoiser(plain)).eval()
    found = uniform_nelbo(uniform, x_0, everything, None, LogLinear(), seed(8))
    torch.testing.assert_close(found, UniformDenoiserModule(uniform).held_out_loss({"x_0": x_0}, seed(8)))


def test_held_out_texts_are_scored_by_the_nelbo_whatever_is_minimised() -> None:
    network, x_0 = denoiser(), torch.randint(V, (16, P + T), generator=seed(1))
    module = ContinuationModule(network, sundae, scored=masked)
    plain = DenoiserModule(network)
    assert module.held_out_loss({"x_0": x_0}, seed(2)) == plain.held_out_loss({"x_0": x_0}, seed(2))
    assert module.loss({"x_0": x_0}, seed(2)) != plain.loss({"x_0": x_0}, seed(2))


def test_samplers_take_it_as_any_denoiser() -> None:
    """The law of samples behind a prefix is that of the network which reads both, in the sampler's own order."""
    network = denoiser()
    prefix = given(3)[2:].expand(4000, P)
    drawn = sample(
        Following(network, prefix), mask_index=MASK, batch=4000, length=1, generator=seed(0), planner="random"
    )  # type: ignore[arg-type]
    alone = Following(network, prefix[:1])
    law = alone(torch.full((1, 1), MASK)).exp()[0, 0, :V].double()
    found = torch.bincount(drawn[:, 0], minlength=V).double() / 4000
    assert 0.5 * (found - law).abs().sum() < 0.04
    uneven = torch.full((2, T), MASK)
    uneven[0, 0] = 1
    with pytest.raises(UserError, match=r"network \(Following\) knows rows by their place"):
        sample(Following(network, prefix[:2]), mask_index=MASK, prompt=uneven)  # type: ignore[arg-type]
    x, scores = decode(Following(network, prefix[:8]), torch.zeros(8, T).long(), torch.ones(8, T).bool(), steps=3)
    assert x.shape == (8, T) and (x < V).all() and scores.isfinite().all()
