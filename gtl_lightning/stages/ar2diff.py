"""`gtl ar2diff`: a pretrained decoder becomes a denoiser of the records' texts (AR2Diff; docs/method.md section 4).

It is read from both sides, continued with eq. 1, and written as transformers' own class. What it was before and what it
is after stand side by side, on the same held-out texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
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
from gtl_lightning.errors import UserError
from gtl_lightning.fields import Training
from gtl_lightning.files import digest, replacing, write_json
from gtl_lightning.methods.fitting import Trained
from gtl_lightning.modules.base import Batch, OptimiserConfig, TrainedModule
from gtl_lightning.modules.continuation import Attending, ContinuationModule, Objective, masked
from gtl_lightning.modules.lora import add_lora, merge_lora
from gtl_lightning.networks.pretrained import NOTE, PretrainedDenoiser, Reading, check_length, read_config, read_model
from gtl_lightning.papers.ar2diff import targets
from gtl_lightning.resources import lacks_memory
from gtl_lightning.workspace.corpus import check_machine, device_of
from gtl_lightning.workspace.fitting import fit_best, scoring
from gtl_lightning.workspace.options import check_seed
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import SPLITS, Cell, log, study

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

HEALTH = "ar2diff.json"
CHECK_EVERY = 50
"""Steps between checks, where nothing is asked for and there are more."""
DOMAINS = ("source", "target")


@dataclass(frozen=True)
class Asked:
    """What `gtl ar2diff` is asked for.

    Attributes:
        name: a folder, a GGUF file, or OWNER/NAME of a hub.
        out: folder of the denoiser.
        steps: of the continuation; 0 takes the weights as they are.
        domain: whose texts it is continued on.
        length: most tokens of a text.
        prefix: tokens at the front of each text that are given, neither noised nor learned.
        batch: texts a step.
        lr: peak learning rate.
        warmup: steps of linear warm-up, at most a quarter of all.
        check_every: steps between checks; None takes `CHECK_EVERY`, or all steps where there are fewer.
        shift: whether a state predicts the token after the one it stands at, as in the decoder.
        anneal: share of the steps over which attention to later tokens is let in.
        lora: rank of low-rank updates, which alone train; 0 trains every weight.
        checkpointing: whether states are computed again on the way back, instead of kept.
        precision: as `machine.precision`; None takes that.
        seed: of order, noise and low-rank updates.
    """

    name: str
    out: Path
    steps: int
    domain: str = "target"
    length: int = 128
    prefix: int = 0
    batch: int = 8
    lr: float = 3e-4
    warmup: int = 50
    check_every: int | None = None
    shift: bool = True
    anneal: float = 0.0
    lora: int = 0
    checkpointing: bool = False
    precision: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for what cannot be done, before anything is opened."""
        if self.steps < 0:
            raise UserError(f"--steps {self.steps} is negative; give 0 to read the weights from both sides as they are")
        if self.domain not in DOMAINS:
            raise UserError(f"--domain {self.domain!r} is none of {', '.join(DOMAINS)}; give one of them")
        if self.length < 2:
            raise UserError(f"--length {self.length} leaves no room for a text; give at least 2")
        if not 0 <= self.prefix < self.length:
            raise UserError(
                f"--prefix {self.prefix} of --length {self.length} leaves nothing to predict; give 0 or more tokens, "
                "and fewer than the length"
            )
        for name in ("batch", "check_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value} is too few; give at least 1")
        if not 0 < self.lr <= 10:
            raise UserError(f"--lr {self.lr} is no learning rate; give a number above 0 and up to 10")
        if not 0 <= self.anneal <= 1:
            raise UserError(f"--anneal {self.anneal} is no share of the steps; give a number from 0 to 1")
        if self.warmup < 0 or not 0 <= self.lora <= 65536:
            raise UserError(
                f"--warmup {self.warmup}, --lora {self.lora}: neither may be negative, nor a rank too large"
            )
        if self.precision not in (None, "auto", "32-true", "bf16-mixed"):
            raise UserError(f"--precision {self.precision!r}: choose auto, 32-true or bf16-mixed")
        check_seed("--seed", self.seed)
        if self.steps and self.steps % self.checks:
            raise UserError(
                f"--steps {self.steps} are no whole checks of {self.checks} steps; give a --check-every that divides it"
            )
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")
        others = self.out.is_dir() and any(not path.name.startswith(".") for path in self.out.iterdir())
        if others and not (self.out / NOTE).exists():
            raise UserError(f"--out {self.out} holds other files; give a folder of its own")

    @property
    def checks(self) -> int:
        """Steps between checks."""
        return self.check_every or min(CHECK_EVERY, self.steps)

    @property
    def training(self) -> Training:
        """The run; every check is made, and the best weights are kept."""
        return Training(
            steps=self.steps,
            batch=self.batch,
            lr=self.lr,
            warmup=min(self.warmup, self.steps // 4),
            ema=0.0,
            check_every=self.checks,
            patience=self.steps // self.checks,
        )


@dataclass(frozen=True)
class Health:
    """What the model says of held-out texts, in nats per token: as a decoder, and as a denoiser at most (NELBO)."""

    ar: float
    nelbo: float


def convert(params: Params, asked: Asked) -> None:
    """The folder `asked.out`: transformers' files, the tokenizer, denoiser.json, and ar2diff.json with the health.

    Raises:
        UserError: an option out of range, a checkpoint that is refused, no texts, too little memory.
    """
    asked.check()
    check_machine(params)
    found = checkpoint(asked.name)
    with _told_memory():
        _convert(params, asked, found)


def _convert(params: Params, asked: Asked, found: Checkpoint) -> None:
    config = read_config(found.folder, found.gguf)
    if getattr(config, "is_causal", True) is False:
        raise UserError(
            f"{found.name} is read from both sides already; give the autoregressive model that it came from"
        )
    check_length(asked.length, config, asked.shift)
    tokenizer, rows = tokenizer_of(found), config.vocab_size
    ids = roles(tokenizer, rows)
    log.info("%s: %s", found.name, ids.said)
    train, val = (
        _texts(asked, part, tokenizer, ids, count)
        for part, count in (("train", max(1, asked.steps * asked.batch)), ("val", params.train.val_examples))
    )
    denoiser = PretrainedDenoiser(
        with_rows(read_model(found.folder, found.gguf), ids.rows),
        Reading(ids.mask_index, ids.pad_index, ids.start_index, ids.excluded, asked.shift),
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
    row = _row(asked, found, ids, val, trained, before, ended)
    with replacing(asked.out) as staged:
        denoiser.cpu().eval().save(staged)
        save_tokenizer(tokenizer, staged)
        write_json(staged / HEALTH, row)
    with study(params).child("ar2diff", f"ar2diff {found.name}", digest(row), {"seed": asked.seed}) as run:
        run.log_params({"from": found.name, "steps": asked.steps, "length": asked.length, "domain": asked.domain})
        run.log_metrics({key: value for key, value in row.items() if isinstance(value, float)})
    log.info(
        "health on %d held-out texts, nats a token: as a decoder %.3f, now %.3f; NELBO as a denoiser %.3f, now %.3f "
        "after %d steps; %s",
        len(val), before.ar, ended.ar, before.nelbo, ended.nelbo, asked.steps, asked.out,
    )  # fmt: skip


def after(prefix: int, objective: Objective = masked) -> Objective:
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


def with_rows(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """The model with that many rows of its embeddings; a new one is the mean of those that there were."""
    old = model.get_input_embeddings().weight.shape[0]
    if rows > old:
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                weight = cast(nn.Embedding, layer).weight
                weight[old:] = weight[:old].mean(0)
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
    asked: Asked,
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
    read = {SPLITS / f"{asked.domain}_{part}.parquet" for part in ("train", "val")} | set(found.weights)
    cell = Cell("ar2diff", None, asked.seed)
    return fit_best(params, cell, build, data, asked.training, depends, read, "network", code=__name__)


def _texts(asked: Asked, part: str, tokenizer: PreTrainedTokenizerFast, ids: Roles, count: int) -> TokenDataset:
    """The first `count` texts of a split by rank that have more tokens than are given, in the checkpoint's tokens."""
    path = SPLITS / f"{asked.domain}_{part}.parquet"
    rows = chain.from_iterable(encode_chunks(tokenizer, read_texts(path), asked.length, ids.end_index))
    kept = list(islice((row for row in rows if len(row) > asked.prefix), count))
    if not kept:
        raise UserError(f"{path} has no text of more than --prefix {asked.prefix} tokens; lower it")
    return TokenDataset.from_arrays(np.concatenate(kept), np.cumsum([0, *map(len, kept)]), ids.pad_index)


def _wanted(x: Tensor, prefix: int) -> Tensor:
    return torch.arange(x.shape[1], device=x.device) >= prefix


def _row(
    asked: Asked,
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
