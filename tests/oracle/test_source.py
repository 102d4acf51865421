"""A source is whatever has the members of `Source`: one that is none of this project's is adapted and guided."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gtl_lightning import Guidance, TokenRatio, sample
from gtl_lightning.core.protocols import EVERYWHERE, Look, Source
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.errors import UserError
from gtl_lightning.methods import METHODS
from gtl_lightning.methods.method import Context
from gtl_lightning.modules.base import OptimiserConfig
from gtl_lightning.modules.denoiser import noised
from gtl_lightning.modules.fit import fit
from gtl_lightning.modules.planner import PlannerModule
from gtl_lightning.modules.ratio import TokenRatioModule
from gtl_lightning.networks import (
    BackboneConfig,
    CausalLM,
    DifferenceTokenRatio,
    FeatureTokenRatio,
    MaskedDenoiser,
    OnDenoiser,
    PositionNetwork,
    RatioEnsemble,
    TokenLevel,
    ids_of,
    likeliest,
    load_network,
    log_prob_of,
    log_probs,
    save_network,
    seeded,
)
from gtl_lightning.networks.block import NO_PAD
from gtl_lightning.workspace.closure import ROOT
from tests.oracle.enumeration import total_variation, total_variation_bound
from tests.oracle.foreign import LAWS, Foreign
from tests.oracle.looking import CONFIG
from tests.oracle.test_looks import MODES

MASK, N = LAWS.mask_index, 20_000
OWN = BackboneConfig(MASK + 1, 3, 8, 1, 2, mask_index=MASK, pad_index=NO_PAD, cond_dim=4)
STARTED = ("finetune", "refinemix", "lora", "gtl", "gtl-head", "gtl-warm")
"""The methods that read the source and no classifier."""


def drawn(table: Tensor, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return LAWS.states[torch.multinomial(table, count, replacement=True, generator=generator)]


def batch(count: int, seed: int) -> dict[str, Tensor]:
    """Half of it target, half source."""
    x_0 = torch.cat([drawn(LAWS.q, count, seed), drawn(LAWS.p, count, seed + 1)])
    return {"x_0": x_0, "is_target": torch.arange(2 * count) < count}


class Data(pl.LightningDataModule):
    """Three steps an epoch."""

    def train_dataloader(self) -> Any:
        return DataLoader([batch(64, 10 * step) for step in range(1, 4)], batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return DataLoader([batch(500, 1)], batch_size=None)  # type: ignore[arg-type]


@contextmanager
def silent(what: str) -> Any:
    yield lambda done, total: None


def context(source: Source) -> Context:
    nothing = TokenDataset.from_arrays(torch.zeros(3).int().numpy(), torch.tensor([0, 3]).numpy(), NO_PAD)
    return Context(
        seed=0,
        target=nothing,
        source=lambda: nothing,
        backbone=lambda network: OWN,
        denoiser=cast(Any, None),
        frozen=lambda role: source,
        scoring={"draws": 2},
        smoothing=lambda: 0.0,
        device=torch.device("cpu"),
        progress=silent,
    )


def draw(denoiser: Any, ratio: Any, count: int = N, **options: Any) -> Tensor:
    guidance = Guidance(TokenRatio(ratio)) if ratio is not None else None
    generator = torch.Generator().manual_seed(1)
    return sample(denoiser, mask_index=MASK, batch=count, length=3, guidance=guidance, generator=generator, **options)


def close(x: Tensor, law: Tensor) -> bool:
    return total_variation(x, law, LAWS) < total_variation_bound(law, len(x)) + 1e-3  # logits bounded at -9


def test_what_has_the_members_is_a_source() -> None:
    assert isinstance(Foreign(), Source)
    with seeded(0):
        assert isinstance(MaskedDenoiser(CONFIG), Source)
        assert not isinstance(PositionNetwork(CONFIG), Source)
        assert not isinstance(FeatureTokenRatio(MaskedDenoiser(CONFIG)), Source)


def test_the_law_of_a_source_has_neither_mask_nor_what_it_did_not_promise() -> None:
    source, x_t, t = Foreign(), LAWS.partial, torch.ones(len(LAWS.partial))
    h = source.encode(x_t, t)[x_t == MASK]
    log_p = log_probs(source, h)
    assert (log_p[:, MASK] == -torch.inf).all()
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(len(h)))
    exact = LAWS.denoiser(x_t, t)[x_t == MASK].float()
    torch.testing.assert_close(log_p[:, :MASK], exact[:, :MASK])
    tokens = torch.arange(len(h)) % MASK
    torch.testing.assert_close(log_prob_of(source, h, tokens), exact.gather(-1, tokens[:, None]).squeeze(-1))
    assert torch.equal(likeliest(source, h), exact[:, :MASK].argmax(-1))


@pytest.mark.parametrize("name", MODES)
def test_a_source_of_someone_else_samples_its_law_whatever_the_look(name: str) -> None:
    options, _ = MODES[name]
    assert close(draw(Foreign(), None, **options), LAWS.p)
    assert close(draw(Foreign(), lambda x_t, t: LAWS.token_log_ratio(x_t, t), **options), LAWS.q)


@pytest.mark.parametrize("name", STARTED)
def test_a_method_takes_a_source_of_someone_else(name: str, tmp_path: Path) -> None:
    """It starts at the source's law, six steps bring it nearer to the target, and it samples under every look."""
    source, method = Foreign().eval(), METHODS[name]
    before = {key: value.clone() for key, value in source.state_dict().items()}
    recipe = method.recipe(context(source), method.settings)
    build = next(iter(recipe.builds.values()))
    module = build(OptimiserConfig(lr=0.02, warmup_steps=1), 0)
    starts = module.network.eval()
    if method.guides:
        assert close(draw(source, starts), LAWS.p)
    else:
        assert close(draw(starts, None), LAWS.p)

    def score() -> float:
        with torch.no_grad():
            total, count = module.held_out_loss(batch(2000, 5), torch.Generator().manual_seed(0))
        return float(total / count)

    first = score()
    result = fit(
        module, Data(), steps=6, check_every=3, patience=9, state_dir=tmp_path, precision="32-true",
        accelerator="cpu", progress=False,
    )  # fmt: skip
    assert result.steps == 6
    assert score() < first - 0.01
    network: nn.Module = recipe.finish(module.network) if recipe.finish else module.network
    for options, _ in MODES.values():
        x = draw(source, network, 300, **options) if method.guides else draw(network, None, 300, **options)
        assert x.min() >= 0 and x.max() < MASK
    if name == "lora":
        assert {"mixing.weight", "head.weight"} <= set(network.state_dict()) and type(network) is Foreign
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert not any(weight.grad is not None for weight in source.parameters())


