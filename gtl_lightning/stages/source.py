"""`gtl source ...`: a denoiser of other people is taken as the source, or looked at before it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gtl_lightning.core.guard import evaluating
from gtl_lightning.core.protocols import Source
from gtl_lightning.data.checkpoint import checkpoint
from gtl_lightning.data.tokenizer import load_tokenizer
from gtl_lightning.data.tokens import encode_chunks, unknown_index
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.conformance import (
    Check,
    Level,
    batch_check,
    known_check,
    law_checks,
    levels,
    shift_check,
    tokens_per_second,
)
from gtl_lightning.evaluation.likelihood import nelbo
from gtl_lightning.evaluation.masked_likelihood import Masking
from gtl_lightning.files import write_json
from gtl_lightning.inputs import open_regular
from gtl_lightning.networks.adapters.model import ModelDenoiser
from gtl_lightning.networks.adapters.origin import files_hash
from gtl_lightning.resources import peak_resident
from gtl_lightning.sources.hub import opened
from gtl_lightning.workspace.params import PARAMS, Params, write_params
from gtl_lightning.workspace.reconfigure import describe_changes, requested_params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HOT = 1.25
"""Fitted temperature from which a denoiser is said to be too sure."""
FEW = 64
"""Places under which a fitted temperature says nothing."""
MEGA = 1e6


@dataclass(frozen=True)
class DenoiserRequest:
    """What is looked at.

    Attributes:
        name: a folder, or OWNER/NAME of a hub.
        revision: of the hub's.
        tokenizer: folder or hub name, where the model has none.
        shift: as the reader thinks it is; None as the model's kind has it.
    """

    name: str
    revision: str | None = None
    tokenizer: str | None = None
    shift: bool | None = None

    def __post_init__(self) -> None:
        for option in ("revision", "tokenizer"):
            if (value := getattr(self, option)) is not None and not value.strip():
                raise UserError(f"--{option} is empty; leave it out, or say which")


@dataclass(frozen=True)
class Conformance:
    """What was found.

    Attributes:
        name: of the model, with its revision.
        adapter: class that reads it.
        sha256: of its configuration, tokenizer and weights.
        reading: of its ids.
        parameters: how many.
        checks: what has to hold.
        levels: NELBO and calibration by noise level; none without texts.
        nelbo: nats a token of the texts; None without.
        standard_error: of it.
        texts: how many were read.
        tokens_per_second: read, one place a row meeting the vocabulary.
        weights_mb: of the weights.
        peak_mb: most memory of the process.
        verdict: one line: what is wrong and what to set.
    """

    name: str
    adapter: str
    sha256: str
    reading: dict[str, Any]
    parameters: int
    checks: list[Check]
    levels: list[Level]
    nelbo: float | None
    standard_error: float | None
    texts: int
    tokens_per_second: float
    weights_mb: float
    peak_mb: float
    verdict: str


def import_source(params: Params, asked: DenoiserRequest, copied: bool) -> list[str]:
    """params.yaml with this denoiser as the source and its tokenizer as the tokens'; what changed, a line each.

    Raises:
        UserError: it cannot be fetched, opened or read, or reads fewer tokens than the texts have.
    """
    found = checkpoint(asked.name, asked.revision, pickled=True)
    denoiser = opened(found.folder, found.name, asked.tokenizer, asked.shift)
    length = params.tokenizer.length
    if denoiser.most is not None and length > denoiser.most:
        raise UserError(
            f"tokenizer.length = {length} is more than the {denoiser.most} tokens that {asked.name} reads; lower it "
            f"first: gtl configure --set tokenizer.length={denoiser.most}"
        )
    here = Path(asked.name).is_dir()
    values = {
        "source.kind": "hub",
        "source.hub.name": asked.name if here else asked.name.partition("@")[0],
        "source.hub.revision": None if here else found.folder.name,
        "source.hub.sha256": files_hash(found.folder),
        "source.hub.shift": asked.shift,
        "source.hub.copied": copied,
        "tokenizer.name": asked.tokenizer or found.name,
    }
    wanted = requested_params(None, tuple(f"{key}={json.dumps(value)}" for key, value in values.items()))
    told = describe_changes(None, wanted)
    write_params(wanted)
    return [*told, f"{PARAMS} written: the source is {found.name}, a {type(denoiser).__name__}; now run `gtl sweep`"]


def check_source(
    asked: DenoiserRequest, texts: Path | None, *, length: int, count: int, seed: int, out: Path | None
) -> Conformance:
    """The report on a denoiser; `out` gets it as JSON.

    Args:
        asked: which, and how it is read.
        texts: a text a line; without them, what needs none.
        length: most tokens of a text.
        count: most texts.
        seed: of masks.
        out: file.

    Raises:
        UserError: it cannot be fetched, opened or read; no texts in the file.
    """
    if out is not None and out.is_dir():
        raise UserError(f"--json {out} is a folder; give a file")
    lines = None if texts is None else _lines(texts, count)
    found = checkpoint(asked.name, asked.revision, pickled=True)
    denoiser = opened(found.folder, found.name, asked.tokenizer, asked.shift)
    length = min(length, denoiser.most or length)
    tokenizer = load_tokenizer(asked.tokenizer or str(found.folder)) if lines else None
    rows = _rows(denoiser, tokenizer, lines, length, seed)
    known = [known_check(rows, unknown_index(tokenizer))] if tokenizer else []
    with evaluating(denoiser):
        report = _report(denoiser, found.name, files_hash(found.folder), rows, known, seed)
    if out is not None:
        write_json(out, asdict(report))
    return report


def _report(
    denoiser: ModelDenoiser, name: str, sha256: str, rows: list[Tensor], known: list[Check], seed: int
) -> Conformance:
    """`known` is what is said of the texts; nothing where there are none."""
    told = bool(known)
    source, mask, pad = cast(Source, denoiser), denoiser.mask_index, denoiser.pad_index
    generator = torch.Generator().manual_seed(seed)
    cut = [row[: max(2, len(row) // (index + 1))] for index, row in enumerate(rows[:4])]
    noisy = [row.masked_fill(torch.rand(len(row), generator=generator) < 0.5, mask) for row in cut]
    for row in noisy:
        row[len(row) // 2] = mask
    checks = [
        *known,
        *law_checks(source, noisy[0][None], torch.ones(1), denoiser.excluded),
        batch_check(source, noisy, pad),
    ]
    checks.append(shift_check(source, rows, seed) if told else Check("shift", None, "not tried: give --texts FILE"))
    masking = Masking(mask_index=mask, pad_index=pad, draws=2, seed=seed)
    bound = nelbo(source, rows, masking) if told else None
    by_level = levels(source, rows, seed) if told else []
    longest = max(rows, key=len)
    weights = list(denoiser.parameters())
    return Conformance(
        name=name,
        adapter=type(denoiser).__name__,
        sha256=sha256,
        reading={**asdict(denoiser.reading), "excluded": len(denoiser.reading.excluded)},
        parameters=sum(weight.numel() for weight in weights),
        checks=checks,
        levels=by_level,
        nelbo=bound.nats_per_token if bound else None,
        standard_error=bound.standard_error if bound else None,
        texts=len(rows) if told else 0,
        tokens_per_second=tokens_per_second(source, longest.expand(8, -1)),
        weights_mb=sum(weight.numel() * weight.element_size() for weight in weights) / MEGA,
        peak_mb=peak_resident() / MEGA,
        verdict=_verdict(checks, by_level),
    )


def _verdict(checks: list[Check], by_level: list[Level]) -> str:
    """What is wrong and what to set, the gravest first."""
    for check in checks:
        if check.holds is False:
            return f"{check.name}: no ({check.found}); {check.mend}"
    hot = [level for level in by_level if level.temperature > HOT and level.positions >= FEW]
    if hot:
        worst = max(hot, key=lambda level: level.temperature)
        return (
            f"read as it was trained; too sure where {worst.low:.0%} to {worst.high:.0%} is masked: sample at "
            f"temperature {worst.temperature:.2f} (sampling.temperature), or let the ratio or a fine-tuning mend it"
        )
    if by_level and min(level.positions for level in by_level) < FEW:
        return f"read as it was trained; how sure it is, fewer than {FEW} places of a kind do not tell: give more texts"
    return "read as it was trained" if by_level else "nothing is wrong that shows without texts; give --texts FILE"


def _lines(path: Path, count: int) -> list[str]:
    """The first texts of a file, which may be as long as it likes."""
    try:
        with open_regular(path, "give a file of texts, one a line") as file:
            lines = (line.decode("utf-8").strip() for line in file)
            found = list(islice((line for line in lines if line), count))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8; give a file of texts, one a line") from error
    if not found:
        raise UserError(f"{path} has no text; give a text a line")
    return found


def _rows(
    denoiser: ModelDenoiser,
    tokenizer: PreTrainedTokenizerFast | None,
    lines: list[str] | None,
    length: int,
    seed: int,
) -> list[Tensor]:
    """Token ids of the texts, Long[l] each; without texts, four rows of ids at random."""
    if tokenizer is None or lines is None:
        generator = torch.Generator().manual_seed(seed)
        allowed = (~denoiser.excluded).nonzero().squeeze(-1)
        sizes = [max(2, length // part) for part in (1, 2, 3, 4)]
        return [allowed[torch.randint(len(allowed), (size,), generator=generator)] for size in sizes]
    end = cast(int, tokenizer.eos_token_id)
    return [torch.tensor(row) for chunk in encode_chunks(tokenizer, [lines], length, end) for row in chunk]
