"""`gtl ar2diff`: a pretrained decoder becomes a denoiser of the records' texts (AR2Diff; docs/method.md section 4).

It is read from both sides, continued with eq. 1, and written as transformers' own class. What it was before and what it
is after stand side by side, on the same held-out texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gtl_lightning.core.guard import evaluating
from gtl_lightning.core.schedule import NoiseSchedule
from gtl_lightning.data.checkpoint import Checkpoint, Roles, checkpoint, roles, tokenizer_of
from gtl_lightning.data.dataset import TokenDataset
from gtl_lightning.data.loading import TextDataModule
from gtl_lightning.data.tokens import encode_chunks, read_texts, save_tokenizer
from gtl_lightning.errors import UserError, lacks_memory
from gtl_lightning.files import check_place, digest, replacing, write_json
from gtl_lightning.methods.fitting import Trained
from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.modules.blank import choose_blank, frequent
from gtl_lightning.modules.continuation import Attending, ContinuationModule, Objective, counted
from gtl_lightning.modules.lora import add_lora, merge_lora
from gtl_lightning.networks.adapters.model import Reading
from gtl_lightning.networks.families import check_length, read_config, read_model
from gtl_lightning.networks.pretrained import PretrainedDenoiser
from gtl_lightning.papers.ar2diff import targets
from gtl_lightning.workspace.converting import ConversionRequest
from gtl_lightning.workspace.corpus import check_machine, device_of
from gtl_lightning.workspace.fitting import fit_best, scoring
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import SPLITS, Cell, log, study

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HEALTH = "ar2diff.json"
BLANK_TEXTS = 256
"""Training texts whose frequent tokens are tried as the mask's row."""


@dataclass(frozen=True)
class Health:
    """What the model says of held-out texts, in nats per token: as a decoder, and as a denoiser at most (NELBO)."""

    ar: float
    nelbo: float


def convert(params: Params, asked: ConversionRequest) -> None:
    """The folder `asked.out`: transformers' files, the tokenizer, denoiser.json, and ar2diff.json with the health.

    Raises:
        UserError: an option out of range, a checkpoint that is refused, no texts, too little memory.
    """
    asked.check()
    check_machine(params)
    found = checkpoint(asked.name)
    with _told_memory():
        _convert(params, asked, found)


def _convert(params: Params, asked: ConversionRequest, found: Checkpoint) -> None:
    config = read_config(found.folder, found.gguf)
    if getattr(config, "is_causal", True) is False:
        raise UserError(
            f"{found.name} is read from both sides already; give the autoregressive model that it came from"
        )
    check_length(asked.length, config, shift=True)  # as a decoder it reads a start in any case
    tokenizer, rows = tokenizer_of(found), config.vocab_size
    ids = roles(tokenizer, rows)
    log.info("%s: %s", found.name, ids.said)
    check_place(asked.out)
    tracked = study(params)
    train, val = (
        _texts(asked, part, tokenizer, ids, count)
        for part, count in (("train", max(1, asked.steps * asked.batch)), ("val", params.train.val_examples))
    )
    denoiser = PretrainedDenoiser(
        with_rows(read_model(found.folder, found.gguf), ids.rows, ids.unread),
        Reading(ids.mask_index, ids.pad_index, ids.start_index, ids.excluded, asked.shift, sink=asked.start_alone),
    )
    given = scoring(params, val)
    data = TextDataModule(
        train,
        val,
        batch=asked.batch,
        steps_per_epoch=max(1, asked.checks),
        seed=asked.seed,
        pad_index=ids.pad_index,
        parts=params.machine.devices * params.machine.accumulate,
    )
    device = device_of(params)
    blank = _blank(asked, denoiser.to(device), tokenizer, ids) if ids.mask_index in ids.unread else None

    def measured(denoiser: PretrainedDenoiser) -> Health:
        module = ContinuationModule(denoiser.to(device), after(asked.prefix), **given)
        return health(module, list(data.val_dataloader()), asked.prefix, rows)

    before = measured(denoiser)
    log.info("before: %.3f nats a token as a decoder, NELBO %.3f as a denoiser", before.ar, before.nelbo)
    trained = _continued(params, asked, found, denoiser, data, given) if asked.steps else None
    if trained is not None:
        network = cast(PretrainedDenoiser, trained.network)
        denoiser = merge_lora(network) if asked.lora else network
        denoiser.recompute(False)
    ended = measured(denoiser) if asked.steps else before
    row = _row(asked, found, ids, val, trained, before, ended) | {"mask_read_as": blank}
    with replacing(asked.out) as staged:
        denoiser.cpu().eval().save(staged)
        save_tokenizer(tokenizer, staged)
        write_json(staged / HEALTH, row)
    with tracked.child("ar2diff", f"ar2diff {found.name}", digest(row), {"seed": asked.seed}) as run:
        run.log_params({"from": found.name, "steps": asked.steps, "length": asked.length, "domain": asked.domain})
        run.log_metrics({key: value for key, value in row.items() if isinstance(value, float)})
    log.info(
        "health on %d held-out texts, nats a token: as a decoder %.3f, now %.3f; NELBO as a denoiser %.3f, now %.3f "
        "after %d steps; %s",
        len(val), before.ar, ended.ar, before.nelbo, ended.nelbo, asked.steps, asked.out,
    )  # fmt: skip