def test_dropout_of_a_copy_is_the_copys() -> None:
    source = Foreign().eval()
    ratio = DifferenceTokenRatio(source, dropout=0.5)
    copy = cast(Foreign, ratio.shifted)
    assert (copy.drop.p, source.drop.p) == (0.5, 0.0)
    assert copy.training and not source.training


def test_the_ratio_of_someone_elses_source_is_kept_with_its_fingerprint(tmp_path: Path) -> None:
    source = Foreign().eval()
    with seeded(0):
        ratios = [FeatureTokenRatio(source, rank=2, own=OWN), DifferenceTokenRatio(source)]
    x_t, t = LAWS.partial, torch.ones(len(LAWS.partial))
    for index, ratio in enumerate((*ratios, RatioEnsemble(ratios))):
        with torch.no_grad():
            for weight in ratio.parameters():
                weight.add_(0.1)
        save_network(tmp_path / str(index), ratio)
        again = load_network(tmp_path / str(index), denoiser=source)
        assert torch.equal(again(x_t, t), ratio.eval()(x_t, t))
        assert source.fingerprint() in (tmp_path / str(index)).read_bytes().decode("latin-1")
    with seeded(0), pytest.raises(UserError, match="another denoiser"):
        load_network(tmp_path / "1", denoiser=MaskedDenoiser(OWN))
    with pytest.raises(UserError, match="give the one it was trained on"):
        load_network(tmp_path / "1", denoiser=cast(Any, nn.Linear(1, 1)))


def test_a_planner_learns_where_someone_elses_source_is_right() -> None:
    """A new planner says one half: the slope of its bias is half the masked positions less those that are right."""
    source = Foreign()
    with seeded(0):
        module = PlannerModule(PositionNetwork(OWN), source)
    total, count = module.held_out_loss(batch(50, 0), torch.Generator().manual_seed(0))
    total.backward()
    x_0 = batch(50, 0)["x_0"]
    x_t, t, masked = noised(x_0, ids_of(source), module.schedule, torch.Generator().manual_seed(0))
    right = (LAWS.denoiser(x_t, t)[..., :MASK].argmax(-1) == x_0)[masked].sum()
    assert 0 < right < count
    slope = cast(PositionNetwork, module.network).head.bias.grad
    assert slope is not None
    torch.testing.assert_close(slope, (count / 2 - right)[None])


