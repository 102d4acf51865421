"""Networks: sizes, the SUBS parameterisation, padding, causality, heads, and what is kept on disk."""

import itertools
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gtl_lightning.core.guidance import Guidance, TokenRatio, tilt
from gtl_lightning.core.sampling import sample
from gtl_lightning.errors import UserError
from gtl_lightning.files import save_tensors
from gtl_lightning.networks import (
    Backbone,
    BackboneConfig,
    CausalLM,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    Ids,
    MaskedDenoiser,
    Plain,
    PositionNetwork,
    RatioEnsemble,
    SequenceRatioNetwork,
    TokenRatioNetwork,
    UniformDenoiser,
    likeliest,
    load_network,
    log_prob_of,
    read_meta,
    save_network,
    seeded,
)
from gtl_lightning.networks.block import NO_PAD, rotary_table, rotate

MASK, PAD, V, L = 10, 11, 12, 8
CONFIG = BackboneConfig(vocab_size=V, length=L, width=16, depth=2, heads=2, mask_index=MASK, pad_index=PAD, cond_dim=8)


def shaken(network, seed=0):
    """Zero-initialised parts hide mistakes: every parameter gets noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def make(cls, config=CONFIG, **kwargs):
    with seeded(1):
        return shaken(cls(config, **kwargs))


def noisy(batch=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 10, (batch, L), generator=generator)
    masked = torch.rand(batch, L, generator=generator) < 0.5
    return torch.where(masked, MASK, x), torch.rand(batch, generator=generator)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_paper_sizes():
    with torch.device("meta"):
        paper = BackboneConfig(30_522, 512, 512, 8, 8, mask_index=103, pad_index=0)
        assert count(MaskedDenoiser(paper)) == pytest.approx(59.8e6, rel=0.01)
        ratio = replace(paper, width=96, cond_dim=48)
        assert count(Backbone(ratio)) == pytest.approx(4.06e6, rel=0.01)
        assert count(TokenRatioNetwork(ratio)) - count(Backbone(ratio)) == 96 * 97 + 30_522
        tied = MaskedDenoiser(replace(paper, tied=True))
        assert count(MaskedDenoiser(paper)) - count(tied) == 30_522 * 512


@pytest.mark.parametrize("cond_dim", [0, 8])
def test_denoiser_is_a_distribution_over_clean_tokens_and_carries_over(cond_dim):
    network = make(MaskedDenoiser, replace(CONFIG, cond_dim=cond_dim))
    x_t, t = noisy()
    log_p = network(x_t, t)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(5, L))
    masked = x_t == MASK
    assert (log_p[masked][:, [MASK, PAD]] == float("-inf")).all()
    assert log_p[masked][:, :10].isfinite().all()
    assert torch.equal(log_p[~masked].exp(), torch.nn.functional.one_hot(x_t[~masked], V).float())
    torch.testing.assert_close(network.decode(network.encode(x_t, t))[masked], log_p[masked])


@pytest.mark.parametrize(
    "build",
    [
        lambda c: make(MaskedDenoiser, c).encode,
        lambda c: make(MaskedDenoiser, replace(c, causal=True)).encode,
        lambda c: make(TokenRatioNetwork, c),
        lambda c: make(PositionNetwork, c),
    ],
)
def test_padding_changes_nothing(build):
    f = build(CONFIG)
    x_t, t = noisy()
    short = x_t[:, :5]
    padded = torch.cat([short, torch.full((5, 3), PAD)], dim=1)
    torch.testing.assert_close(f(padded, t)[:, :5], f(short, t), atol=1e-5, rtol=1e-5)


def test_padding_changes_no_sequence_ratio_and_a_row_of_pads_is_finite():
    f = make(SequenceRatioNetwork)
    x_t, t = noisy()
    padded = torch.cat([x_t[:, :5], torch.full((5, 3), PAD)], dim=1)
    torch.testing.assert_close(f(padded, t), f(x_t[:, :5], t), atol=1e-5, rtol=1e-5)
    for network in (f, make(MaskedDenoiser).encode, make(MaskedDenoiser, replace(CONFIG, causal=True)).encode):
        value = network(torch.full((2, L), PAD), t[:2])
        value.sum().backward()
        assert value.isfinite().all()


def test_every_token_counts():
    """A pad mask, a rotary table or a gate gone wrong would leave some position unseen."""
    f = make(SequenceRatioNetwork)
    x_t, t = noisy(1)
    for position in range(L):
        other = x_t.clone()
        other[0, position] = (x_t[0, position] + 1) % 10
        assert not torch.allclose(f(other, t), f(x_t, t), atol=1e-6)
    assert not torch.allclose(f(x_t.flip(1), t), f(x_t, t), atol=1e-6)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
@settings(max_examples=25)
def test_rotary_products_depend_on_the_distance_alone(i, j, shift):
    table = rotary_table(64, 8).double()
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def product(m, n):
        return (rotate(q, table[:, m : m + 1]) * rotate(k, table[:, n : n + 1])).sum()

    torch.testing.assert_close(product(i, j), product(i + shift, j + shift), atol=1e-5, rtol=0)


def test_time_is_seen_only_where_it_is_conditioned_on():
    x_t, t = noisy()
    seen, blind = make(MaskedDenoiser), make(MaskedDenoiser, replace(CONFIG, cond_dim=0))
    assert not torch.allclose(seen.encode(x_t, t), seen.encode(x_t, t * 0.5))
    assert torch.equal(blind.encode(x_t, t), blind.encode(x_t, t * 0.5))
    with pytest.raises(ValueError, match="noise level"):
        seen.backbone(x_t)


def test_new_blocks_are_the_identity():
    with seeded(0):
        deep = Backbone(CONFIG)
    x_t, t = noisy()
    embedded = deep.embedding(x_t)
    embedded[:, 0] += deep.start
    torch.testing.assert_close(deep(x_t, t), torch.nn.functional.layer_norm(embedded, (16,)))


def test_positions_of_an_all_masked_sequence_are_told_apart():
    log_p = make(MaskedDenoiser)(torch.full((1, L), MASK), torch.ones(1))[0, :, :10]
    distances = torch.cdist(log_p, log_p) + torch.eye(L)
    assert distances.min() > 1e-3


def test_causal_model_does_not_look_ahead_and_is_a_distribution_over_sequences():
    config = BackboneConfig(4, 3, 8, 2, 2, mask_index=2, pad_index=3)
    network = make(CausalLM, config)
    every = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    torch.testing.assert_close(network.log_prob(every).sum(-1).exp().sum(), torch.tensor(1.0))
    log_p = network(every)
    for a, b in itertools.combinations(range(8), 2):
        same = int((every[a] == every[b]).long().cumprod(0).sum())
        torch.testing.assert_close(log_p[a, : same + 1], log_p[b, : same + 1])
    padded = torch.tensor([[0, 1, 3]])
    torch.testing.assert_close(network.log_prob(padded)[0, :2], network.log_prob(padded[:, :2])[0])
    assert network.log_prob(padded)[0, 2] == 0


def test_ratios_start_at_zero():
    x_t, t = noisy()
    with seeded(0):
        denoiser = MaskedDenoiser(CONFIG)
        ratios = [
            TokenRatioNetwork(CONFIG),
            FeatureTokenRatio(denoiser, rank=3, own=replace(CONFIG, width=8)),
            DifferenceTokenRatio(denoiser),
            SequenceRatioNetwork(CONFIG),
        ]
    for ratio in (*ratios, RatioEnsemble(ratios[:3])):
        assert torch.equal(ratio(x_t, t), torch.zeros_like(ratio(x_t, t)))


@pytest.mark.parametrize("kind", ["own", "features", "features and own", "difference"])
def test_one_token_of_a_ratio_is_the_entry_of_all(kind):
    x_t, t = noisy()
    denoiser = make(MaskedDenoiser)
    own = replace(CONFIG, width=8) if kind == "features and own" else None
    ratio = {
        "own": lambda: make(TokenRatioNetwork),
        "difference": lambda: shaken(DifferenceTokenRatio(denoiser)),
    }.get(kind, lambda: shaken(FeatureTokenRatio(denoiser, 3, own)))()
    tokens = torch.randint(0, 10, x_t.shape, generator=torch.Generator().manual_seed(3))
    g = ratio(x_t, t)
    assert g.shape == (5, L, V)
    assert g.std() > 0.1
    h = ratio.encode(x_t, t)
    torch.testing.assert_close(ratio.decode_at(h, tokens), g.gather(-1, tokens[..., None]).squeeze(-1))


def on_denoiser(denoiser):
    return [shaken(FeatureTokenRatio(denoiser, 3, replace(CONFIG, width=8))), shaken(DifferenceTokenRatio(denoiser))]


@pytest.mark.parametrize("index", [0, 1], ids=["features", "difference"])
def test_a_ratio_reads_the_denoiser_without_owning_it(index):
    x_t, t = noisy()
    denoiser = make(MaskedDenoiser)
    ratio = on_denoiser(denoiser)[index]
    features = denoiser.encode(x_t, t)
    torch.testing.assert_close(ratio.decode(ratio.encode(x_t, t, features=features)), ratio(x_t, t))
    ids = {id(parameter) for parameter in denoiser.parameters()}
    assert not any(id(parameter) in ids for parameter in ratio.parameters())
    assert not any("denoiser" in name for name in ratio.state_dict())
    ratio(x_t, t).square().sum().backward()
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    assert all(parameter.grad is not None for parameter in ratio.parameters())
    assert deepcopy(ratio).denoiser is denoiser


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
def test_a_difference_guides_to_the_geometric_mean_of_two_denoisers(gamma):
    x_t, t = noisy()
    denoiser, other = make(MaskedDenoiser), shaken(MaskedDenoiser(CONFIG), 9)
    ratio = DifferenceTokenRatio(denoiser)
    ratio.shifted.load_state_dict(other.state_dict())
    masked = x_t == MASK
    log_p, log_q = denoiser(x_t, t)[masked], other(x_t, t)[masked]
    guided = torch.log_softmax(tilt(log_p, ratio(x_t, t)[masked], gamma), -1)
    clean = [token for token in range(V) if token not in (MASK, PAD)]
    expected = torch.log_softmax((1 - gamma) * log_p[:, clean] + gamma * log_q[:, clean], -1)
    torch.testing.assert_close(guided[:, clean], expected)


@pytest.mark.parametrize("index", [0, 1], ids=["features", "difference"])
@pytest.mark.parametrize("planner", ["random", "confidence"])
def test_guidance_by_a_reader_of_the_denoiser_runs_it_once_a_step_and_keeps_the_law(index, planner):
    denoiser = make(MaskedDenoiser)
    ratio = on_denoiser(denoiser)[index]
    passes = []
    denoiser.backbone.blocks[0].register_forward_hook(lambda *_: passes.append(1))

    def draw(f):
        generator = torch.Generator().manual_seed(0)
        guidance = Guidance(TokenRatio(f))
        passes.clear()
        drawn = sample(
            denoiser, batch=3, length=L, mask_index=MASK, guidance=guidance, planner=planner, generator=generator
        )
        return drawn, len(passes)

    shared, once = draw(ratio)
    apart, twice = draw(lambda x_t, t: ratio(x_t, t))
    assert torch.equal(shared, apart)
    assert (once, twice) == (L, 2 * L)


def test_low_rank_feature_ratio_can_express_a_change_of_the_output_bias():
    """With h and W frozen, g is free in the tokens' bias: the guided model can match any unigram shift."""
    x_t, t = noisy()
    denoiser = make(MaskedDenoiser)
    ratio = FeatureTokenRatio(denoiser, rank=2)
    shift = torch.randn(V, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ratio.bias.copy_(shift)
    torch.testing.assert_close(ratio(x_t, t), shift.expand(5, L, V))


def test_ensemble_is_the_mean():
    x_t, t = noisy()
    denoiser = make(MaskedDenoiser)
    tokens = [make(TokenRatioNetwork), shaken(FeatureTokenRatio(denoiser, 2, replace(CONFIG, width=8)), 7)]
    ensemble = RatioEnsemble(tokens)
    mean = (tokens[0](x_t, t) + tokens[1](x_t, t)) / 2
    torch.testing.assert_close(ensemble(x_t, t), mean)
    torch.testing.assert_close(ensemble.decode(ensemble.encode(x_t, t)[:, 2]), mean[:, 2])
    assert ensemble.denoiser is denoiser
    other = shaken(FeatureTokenRatio(shaken(make(MaskedDenoiser), 3), 2, replace(CONFIG, width=8)), 5)
    pair = [tokens[1], other]
    torch.testing.assert_close(RatioEnsemble(pair)(x_t, t), torch.stack([f(x_t, t) for f in pair]).mean(0))
    sequences = [make(SequenceRatioNetwork), shaken(SequenceRatioNetwork(CONFIG), 7)]
    torch.testing.assert_close(RatioEnsemble(sequences)(x_t, t), torch.stack([f(x_t, t) for f in sequences]).mean(0))
    with pytest.raises(UserError, match="no ratio networks"):
        RatioEnsemble([])


def test_planner_takes_the_masked_share_for_t():
    planner = make(PositionNetwork)
    x_t, _ = noisy()
    torch.testing.assert_close(planner(x_t), planner(x_t, (x_t == MASK).float().mean(-1)))


@pytest.mark.parametrize("cls", [MaskedDenoiser, TokenRatioNetwork, SequenceRatioNetwork, PositionNetwork])
def test_bf16_autocast_is_close_and_ends_in_fp32(cls):
    network = make(cls)
    x_t, t = noisy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = network(x_t, t)
    high = network(x_t, t)
    assert low.dtype == torch.float32
    finite = high.isfinite()
    assert torch.equal(low.isfinite(), finite)
    assert (low - high)[finite].abs().mean() < 0.1 * high[finite].std()
    if cls is MaskedDenoiser:
        torch.testing.assert_close(low.exp().sum(-1), torch.ones(5, L))


def test_gradients_under_bf16_point_where_those_in_fp32_do():
    network = make(MaskedDenoiser)
    x_t, t = noisy()
    tokens = torch.randint(0, V - 2, x_t.shape, generator=torch.Generator().manual_seed(0))

    def gradient(low: bool) -> torch.Tensor:
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = -log_prob_of(network, network.encode(x_t, t).flatten(0, 1), tokens.flatten()).mean()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    low, high = gradient(True), gradient(False)
    assert low.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(low, high, dim=0) > 0.99


# ---- on disk


def every_network():
    denoiser = make(MaskedDenoiser)
    feature = shaken(FeatureTokenRatio(denoiser, 3, replace(CONFIG, width=8)))
    return denoiser, [
        denoiser,
        make(MaskedDenoiser, replace(CONFIG, tied=True)),
        make(TokenRatioNetwork),
        make(SequenceRatioNetwork),
        make(PositionNetwork),
        feature,
        shaken(DifferenceTokenRatio(denoiser, dropout=0.1)),
        RatioEnsemble([feature, make(TokenRatioNetwork), DifferenceTokenRatio(denoiser)]),
    ]


def test_round_trip_of_every_class(tmp_path):
    denoiser, networks = every_network()
    x_t, t = noisy()
    for index, network in enumerate(networks):
        path = tmp_path / f"{index}.safetensors"
        save_network(path, network, {"step": 7})
        again = load_network(path, expect=type(network), denoiser=denoiser)
        assert torch.equal(again(x_t, t), network(x_t, t))
        assert not again.training
        assert read_meta(path) == {"step": 7}
    causal = make(CausalLM, replace(CONFIG, tied=True))
    save_network(tmp_path / "c", causal)
    again = load_network(tmp_path / "c", CausalLM)
    assert torch.equal(again(x_t), causal(x_t))
    assert again.output.weight is again.backbone.embedding.weight


def test_loading_leaves_the_global_generator_alone(tmp_path):
    save_network(tmp_path / "n", make(MaskedDenoiser))
    state = torch.get_rng_state()
    load_network(tmp_path / "n")
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_weights_repeat():
    with seeded(3):
        first = MaskedDenoiser(CONFIG)
    with seeded(3):
        second = MaskedDenoiser(CONFIG)
    with seeded(4):
        third = MaskedDenoiser(CONFIG)
    assert first.fingerprint() == second.fingerprint() != third.fingerprint()


@pytest.mark.parametrize("read", [{"shift": True}, {"heads": 1}, {"pad_index": NO_PAD}, UniformDenoiser])
def test_the_same_weights_read_otherwise_are_another_source(read, tmp_path):
    """A ratio of one guides the other wrongly, and a training of one is no training of the other."""
    denoiser = make(MaskedDenoiser)
    other = UniformDenoiser(CONFIG) if read is UniformDenoiser else MaskedDenoiser(replace(CONFIG, **read))
    other.load_state_dict(denoiser.state_dict())
    assert other.fingerprint() != denoiser.fingerprint()
    save_network(tmp_path / "n", FeatureTokenRatio(denoiser, rank=2))
    refused(tmp_path / "n", "another denoiser", denoiser=other)
    assert denoiser.trainable_copy(dropout=0.5).fingerprint() == denoiser.fingerprint(), "dropout is of training alone"


def refused(path, match, **kwargs):
    with pytest.raises(UserError, match=match) as caught:
        load_network(path, **kwargs)
    assert "\n" not in str(caught.value)


def test_another_class_is_refused(tmp_path):
    save_network(tmp_path / "n", make(SequenceRatioNetwork))
    refused(tmp_path / "n", "SequenceRatioNetwork, not a MaskedDenoiser", expect=MaskedDenoiser)
    assert load_network(tmp_path / "n", expect=(MaskedDenoiser, SequenceRatioNetwork))


def test_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "n"
    save_network(path, make(MaskedDenoiser))
    whole = path.read_bytes()
    for size in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "truncated")


