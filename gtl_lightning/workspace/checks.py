"""Parameters against what the data decide: looked at when the tokens are made, and by every stage that opens them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gtl_lightning.data.hub import refuse_code
from gtl_lightning.data.split import fraction_size
from gtl_lightning.errors import UserError
from gtl_lightning.workspace.params import Params

LEAST_TEXTS = 20
"""Texts a side that MAUVE needs (`evaluation.mauve.MIN_TEXTS`)."""


def check_corpus(params: Params, vocab_size: int, sizes: Mapping[str, int]) -> None:
    """Refuse what no stage could do with these data, before anything is trained on them.

    Args:
        params: all parameters.
        vocab_size: ids of the tokenizer.
        sizes: split -> texts.

    Raises:
        UserError: an n_ratio above the vocabulary, fewer target test texts than MAUVE can be computed of, or a fraction
            of the sweep that leaves too few examples.
    """
    for key, value in params.candidates().items():
        if value > vocab_size:
            raise UserError(f"{key} = {value} exceeds the vocabulary of {vocab_size}; use at most that")
    test, buckets = sizes["target_test"], params.evaluation.mauve_buckets
    if test < 2 * max(LEAST_TEXTS, buckets):
        raise UserError(
            f"evaluation.mauve_buckets = {buckets} needs {2 * max(LEAST_TEXTS, buckets)} target test texts, there are "
            f"{test}; lower it (MAUVE needs {2 * LEAST_TEXTS} in any case), raise data.target_test, or bring more "
            "target records"
        )
    for fraction in params.sweep.fractions:
        try:
            fraction_size(sizes["target_train"], fraction, params.data.min_examples)
        except UserError as error:
            raise UserError(f"sweep.fractions: {error}") from error


def check_featurizer(params: Params) -> None:
    """Refuse a featurizer that is written as a path (it begins with . or /) where no folder is: no hub has that name.

    Raises:
        UserError: so written, and no folder; a folder that brings code.
    """
    name = params.evaluation.featurizer
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise UserError(
            f"evaluation.featurizer = {name!r}: there is no such folder; give 'minilm', a model folder or a hub name"
        )
    if Path(name).is_dir():
        refuse_code(name, local_only=True)
