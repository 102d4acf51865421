"""`finetune-borrowed`: full fine-tuning on the target texts and on source texts that the ratio lends them (eq. 9'').

What is left of guidance's gain when fine-tuning has the same texts? `gtl-warm` borrows in the same way.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from gtl_lightning.fields import Positive, PositiveFloat
from gtl_lightning.methods import finetune
from gtl_lightning.methods.borrowing import with_borrowed
from gtl_lightning.methods.method import Context, Method, Recipe


class BorrowedFinetune(finetune.Finetune):
    """The source denoiser, every weight fine-tuned on target texts and borrowed source texts."""

    borrowed: Positive = Field(
        200, description="target texts' worth of source texts, drawn by the clean classifier's ratio (eq. 9'')"
    )
    clip: PositiveFloat = Field(5.0, description="largest |log r*| that source texts are borrowed by")


def recipe(context: Context, settings: BorrowedFinetune) -> Recipe:
    """Fine-tuning's, on more texts."""
    texts = with_borrowed(context, settings.borrowed, settings.clip)
    return finetune.recipe(replace(context, target=texts), settings)


METHOD = Method(
    name="finetune-borrowed",
    label="fine-tuning, borrowed texts",
    help="The source denoiser, every weight fine-tuned on target texts and on source texts that the ratio lends.",
    kind="denoiser",
    settings=BorrowedFinetune(train=finetune.METHOD.settings.train),
    recipe=recipe,
    reads_classifier=True,
    place=11,
)