def test_foreign_checkpoint_is_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "a")
    refused(tmp_path / "a", "not written by this project")
    save_tensors(tmp_path / "b", {"w": torch.ones(2)}, {"network": {"class": "Popen"}})
    refused(tmp_path / "b", "no network of this project")
    torch.save({"w": torch.ones(2)}, tmp_path / "c")
    refused(tmp_path / "c", "truncated or no safetensors")
    refused(tmp_path / "d", "does not exist")


@pytest.mark.parametrize(
    ("change", "match"),
    [({"width": 32}, "do not fit"), ({"depth": 3}, "missing or left over"), ({"colour": 1}, "do not fit")],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, match):
    network = make(MaskedDenoiser)
    config = {**network.config.__dict__, **change}
    header = {"network": {"class": "MaskedDenoiser", "config": config}}
    save_tensors(tmp_path / "n", network.state_dict(), header)
    refused(tmp_path / "n", match)


def test_feature_ratio_wants_its_own_denoiser(tmp_path):
    denoiser, other = make(MaskedDenoiser), shaken(MaskedDenoiser(CONFIG), 9)
    save_network(tmp_path / "n", shaken(FeatureTokenRatio(denoiser, 2)))
    refused(tmp_path / "n", "another denoiser", denoiser=other)
    refused(tmp_path / "n", "give the one it was trained on")


