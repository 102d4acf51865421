"""What a stage opens: the token arrays, the device, the trained denoisers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gtl_lightning.data.recorded import check_tokens
from gtl_lightning.data.split import SPLITS
from gtl_lightning.errors import UserError
from gtl_lightning.fields import Network
from gtl_lightning.files import sha256_file
from gtl_lightning.records import COUNT, Shape, Values, Within, read_record
from gtl_lightning.workspace.checks import check_corpus
from gtl_lightning.workspace.params import Params
from gtl_lightning.workspace.paths import MODELS, NETWORK, RESULT, TOKENS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gtl_lightning.core.protocols import Source
    from gtl_lightning.data.dataset import TokenDataset
    from gtl_lightning.networks.block import BackboneConfig

SPECIALS = ("mask_index", "pad_index", "eos_index")
AGAIN = "run `gtl tokenize` again"
META: Shape = {
    "vocab_size": Within(1, 2**31, whole=True),
    **dict.fromkeys(SPECIALS, COUNT),
    "length": Within(1, 2**16, whole=True),
    "splits": {split: {"examples": COUNT} for split in SPLITS},
    "domains?": Values(str),
}


@dataclass(frozen=True)
class Corpus:
    """The token arrays and what their ids mean; `domains` are the archives of source and target, where known."""

    vocab_size: int
    mask_index: int
    pad_index: int
    eos_index: int
    length: int
    sizes: dict[str, int]
    domains: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, params: Params, root: Path = Path()) -> Corpus:
        """Read tokens/meta.json below `root` and check the parameters that depend on the vocabulary.

        Raises:
            UserError: not tokenised yet, or an n_ratio above the vocabulary.
        """
        ids = ("vocab_size", "mask_index", "pad_index", "eos_index", "length")
        path = root / TOKENS / "meta.json"
        meta = read_record(path, META)
        for key in SPECIALS:
            if meta[key] >= meta["vocab_size"]:
                raise UserError(f"{path}: {key!r} is {meta[key]}, which is no id of {meta['vocab_size']}; {AGAIN}")
        if len({meta[key] for key in SPECIALS}) < len(SPECIALS):
            raise UserError(f"{path}: two of {', '.join(SPECIALS)} are one id; {AGAIN}")
        sizes = {split: found["examples"] for split, found in meta["splits"].items()}
        corpus = cls(**{key: meta[key] for key in ids}, sizes=sizes, domains=meta.get("domains", {}))
        if root == Path():  # what a registered model holds was looked at when it was made
            check_corpus(params, corpus.vocab_size, corpus.sizes)
        return corpus

    def dataset(self, split: str) -> TokenDataset:
        """The examples of a split, in the order of their rank.

        Raises:
            UserError: missing, or not the arrays that were written.
        """
        from gtl_lightning.data.dataset import TokenDataset

        check_tokens(TOKENS, [f"{split}.{part}.npy" for part in ("tokens", "offsets")])
        return TokenDataset(TOKENS, split, self.pad_index, self.vocab_size)

    def target(self, fraction: float, min_examples: int) -> tuple[TokenDataset, TokenDataset]:
        """The nested target subset: examples to train on and, in the same proportion, examples to select on.

        Raises:
            UserError: fewer than `min_examples` to train on.
        """
        from gtl_lightning.data.split import fraction_size

        train, val = self.dataset("target_train"), self.dataset("target_val")
        wanted = fraction_size(len(train), fraction, min_examples)
        held_out = max(fraction_size(len(val), fraction), min(min_examples, len(val)))
        return train.subset(wanted), val.subset(held_out)

    def backbone(self, network: Network) -> BackboneConfig:
        """The configuration of a network over these tokens."""
        from gtl_lightning.networks.block import BackboneConfig

        return BackboneConfig(
            vocab_size=self.vocab_size,
            length=self.length,
            mask_index=self.mask_index,
            pad_index=self.pad_index,
            **network.model_dump(),
        )


def token_files() -> list[Path]:
    """What every training reads of tokens/: the arrays, whatever meta.json says of them, and what their ids mean."""
    return [TOKENS / "meta.json", *sorted(TOKENS.glob("*.npy"))]


def device_of(params: Params) -> torch.device:
    """The device that evaluation runs on."""
    import torch

    wanted = params.machine.accelerator
    if wanted == "gpu" and not torch.cuda.is_available():
        raise UserError("machine.accelerator = gpu, and no GPU is to be seen; set it to auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def check_machine(params: Params) -> None:
    """Refuse a training that this machine cannot begin; torch is imported only where that is in question.

    Raises:
        UserError: a GPU is asked for and there is none, or more processes than GPUs.
    """
    wanted = params.machine.devices
    if params.machine.accelerator != "gpu" and wanted == 1:
        return
    import torch

    if device_of(params).type == "cuda" and wanted > (there := torch.cuda.device_count()):
        raise UserError(f"machine.devices = {wanted}, and there are {there} GPUs to be seen; lower it")


def tokens_hash(root: Path = Path()) -> str:
    """Short hash of all that tokens/ holds below `root`: meta.json names the other files with theirs."""
    return sha256_file(root / TOKENS / "meta.json")[:12]


def trained_on(path: Path) -> str | None:
    """The `tokens_hash` that a network's training noted beside it; None where nothing was noted."""
    result = path.with_name(RESULT if path.name == Path(NETWORK).name else f"{path.stem}.json")
    noted = read_record(result, {"tokens?": str}).get("tokens") if result.is_file() else None
    return None if noted is None else str(noted)


def open_network(
    path: Path,
    root: Path = Path(),
    *,
    expect: type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
    denoiser: Source | None = None,
) -> nn.Module:
    """`load_network` of a file below `root`, which was trained on the tokens that are there.

    Raises:
        UserError: as there; or the ids meant something else when it was trained, or the texts were others.
    """
    from gtl_lightning.networks import load_network

    known = trained_on(root / path)
    if known is not None and known != tokens_hash(root):
        raise UserError(
            f"{root / path} was trained on other tokens than those that {root / TOKENS} holds; train it again "
            "(`dvc repro`), or tokenise what it was trained on"
        )
    return load_network(root / path, expect=expect, denoiser=denoiser)


def load_denoiser(name: str, root: Path = Path(), device: torch.device | str = "cpu") -> Source:
    """The trained denoiser of models/NAME below `root`, on a device.

    Raises:
        UserError: missing, truncated, foreign, trained on other tokens, or no denoiser.
    """
    from gtl_lightning.networks import DENOISERS

    return cast("Source", open_network(MODELS / name / NETWORK, root, expect=DENOISERS).to(device))