class Alone(TokenLevel):
    """A newcomer's ratio: the exact one, times a weight that is to be found."""

    width = LAWS.mask_index + 1

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def encode(self, x_t: Tensor, t: Tensor, look: Look = EVERYWHERE, features: Tensor | None = None) -> Tensor:
        return look.of(LAWS.token_log_ratio(x_t, t).float())

    def decode(self, h: Tensor) -> Tensor:
        return self.scale * h

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        return self.scale * h.gather(-1, tokens[..., None]).squeeze(-1)


class Table:
    """An encoder that looks up the exact ratio."""

    width = LAWS.mask_index + 1

    def encode(self, x_t: Tensor, t: Tensor, look: Look, features: Tensor | None) -> Tensor:
        return look.of(LAWS.token_log_ratio(x_t, t).float())


class Reader(OnDenoiser):
    """The same, beside the source's features."""

    def __init__(self, denoiser: Source) -> None:
        super().__init__(denoiser)
        self.scale = nn.Parameter(torch.zeros(()))

    @property
    def second(self) -> Table:
        return Table()

    def decode(self, h: Tensor) -> Tensor:
        return self.scale * h[..., self.width :]

    def decode_at(self, h: Tensor, tokens: Tensor) -> Tensor:
        return self.scale * h[..., self.width :].gather(-1, tokens[..., None]).squeeze(-1)


@pytest.mark.parametrize("kind", [Alone, Reader])
def test_a_ratio_of_three_methods_learns_the_ratio_and_samples_the_target_under_every_look(kind: Any) -> None:
    """Eqs. 9 and 9' have their minimum at the weight 1; at 1 the samples are the target's, whatever the look."""
    assert {name for name in vars(kind) if not name.startswith("_")} - {"width"} == kind.__base__.__abstractmethods__
    assert len(kind.__base__.__abstractmethods__) == 3
    source = Foreign().eval()
    ratio = kind(source) if kind is Reader else kind()
    module = TokenRatioModule(ratio, source, bce_weight=0.3)
    assert module.width == LAWS.mask_index + 1
    optimiser = torch.optim.Adam(ratio.parameters(), lr=0.1)
    for step in range(60):
        optimiser.zero_grad()
        module.loss(batch(500, 2 * step), torch.Generator().manual_seed(step)).backward()
        optimiser.step()
    assert ratio.scale.item() == pytest.approx(1.0, abs=0.1)
    with torch.no_grad():
        ratio.scale.fill_(1.0)
    for options, _ in MODES.values():
        assert close(draw(source, ratio, **options), LAWS.q)
        assert close(draw(source, RatioEnsemble([ratio, ratio]), **options), LAWS.q)


BELOW = ("core", "papers", "laws", "data", "evaluation", "modules")
BUILDS = {
    "methods/vanilla.py", "stages/budget.py", "bench/sampling.py",
    "studies/markov/study.py", "studies/markov/domains.py", "studies/markov/models.py",
    "studies/tcsm/chains.py",
    "studies/ar2diff/chains.py", "studies/ar2diff/text.py", "studies/ar2diff/tasks.py", "studies/ar2diff/speed.py",
}  # fmt: skip
"""Where one is made from nothing, as by every kind of source, or a study's own is read; all else asks a `Source`."""


def test_the_class_is_named_where_it_is_defined_or_made() -> None:
    package = ROOT / "gtl_lightning"
    named = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(rf"\b{MaskedDenoiser.__name__}\b", path.read_text()) and path.parent.name != "networks"
    }
    assert not [name for name in named if name.startswith(BELOW)]
    assert {name for name in named if not name.startswith("sources/")} <= BUILDS
    inside = {path.name for path in (package / "networks").glob("*.py") if "MaskedDenoiser" in path.read_text()}
    assert inside <= {"__init__.py", "heads.py", "decoder.py"}


def test_the_causal_model_is_no_file_of_a_source(tmp_path: Path) -> None:
    from gtl_lightning.workspace.corpus import load_denoiser

    (tmp_path / "models/source").mkdir(parents=True)
    with seeded(0):
        save_network(tmp_path / "models/source/network.safetensors", CausalLM(CONFIG))
    with pytest.raises(UserError, match="holds a CausalLM, not a MaskedDenoiser"):
        load_denoiser("source", tmp_path)