def _blank(
    asked: ConversionRequest, denoiser: PretrainedDenoiser, tokenizer: PreTrainedTokenizerFast, ids: Roles
) -> list[str] | None:
    """The tokens whose mean the mask is read as from now on; None where the mean of all rows is better."""
    some = _texts(asked, "train", tokenizer, ids, BLANK_TEXTS)
    device = denoiser.output_embedding.device
    x_0 = some.batch(range(min(asked.batch, len(some)))).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=asked.precision == "bf16-mixed"):
        found = choose_blank(denoiser, x_0, frequent(some.flat, denoiser.excluded))
    words = [str(token) for token in tokenizer.convert_ids_to_tokens(list(found.tokens))]
    log.info(
        "mask: read as the mean of %s; NELBO of %d training texts %.3f, in place of %.3f",
        ", ".join(words) or "all rows", len(x_0), found.after, found.before,
    )  # fmt: skip
    return words or None


def after(prefix: int, objective: Objective = counted) -> Objective:
    """The objective where the first `prefix` tokens of every text are given."""

    def loss(
        network: Attending,
        x_0: Tensor,
        target: Tensor,
        attention: Tensor | None,
        schedule: NoiseSchedule,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        return objective(network, x_0, target & _wanted(x_0, prefix), attention, schedule, generator)

    return loss


def with_rows(model: PreTrainedModel, rows: int, unread: Sequence[int] = ()) -> PreTrainedModel:
    """The model with that many rows of its embeddings; a new one is the mean of those that there were.

    So is what is read of an id of `unread`, which no text had: its row says nothing yet, and is as loud as a word's.
    """
    old = len(cast(nn.Embedding, model.get_input_embeddings()).weight)
    if rows > old:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = cast(nn.Embedding, layer).weight
            weight[old:] = weight[:old].mean(0)
        read = cast(nn.Embedding, model.get_input_embeddings()).weight
        read[list(unread)] = read[:old].mean(0)
    return model


def health(module: ContinuationModule, batches: list[Batch], prefix: int = 0, rows: int | None = None) -> Health:
    """Of the module's denoiser on batches {"x_0": Long[b,l]}; the noise of each is always the same.

    `prefix` tokens are given; the decoder had `rows` ids.
    """
    denoiser = cast(PretrainedDenoiser, module.network)
    ar, nelbo, device = torch.zeros(2).double(), torch.zeros(2).double(), denoiser.output_embedding.device
    with torch.no_grad(), evaluating(denoiser):
        for index, batch in enumerate(batches):
            x_0 = batch["x_0"].to(device)
            target = targets(x_0, denoiser.pad_index) & _wanted(x_0, prefix)
            log_p = denoiser.causal_log_prob(x_0, rows)[target].double()
            ar += torch.stack([-log_p.sum(), target.sum()]).cpu()
            for draw in range(module.draws):
                generator = torch.Generator(device).manual_seed(index * module.draws + draw)
                nelbo += torch.stack(module.held_out_loss({"x_0": x_0}, generator)).cpu()
    return Health(float(ar[0] / ar[1]), float(nelbo[0] / nelbo[1]))


def _continued(
    params: Params,
    asked: ConversionRequest,
    found: Checkpoint,
    denoiser: PretrainedDenoiser,
    data: TextDataModule,
    given: dict[str, Any],
) -> Trained:
    """The fit, resumable and tracked as every training here."""
    network = add_lora(denoiser, rank=asked.lora, alpha=2.0 * asked.lora, seed=asked.seed) if asked.lora else denoiser
    network.recompute(asked.checkpointing)

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        anneal_steps = round(asked.anneal * asked.steps)
        return ContinuationModule(network.train(), after(asked.prefix), anneal_steps, optimiser=optimiser, **given)

    if asked.precision is not None:
        machine = params.machine.model_copy(update={"precision": asked.precision})
        params = params.model_copy(update={"machine": machine})
    depends = {
        "reading": asdict(denoiser.reading),
        "schedule": params.schedule,
        **{key: getattr(asked, key) for key in ("domain", "length", "prefix", "anneal", "lora", "checkpointing")},
    }
    read = {SPLITS / f"{asked.domain}_{part}.parquet" for part in ("train", "val")} | set(found.files)
    cell = Cell("ar2diff", None, asked.seed)
    return fit_best(params, cell, build, data, asked.training, depends, read, "network", code=__name__)


def _texts(
    asked: ConversionRequest, part: str, tokenizer: PreTrainedTokenizerFast, ids: Roles, count: int
) -> TokenDataset:
    """The first `count` texts of a split by rank that have more tokens than are given, in the checkpoint's tokens."""
    path = SPLITS / f"{asked.domain}_{part}.parquet"
    rows = chain.from_iterable(encode_chunks(tokenizer, read_texts(path), asked.length, ids.end_index))
    kept = list(islice((row for row in rows if len(row) > asked.prefix), count))
    if not kept:
        what = f"text of more than --prefix {asked.prefix} tokens; lower it" if asked.prefix else "text; split others"
        raise UserError(f"{path} has no {what}")
    for role, index in (("mask", ids.mask_index), ("padding", ids.pad_index)):
        if any(index in row for row in kept):
            raise UserError(
                f"{path}: texts have the token {tokenizer.convert_ids_to_tokens(index)!r}, which is the {role} of "
                f"{asked.name}; give a tokenizer whose {role} stands for nothing else"
            )
    return TokenDataset.from_arrays(np.concatenate(kept), np.cumsum([0, *map(len, kept)]), ids.pad_index)


def _wanted(x: Tensor, prefix: int) -> Tensor:
    return torch.arange(x.shape[1], device=x.device) >= prefix


def _row(
    asked: ConversionRequest,
    found: Checkpoint,
    ids: Roles,
    val: TokenDataset,
    trained: Trained | None,
    before: Health,
    ended: Health,
) -> dict[str, Any]:
    said = {key: value for key, value in vars(asked).items() if key not in ("name", "out", "check_every", "precision")}
    fitted = {} if trained is None else {"best_step": trained.result.best_step, "made_with": trained.made_with}
    return {
        "from": found.name,
        "ids": ids.said,
        **said,
        "sink": asked.start_alone,
        "held_out_texts": len(val),
        "held_out_tokens": int(val.lengths.sum()),
        "trained_parameters": trained.parameters if trained else 0,
        **fitted,
        "ar_before": before.ar,
        "ar_after": ended.ar,
        "nelbo_before": before.nelbo,
        "nelbo_after": ended.nelbo,
    }


@contextmanager
def _told_memory() -> Iterator[None]:
    """What memory could not be had inside is one line that says which option takes less."""
    try:
        yield
    except Exception as error:
        if not lacks_memory(error) and not (error.__cause__ is not None and lacks_memory(error.__cause__)):
            raise
        raise UserError(
            "not enough memory; --checkpointing keeps fewer states, a lower --batch or --length takes fewer, --lora 16 "
            "has no moments of the whole model, or give the process more"
        ) from error
