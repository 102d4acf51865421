"""The losses of TCSM as modules: what each is where it is known exactly."""

import math
from types import SimpleNamespace

import pytest
import torch

from gtl_lightning.core.forward import level_sample
from gtl_lightning.errors import UserError
from gtl_lightning.modules.concrete_score import (
    ConcreteScoreModule,
    DistilledModule,
    KeptModule,
    UniformFirstModule,
    cross_entropy_terms,
    score_form_terms,
)
from gtl_lightning.modules.denoiser import DenoiserModule
from gtl_lightning.modules.implicit_ratio import ImplicitRatioModule
from gtl_lightning.modules.preference import PreferenceModule
from gtl_lightning.networks import CausalLM, seeded
from gtl_lightning.papers.tcsm import (
    conditional,
    conditional_bce_loss,
    conditional_gkl_loss,
    conditional_lsif_loss,
    exact,
    noised_pairs,
)
from tests.unit.test_modules_denoiser import CONFIG, MASK, PAD, denoiser, generator, sequences, uniform


def same_weights(module, other, batch):
    """Gradients of two modules' losses under the same noise."""
    found = []
    for one in (module, other):
        loss = one.loss(batch, generator(3))
        found.append((loss, torch.autograd.grad(loss, list(one.network.parameters()), allow_unused=True)))
    return found


@pytest.mark.parametrize(
    ("terms", "value"),
    [(conditional_bce_loss, 2 * math.log(2)), (conditional_lsif_loss, -0.5), (conditional_gkl_loss, 1.0)],
)
def test_a_denoiser_that_is_its_reference_has_the_ratio_one(terms, value):
    network = denoiser()
    module = ImplicitRatioModule(network.trainable_copy(), reference=network, terms=terms)
    assert float(module.loss({"x_0": sequences()}, generator())) == pytest.approx(value, abs=1e-5)


def test_the_reference_is_not_trained_and_not_kept():
    network = denoiser()
    module = ImplicitRatioModule(network.trainable_copy(), reference=network)
    module.loss({"x_0": sequences()}, generator()).backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(name.startswith("network.") for name in module.state_dict())


def test_eq_12_on_data_with_the_weight_of_eq_1_is_the_nelbo():
    network, batch = denoiser(), {"x_0": sequences()}
    module = ConcreteScoreModule(network, terms=cross_entropy_terms, by_level=True)
    (loss, grads), (nelbo, expected) = same_weights(module, DenoiserModule(network), batch)
    assert torch.equal(loss, nelbo)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True) if a is not None)


@pytest.mark.parametrize("by_level", [True, False])
def test_the_score_form_of_the_uniform_denoiser_is_one_whatever_the_text(by_level):
    """-log p + 1 / (V p) + mean log p with p = 1 / V."""
    module = ConcreteScoreModule(uniform(), terms=score_form_terms, by_level=by_level)
    with torch.no_grad():
        found = torch.stack([module.loss({"x_0": sequences()}, generator(seed)) for seed in range(200)])
    assert float(found.mean()) == pytest.approx(1.0, abs=0.06 if by_level else 1e-5)


class Asked(torch.nn.Module):
    """A denoiser that keeps what it was last asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config, self.vocab_size = network, network.config, network.vocab_size

    def encode(self, x_t, *rest):
        self.x_t = x_t
        return self.network.encode(x_t, *rest)

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("network", "_modules") else getattr(self.network, name)


def at_step(module, step):
    module.trainer = SimpleNamespace(global_step=step, precision="32-true")
    return module


def test_uniform_noise_gives_way_to_masks():
    """At the first step no text has a mask, half-way half of the texts have, later all is eq. 12 under masks."""
    asked, x_0 = Asked(denoiser()), sequences()
    module = at_step(UniformFirstModule(asked, uniform_steps=10), 0)
    text = x_0 != PAD
    assert text.all(1).sum() < len(text), "some rows have padding"
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (11, 1.0)):
        at_step(module, step)
        module.loss({"x_0": x_0}, generator())
        changed = asked.x_t != x_0
        assert not changed[~text].any() and changed.any()
        with_mask = (asked.x_t == MASK).any(1)
        assert with_mask.float().mean() <= share
        assert not (with_mask & (changed & (asked.x_t != MASK)).any(1)).any(), "a text has one noise"
    masks = ConcreteScoreModule(asked.network, terms=cross_entropy_terms, by_level=False)
    assert torch.equal(module.loss({"x_0": x_0}, generator(3)), masks.loss({"x_0": x_0}, generator(3)))


def test_under_uniform_noise_every_token_is_asked_for():
    """Of a denoiser that knows nothing every position, noised or not, costs log V; padding costs nothing."""
    module = at_step(UniformFirstModule(uniform(), uniform_steps=10), 0)
    assert float(module.loss({"x_0": sequences()}, generator()).detach()) == pytest.approx(
        math.log(CONFIG.vocab_size - 2), abs=1e-5
    )


def test_the_score_of_every_objective_is_the_nelbo():
    """What stops a training, and chooses between objectives, is on one scale."""
    network, batch = denoiser(), {"x_0": sequences()}
    with seeded(0):
        teacher = CausalLM(CONFIG)
    expected = DenoiserModule(network).held_out_loss(batch, generator())
    for module in (
        ConcreteScoreModule(network, terms=cross_entropy_terms, by_level=False),
        DistilledModule(network, teacher=teacher),
        UniformFirstModule(network, uniform_steps=9),
        ImplicitRatioModule(network.trainable_copy(), reference=network),
        PreferenceModule(network.trainable_copy(), reference=network),
    ):
        assert torch.equal(module.held_out_loss(batch, generator())[0], expected[0]), type(module).__name__


def test_distilling_a_teacher_that_knows_nothing_asks_for_the_uniform_law():
    """A teacher of equal next-token laws has equal conditionals: the uniform denoiser's loss is 0, the least."""
    with seeded(0):
        teacher = CausalLM(CONFIG)
    with torch.no_grad():
        teacher.output.weight.zero_()
        teacher.output.bias.zero_()
    batch = {"x_0": sequences()}
    assert float(DistilledModule(uniform(), teacher=teacher).loss(batch, generator()).detach()) == pytest.approx(
        0, abs=1e-5
    )
    assert float(DistilledModule(denoiser(), teacher=teacher).loss(batch, generator()).detach()) > 0.01


