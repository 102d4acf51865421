"""`gtl-counts`: the token-level ratio of counted tokens and pairs: no network is trained (docs/method.md 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from pydantic import Field

from gtl_lightning.errors import UserError
from gtl_lightning.fields import Few, Positive, PositiveFloat, Training
from gtl_lightning.methods.method import Context, Denoiser, Method, Recipe, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gtl_lightning.core.counts import Pairs
    from gtl_lightning.core.protocols import Source
    from gtl_lightning.data.dataset import TokenDataset
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.networks import CountTokenRatio

NUMBERS = 2
"""Of a pair in a table: its key and its value."""
HELD = 5
"""One target text of so many is not counted while the strengths are learned: of counted ones they come too high."""


class CountRatio(Settings):
    """The token-level ratio of counted tokens and pairs: no network is trained."""

    reach: Few = Field(2, description="places to either side whose visible tokens are read")
    token_prior: PositiveFloat = Field(5000.0, description="tokens' worth of the source's law in the target's")
    pair_prior: PositiveFloat = Field(1.0, description="the same of each token's neighbours, once a place away")
    source_texts: Positive = Field(100_000, description="source texts that are counted, at most")
    table_share: PositiveFloat | None = Field(
        None, description="numbers in the tables, of the denoiser's weights, at most: frequent pairs stay; null: all"
    )
    train: Training = Training(steps=100, batch=32, lr=0.02, weight_decay=0.0, warmup=10, ema=0.0, check_every=20)


class TunedCountRatio(CountRatio):
    """As `gtl-counts`, beside the fine-tuned denoiser."""


def recipe(context: Context, settings: CountRatio, beside: Denoiser = "source") -> Recipe:
    """The strengths on texts that are not counted yet, then counts of all.

    Raises:
        UserError: a single target text.
    """
    from gtl_lightning.modules.ratio import TokenRatioModule

    if len(context.target) < 2:
        raise UserError(
            "a counted ratio learns its strengths on target texts that it has not counted, and there is 1 text; "
            "raise the fraction"
        )
    source, texts, target = context.frozen(beside), context.source(), context.target
    of_source = counted(texts.subset(min(len(texts), settings.source_texts)), source.vocab_size, settings.reach)
    held = max(1, len(target) // HELD)

    def ratio(texts: TokenDataset) -> CountTokenRatio:
        return ratio_of(counted(texts, source.vocab_size, settings.reach), of_source, source, settings)

    def build(optimiser: OptimiserConfig, seed: int) -> TrainedModule:
        part = ratio(target.subset(len(target) - held))
        return TokenRatioModule(part, source, bce_weight=0.0, nll_weight=1.0, optimiser=optimiser, **context.scoring)

    def choices(learned: nn.Module) -> dict[str, nn.Module]:
        whole = ratio(target)
        whole.load_state_dict({"strengths": cast("CountTokenRatio", learned).strengths}, strict=False)
        return {"all-counted": whole}

    return Recipe({"network": build}, target.tail(len(target) - held), choices=choices)


@dataclass(frozen=True)
class Counts:
    """Of texts: Float[v] of tokens, and of each place from -reach to reach but 0 the tokens that stand there."""

    tokens: Tensor
    pairs: Mapping[int, Pairs]


def counted(texts: TokenDataset, vocab_size: int, reach: int) -> Counts:
    """Counts of all tokens of texts, and of all pairs up to `reach` places apart."""
    import torch

    from gtl_lightning.core.counts import Pairs

    flat = texts.flat
    text = torch.repeat_interleave(torch.arange(len(texts)), torch.from_numpy(texts.lengths))
    pairs = {}
    for apart in range(1, reach + 1):
        same = text[:-apart] == text[apart:]
        left, right = flat[:-apart][same], flat[apart:][same]
        pairs[-apart], pairs[apart] = Pairs.of(left, right, vocab_size), Pairs.of(right, left, vocab_size)
    return Counts(torch.bincount(flat, minlength=vocab_size).float(), pairs)


def frequent(pairs: Mapping[int, Pairs], most: int) -> dict[int, Pairs]:
    """The `most` most frequent pairs of all places together, those at nearer places first where they are level."""
    import torch

    order = sorted(pairs, key=abs)
    counts = torch.cat([pairs[place].counts for place in order])
    kept = torch.zeros(len(counts), dtype=torch.bool)
    kept[counts.sort(descending=True, stable=True).indices[: max(0, most)]] = True
    chosen = kept.split([len(pairs[place].counts) for place in order])
    return {place: pairs[place].where(here) for place, here in zip(order, chosen, strict=True)}


def ratio_of(target: Counts, of_source: Counts, source: Source, settings: CountRatio) -> CountTokenRatio:
    """The ratio of two counts, its strengths as they are before any training.

    Raises:
        UserError: a share of the weights of a denoiser that has none.
    """
    from gtl_lightning.core.counts import pair_log_ratio, source_law, token_log_ratio
    from gtl_lightning.networks import CountTokenRatio, ids_of

    ids = ids_of(source)

    def empty(size: int) -> CountTokenRatio:
        return CountTokenRatio(source.vocab_size, ids.mask_index, ids.pad_index, settings.reach, size)

    pairs = target.pairs
    if settings.table_share is not None:
        weights = sum(weight.numel() for weight in cast("nn.Module", source).parameters())
        if not weights:
            raise UserError("the denoiser has no weights of its own to take a share of; leave table_share out")
        fixed = sum(table.numel() for table in empty(0).state_dict().values())
        pairs = frequent(pairs, (int(settings.table_share * weights) - fixed) // NUMBERS)
    p = source_law(of_source.tokens)
    log_r = token_log_ratio(target.tokens, of_source.tokens, settings.token_prior)
    tables = {
        place: (kept.keys, pair_log_ratio(kept, of_source.pairs[place], p, log_r, settings.pair_prior * abs(place)))
        for place, kept in pairs.items()
    }
    return empty(sum(len(keys) for keys, _ in tables.values())).fill(log_r, tables)


METHODS = (
    Method(
        name="gtl-counts",
        label="GTL counts",
        help="The token-level ratio of counted tokens and pairs; no network is trained.",
        kind="ratio",
        settings=CountRatio(),
        recipe=recipe,
        place=1,
    ),
    Method(
        name="gtl-counts-finetuned",
        label="fine-tuning, GTL counts",
        help="The counted ratio beside the fine-tuned denoiser: what it guides has learned some of what is counted.",
        kind="ratio",
        beside="finetuned",
        settings=TunedCountRatio(),
        recipe=partial(recipe, beside="finetuned"),
        place=2,
    ),
)
