"""What was generated for given texts beside what was written to them: ROUGE-L, chrF, exact match, all in per cent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gtl_lightning.data.scripts import words
from gtl_lightning.errors import UserError, extra


class _Words:
    """What ROUGE's package asks for the words of a text.

    Its own are of a to z and digits alone, of ASCII texts the same: of another script nothing would be left to agree.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words, in one form."""
        return words(text)


@dataclass(frozen=True)
class Agreement:
    """Likeness of generated texts to their references; higher is nearer.

    Attributes:
        rouge_l: mean over texts of the F1 of the longest common subsequence of words (Lin, 2004), unstemmed. Words are
            runs of letters and digits of any script, in one form (`scripts.words`); of ASCII texts the package's own.
        chrf: chrF2 of the whole sample, character n-grams up to 6, recall twice as important (Popovic, 2015).
        exact: share of texts that are the reference, blanks at the ends apart.
    """

    rouge_l: float
    chrf: float
    exact: float


def agreement(generated: Sequence[str], references: Sequence[str]) -> Agreement:
    """Of texts that belong together, in order; a generated text may be empty.

    Raises:
        UserError: no texts, or not as many of both; an empty reference; a package is missing.
    """
    if not references or len(generated) != len(references):
        raise UserError(
            f"{len(generated)} generated texts and {len(references)} references; give one of each, and at least one"
        )
    if empty := [index for index, text in enumerate(references) if not text.strip()]:
        raise UserError(f"reference {empty[0]} is empty, so that nothing can be like it; leave its pair out")
    with extra("ROUGE-L and chrF", "rouge_score", "sacrebleu"):
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import CHRF
    rouge = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = list(zip(generated, references, strict=True))
    return Agreement(
        rouge_l=100 * fmean(rouge.score(reference, text)["rougeL"].fmeasure for text, reference in pairs),
        chrf=float(CHRF().corpus_score(list(generated), [list(references)]).score),
        exact=100 * fmean(text.strip() == reference.strip() for text, reference in pairs),
    )