def kept(target, x_0, tokens):
    """A batch with the laws of its tokens, those of the padding being anything."""
    parts = {"ids": target.ids, "log_pi": target.log_pi, "log_rest": target.log_rest}
    whole = {}
    for name, part in parts.items():
        full = torch.zeros(*x_0.shape, *part.shape[1:], dtype=part.dtype)
        full[tokens] = part
        whole[name] = full
    return {"x_0": x_0, **whole}


def test_laws_kept_once_a_text_teach_as_those_found_anew():
    """At a mask pi_i depends on the clean text alone; all tokens kept, the gradients agree, and a few are less."""
    with seeded(1):
        teacher = CausalLM(CONFIG).eval()
    network, x_0 = denoiser(), sequences()
    tokens = x_0 != PAD
    laws = conditional(teacher, x_0, tokens, exact)
    anew = DistilledModule(network, teacher=teacher, how=exact)
    (loss, grads), (expected, others) = same_weights(KeptModule(network), anew, {**kept(laws, x_0, tokens)})
    torch.testing.assert_close(loss, expected)
    for a, b in zip(grads, others, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    few = KeptModule(network).loss(kept(laws.top(2), x_0, tokens), generator(3))
    assert 0 <= few < expected


def pairs():
    winner = sequences()
    loser = torch.randint(0, 4, winner.shape, generator=generator(9)).masked_fill(winner == PAD, PAD)
    return winner, loser


def interleaved(winner, loser):
    return torch.stack([winner, loser], -1).flatten(1)


def test_a_denoiser_that_is_its_reference_prefers_nothing():
    network = denoiser()
    module = PreferenceModule(network.trainable_copy(), reference=network, beta=0.3, masks=3)
    assert float(module.loss({"x_0": interleaved(*pairs())}, generator()).detach()) == pytest.approx(
        math.log(2), abs=1e-5
    )


def test_a_step_along_the_gradient_prefers_the_winner():
    network, batch = denoiser(), {"x_0": interleaved(*pairs())}
    module = PreferenceModule(network.trainable_copy(), reference=network, beta=1.0, masks=4)
    optimiser = torch.optim.SGD(module.network.parameters(), lr=0.05)
    for step in range(20):
        optimiser.zero_grad()
        module.loss(batch, generator(step)).backward()
        optimiser.step()
    with torch.no_grad():
        assert float(module.loss(batch, generator(100))) < math.log(2) - 0.05


def test_padding_is_never_masked_and_changes_no_other_rows_law():
    """k is uniform on what a row can have masked, and which k is uniform too."""
    x_0 = torch.zeros(4000, 5, dtype=torch.long)
    x_0[::2, 3:] = PAD
    x_t, masked, count = level_sample(x_0, MASK, generator(), frozen=x_0 == PAD)
    assert not masked[x_0 == PAD].any()
    assert torch.equal(masked.sum(-1), count) and torch.equal(x_t == MASK, masked)
    for rows, length in ((slice(0, None, 2), 3), (slice(1, None, 2), 5)):
        shares = torch.bincount(count[rows], minlength=6)[1 : length + 1] / 2000
        torch.testing.assert_close(shares, torch.full((length,), 1 / length), atol=0.03, rtol=0)
        torch.testing.assert_close(
            masked[rows, :length].float().mean(0), torch.full((length,), (length + 1) / 2 / length), atol=0.03, rtol=0
        )


def test_without_padding_the_draws_are_as_before():
    x_0 = torch.randint(0, 4, (3, 8, 6), generator=generator())
    plain = level_sample(x_0, MASK, generator(5))
    told = level_sample(x_0, MASK, generator(5), frozen=torch.zeros_like(x_0, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(plain, told, strict=True))


def test_texts_of_a_pair_that_differ_in_length_are_refused():
    winner, loser = pairs()
    loser[0, 3] = PAD
    with pytest.raises(UserError, match="different or no length"):
        noised_pairs(winner, loser, MASK, 2, generator(), pad_index=PAD)
    winner[0] = loser[0] = PAD
    with pytest.raises(UserError, match="different or no length"):
        noised_pairs(winner, loser, MASK, 2, generator(), pad_index=PAD)


def test_the_score_form_is_the_same_of_a_denoiser_that_is_no_decoder():
    """Of the whole law, and of the mean logit: one loss."""
    network = denoiser()
    h = torch.randn(7, CONFIG.width, generator=generator())
    tokens = torch.randint(0, 4, (7,), generator=generator(1))
    foreign = SimpleNamespace(
        decode=network.decode, vocab_size=6, mask_index=MASK, pad_index=PAD, logits=network.logits, normalised=True
    )
    with torch.no_grad():
        torch.testing.assert_close(
            score_form_terms(foreign, h, tokens, 1e-3), score_form_terms(network, h, tokens, 1e-3)
        )