def test_other_modules_are_not_saved(tmp_path):
    with pytest.raises(UserError, match="cannot save a Linear"):
        save_network(tmp_path / "n", torch.nn.Linear(1, 1))


def test_too_long_a_sequence_is_refused():
    with pytest.raises(UserError, match="sequences of 9 tokens; this network was made for length = 8"):
        make(MaskedDenoiser)(torch.zeros(1, 9, dtype=torch.long), torch.ones(1))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"heads": 3}, "width / heads must be even"),
        ({"depth": 0}, "depth = 0"),
        ({"mask_index": V}, "mask_index = 12"),
        ({"dropout": 1.0}, "dropout = 1.0"),
    ],
)
def test_impossible_sizes_are_refused(change, match):
    with pytest.raises(UserError, match=match):
        replace(CONFIG, **change)


def test_importing_networks_is_light():
    code = "import sys, gtl_lightning.networks; print([m for m in ('pytorch_lightning', 'peft') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_projections_in_parts_are_the_whole_ones(monkeypatch):
    """Values and gradients; parts of two positions each, so that recomputation and joining are used."""
    from gtl_lightning.networks import projection

    denoiser, causal = make(MaskedDenoiser), make(CausalLM)
    x, t = noisy()
    x_0 = torch.where(x == MASK, 3, x)

    def results():
        values, gradients = [], []
        h = denoiser.encode(x, t).reshape(-1, CONFIG.width)
        for network, value in ((denoiser, log_prob_of(denoiser, h, x_0.flatten())), (causal, causal.log_prob(x_0))):
            network.zero_grad()
            value.sum().backward()
            values.append(value.detach())
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        with torch.no_grad():
            values += [log_prob_of(denoiser, h, x_0.flatten()), likeliest(denoiser, h)]
        return values, gradients

    whole, whole_gradients = results()
    assert torch.allclose(whole[0], denoiser.decode(denoiser.encode(x, t)).gather(-1, x_0[..., None]).flatten())
    monkeypatch.setattr(projection, "ELEMENTS", 2 * V)
    parts, gradients = results()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, parts, strict=True))
    for mine, theirs in zip(gradients, whole_gradients, strict=True):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, theirs, strict=True))
    sizes = []
    projection.in_parts(lambda rows: sizes.append(len(rows)) or rows.sum(-1), V, torch.zeros(5, 3))
    assert sizes == [2, 2, 1]
    assert projection.rows_of_part(V, torch.device("cuda")) == projection.ON_GPU * 2


@pytest.mark.parametrize("cls", [MaskedDenoiser, UniformDenoiser])
def test_a_copy_that_trains_has_its_dropout_on(cls):
    """A denoiser that was opened is in eval mode, and a trainer leaves modes as they are."""
    source = make(cls).eval()
    for copy in (
        source.trainable_copy(),
        source.trainable_copy(dropout=0.3),
        Plain(source, Ids(MASK, PAD), V).trainable_copy(),
    ):
        assert all(module.training for module in copy.modules())
    assert not any(module.training for module in source.modules())
