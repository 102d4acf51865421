"""A tokenizer reads texts as its tokenizer.json says, whatever family the model beside it is of."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import BertTokenizer, PreTrainedTokenizerFast

from gtl_lightning.data.tokenizer import fast_tokenizer
from gtl_lightning.data.tokens import encode_chunks
from gtl_lightning.errors import UserError
from gtl_lightning.evaluation.features import minilm
from gtl_lightning.networks.families import FAMILIES
from tests.pretrained_kit import WORDS, folder


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_may_come_with_the_tokenizer_of_another_family(kind: str, tmp_path: Path) -> None:
    """transformers' Qwen2 tokenizer, for one, would split these words its own way and know none of them."""
    folder(tmp_path, kind, "<mask>")
    found, text = fast_tokenizer(tmp_path), " ".join(WORDS[:4])
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert found(text)["input_ids"] == own.encode(text).ids == [found.vocab[word] for word in WORDS[:4]]
    assert (found.unk_token, found.eos_token) == ("<unk>", "<end>")
    assert len(found) == own.get_vocab_size()


def test_one_that_reads_alike_keeps_the_class_of_its_family(tmp_path: Path) -> None:
    minilm()._tokenizer.save_pretrained(tmp_path)
    assert isinstance(fast_tokenizer(tmp_path), BertTokenizer)


def test_texts_of_which_a_tokenizer_makes_no_token_are_refused() -> None:
    backend = Tokenizer(models.BPE(vocab={"<end>": 0, "a": 1, "b": 2}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    assert list(encode_chunks(tokenizer, [["ab", "", " "]], 8, 0)) == [[[1, 2, 0], [0], [0]]]
    with pytest.raises(UserError, match="makes no token at all of 2 of 3 texts"):
        list(encode_chunks(tokenizer, [["ab", "\N{GREEK SMALL LETTER BETA}", "1"]], 8, 0))
