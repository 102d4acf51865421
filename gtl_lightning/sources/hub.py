"""`hub`: a denoiser of other people, frozen as it is (docs/method.md section 5), as `gtl source import` says it.

Nothing is trained. The weights stay where they lie, named by repository, revision and hash, unless a copy is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, StringConstraints

from gtl_lightning.errors import UserError
from gtl_lightning.fields import Flag, Section, Text
from gtl_lightning.sources.kind import Build, Context, SourceKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gtl_lightning.data.text_ids import TextIds
    from gtl_lightning.modules.base import OptimiserConfig, TrainedModule
    from gtl_lightning.networks.adapters.model import ModelDenoiser
    from gtl_lightning.networks.adapters.origin import Origin

HASH = r"^[0-9a-f]{64}$"


class Hub(Section):
    """Of the kind hub: somebody's denoiser, as `gtl source import` writes it."""

    name: Text | None = Field(None, description="folder, or OWNER/NAME of a hub")
    revision: Text | None = Field(None, description="commit of the hub's repository; null of a folder")
    sha256: Annotated[str, StringConstraints(strict=True, pattern=HASH)] | None = Field(
        None, description="of its configuration, weights and tokenizer: another model is refused"
    )
    shift: Flag | None = Field(None, description="a state predicts the token after its own; null: as its kind does")
    copied: Flag = Field(False, description="keep the weights in models/source; else they stay where they lie")


def recipe(context: Context, settings: Hub) -> Build:
    """The denoiser, its files found to be those that were imported, with the ids of these tokens."""
    from gtl_lightning.modules.denoiser import DenoiserModule

    denoiser = imported(context.tokenizer(), settings)
    if denoiser.most is not None and context.backbone.length > denoiser.most:
        raise UserError(
            f"tokenizer.length = {context.backbone.length} is more than the {denoiser.most} tokens that "
            f"{settings.name} reads; lower it"
        )

    def build(optimiser: OptimiserConfig) -> TrainedModule:
        return DenoiserModule(denoiser, optimiser, **context.scoring)

    return build


def imported(tokenizer: PreTrainedTokenizerFast, settings: Hub) -> ModelDenoiser:
    """The denoiser of the section, which is stored by its name and hash unless it is copied.

    Raises:
        UserError: a model that is not there any more, or another one; tokens that are not of its tokenizer.
    """
    origin = origin_of(settings)
    folder = origin.folder
    if _foreign(folder, tokenizer):
        raise UserError(
            f"the tokens are of another tokenizer than the source's ({origin.name}); set tokenizer.name to its own: "
            f"gtl source import {origin.name}"
        )
    denoiser = opened(folder, origin.name, tokenizer, settings.shift)
    if not settings.copied:
        denoiser.origin = origin
    return denoiser


def origin_of(settings: Hub) -> Origin:
    """Where the denoiser of the section lies, and what it was when it was imported."""
    from gtl_lightning.networks.adapters.origin import Origin

    assert settings.name is not None and settings.sha256 is not None
    return Origin(settings.name, settings.revision, settings.sha256)


def opened(
    folder: Path, name: str, tokenizer: PreTrainedTokenizerFast | str | None = None, shift: bool | None = None
) -> ModelDenoiser:
    """The denoiser of a folder, by what its configuration and its tokenizer say; in fp32, on the CPU.

    Args:
        folder: where its files lie.
        name: what it is called.
        tokenizer: a name or folder, or itself; None is that of the folder.
        shift: whether a state predicts the token after the one it stands at; None takes what its kind does.

    Raises:
        UserError: as `api.denoiser.load_denoiser`.
    """
    from gtl_lightning.networks.adapters.decoders import shifted, sunk
    from gtl_lightning.networks.adapters.model import Reading
    from gtl_lightning.networks.adapters.opening import adapter, read_config
    from gtl_lightning.networks.adapters.origin import NOTE
    from gtl_lightning.networks.pretrained import noted

    config = read_config(folder)
    kind = adapter(config, name)
    if shift and not kind.may_shift:
        raise UserError(
            f"{name} ({config['model_type']}) has no states that predict the token after their own; leave --shift out "
            "(shift=None in Python)"
        )
    said = noted(folder) if (folder / NOTE).is_file() else None
    if said is not None and shift is not None:
        said = replace(said, shift=shift, sink=shift and said.sink)
    if said is not None and tokenizer is None:
        return kind.open(folder, said)
    if tokenizer is None and not _has_tokenizer(folder):
        raise UserError(
            f"{name} has no tokenizer of its own; give the one that it was trained with: --tokenizer NAME (in Python "
            "tokenizer=NAME)"
        )
    ids = _ids(folder, name, config, tokenizer)
    if said is not None:
        excluded = tuple(index for index in said.excluded if index < ids.size)
        return kind.open(folder, replace(said, excluded=excluded, size=ids.size))
    shift = shifted(config) if shift is None else shift
    start = ids.first_index if shift else ids.start_index
    sink = shift and sunk(config)
    return kind.open(
        folder, Reading(ids.mask_index, ids.pad_index, start, ids.excluded, shift, ids.end_index, ids.size, sink)
    )


def _has_tokenizer(folder: Path) -> bool:
    from gtl_lightning.networks.adapters.origin import TOKENIZERS

    return any((folder / file).is_file() for file in TOKENIZERS)


def _foreign(folder: Path, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a model has a tokenizer, and it is another."""
    from gtl_lightning.data.tokenizer import load_tokenizer

    return _has_tokenizer(folder) and load_tokenizer(folder).get_vocab() != tokenizer.get_vocab()


def _ids(folder: Path, name: str, config: dict[str, Any], tokenizer: PreTrainedTokenizerFast | str | None) -> TextIds:
    from gtl_lightning.data.text_ids import check_mask, text_ids
    from gtl_lightning.data.tokenizer import fast_tokenizer, load_tokenizer

    if tokenizer is None or isinstance(tokenizer, str):
        where = str(folder) if tokenizer is None else tokenizer
        if fast_tokenizer(where).mask_token_id is None:
            check_mask(None, config, name)
        given, tokenizer = tokenizer, load_tokenizer(where)
        if given is not None and _foreign(folder, tokenizer):
            raise UserError(f"{name} has a tokenizer of its own, and {given} is another; leave that out")
    else:
        _check_given(folder, name, tokenizer)
    check_mask(tokenizer.mask_token_id, config, name)
    return text_ids(tokenizer)


def _check_given(folder: Path, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer, given as it is, whose ids say less than those of one that is given by its name.

    Raises:
        UserError: it lacks a mask, a padding of its own or an end, or is another than the model's.
    """
    lacking = [
        what
        for what, index, others in (
            ("a mask", tokenizer.mask_token_id, ()),
            ("a padding of its own", tokenizer.pad_token_id, (tokenizer.eos_token_id, tokenizer.unk_token_id)),
            ("an end", tokenizer.eos_token_id, ()),
        )
        if index is None or index in others
    ]
    if lacking:
        raise UserError(
            f"the tokenizer that is given for {name} lacks {' and '.join(lacking)}; give its name or folder, which is "
            "completed, or `load_tokenizer(NAME)` of gtl_lightning.data.tokenizer"
        )
    if _foreign(folder, tokenizer):
        raise UserError(f"{name} has a tokenizer of its own, and the one that is given is another; leave that out")


SOURCE = SourceKind(
    name="hub",
    help="A denoiser of other people, frozen as it is.",
    recipe=recipe,
    settings=Hub(),
    trains=False,
    needs=("name", "sha256"),
    origin=origin_of,
)
