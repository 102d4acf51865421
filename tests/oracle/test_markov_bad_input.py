"""Each mistake gets one line that names the entry at fault and what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gtl_lightning.core.schedule import LogLinear
from gtl_lightning.errors import UserError
from gtl_lightning.laws.chains import MarkovChain, paper_chain, stationary
from gtl_lightning.laws.enumerated import EnumeratedDistribution, all_sequences, any_order_kl, exact_nelbo, model_law
from gtl_lightning.laws.exact import ExactRatio

START = torch.tensor([0.5, 0.5])
MIXING = torch.tensor([[0.6, 0.4], [0.1, 0.9]])
BLOCKED = torch.tensor([[0.0, 1.0], [0.1, 0.9]])
CHAIN = MarkovChain(START, MIXING)
TABLE = EnumeratedDistribution(torch.full((2, 2), 0.25))
GENERATOR = torch.Generator()

MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "matrix not square": (
        lambda: MarkovChain(START, torch.full((2, 3), 1 / 3)),
        r"transition has shape \[2, 3\].*square",
    ),
    "matrix a vector": (lambda: MarkovChain(START, START), r"transition has shape \[2\].*square"),
    "initial too long": (lambda: MarkovChain(torch.ones(3) / 3, MIXING), r"initial has shape \[3\].* asks for \[2\]"),
    "rows do not sum to one": (lambda: MarkovChain(START, MIXING * 0.9), r"transition\[0\] sums to 0.9; .*sum to 1"),
    "start does not sum to one": (lambda: MarkovChain(START * 2, MIXING), "initial sums to 2; .*sum to 1"),
    "negative entry": (
        lambda: MarkovChain(START, torch.tensor([[0.5, 0.5], [1.2, -0.2]])),
        r"transition\[1, 1\] is -0.2",
    ),
    "not a number": (lambda: MarkovChain(torch.tensor([float("nan"), 1.0]), MIXING), r"initial\[0\] is nan"),
    "no sequences to draw": (lambda: CHAIN.sample(0, 5), "n = 0, length = 5: both must be at least 1"),
    "no sequences to draw, table": (lambda: TABLE.sample(0, 2), "n = 0, length = 2"),
    "no sequences to fit": (lambda: MarkovChain.fit(torch.zeros(0, 5).long(), 2), r"shape \[0, 5\].*n of at least 1"),
    "a state never left": (lambda: MarkovChain.fit(torch.zeros(2, 5).long(), 2), "state 1 is never left.*pseudo_count"),
    "fit outside the states": (
        lambda: MarkovChain.fit(torch.full((2, 5), 7), 2),
        "x_0 holds ids 7..7; with 2 states give 0..1",
    ),
    "length zero": (lambda: CHAIN.entropy(0), "length = 0"),
    "diagonal above one": (lambda: paper_chain(1.5), r"diagonal=1.5.* give a diagonal in \[0, 1\]"),
    "one state": (lambda: paper_chain(0.5, states=1), "2 or more states"),
    "several stationary laws": (lambda: stationary(torch.eye(3)), "several stationary laws"),
    "too many sequences": (
        lambda: EnumeratedDistribution.of(CHAIN, 15),
        r"2\^15 sequences are too many to list \(limit 20,000\); use a shorter length, or MarkovChain",
    ),
    "too many sequences in a model": (lambda: model_law(CHAIN, 5, 7), r"5\^7 sequences .*limit 20,000"),
    "too many partial sequences": (
        lambda: model_law(CHAIN, 2, 14),
        r"3\^14 partly masked .*limit 300,000.*any_order_kl",
    ),
    "too many masks": (lambda: exact_nelbo(CHAIN, torch.zeros(1, 15).long(), 2), r"2\^15 masks .*use `any_order_kl`"),
    "nothing to list": (lambda: all_sequences(3, 0), "3 states, length 0: both must be at least 1"),
    "too few draws": (
        lambda: any_order_kl(CHAIN, CHAIN, n=9, length=5, generator=GENERATOR),
        "n = 9: give at least 10",
    ),
    "uneven table": (lambda: EnumeratedDistribution(torch.full((2, 3), 1 / 6)), r"shape \[2, 3\].*one axis of V"),
    "table of another length": (lambda: TABLE.posterior(torch.zeros(1, 3).long()), "length 3 .* lists length 2"),
    "sample of another length": (lambda: TABLE.sample(4, 3), "length = 3: this law lists sequences of length 2"),
    "entropy of another length": (lambda: TABLE.entropy(3), "length = 3: this law lists sequences of length 2"),
    "token unknown": (lambda: CHAIN.posterior(torch.tensor([[0, 3]])), r"x_t holds ids 0..3; this law knows 0..2"),
    "mask under uniform noise": (
        lambda: CHAIN.posterior(torch.tensor([[0, 2]]), 0.5),
        r"ids 0..2; this law knows 0..1",
    ),
    "no batch axis": (lambda: CHAIN.log_prob(torch.zeros(3).long()), r"x_t has shape \[3\]"),
    "alpha above one": (lambda: CHAIN.posterior(torch.tensor([[0, 1]]), 1.1), r"alpha must lie in \[0, 1\]"),
    "impossible sequence": (
        lambda: MarkovChain(START, BLOCKED).posterior(torch.tensor([[0, 1, 2], [0, 0, 2]])),
        r"x_t row 1, \[0, 0, 2\], has probability zero",
    ),
    "target zero where the source is not": (
        lambda: ExactRatio(CHAIN, MarkovChain(START, BLOCKED)),
        r"transition\[0, 0\] is 0 in the target and 0.6 in the source: the density ratio is zero or infinite",
    ),
    "source zero where the target is not": (
        lambda: ExactRatio(MarkovChain(START, BLOCKED), CHAIN),
        r"transition\[0, 0\] is 0.6 in the target and 0 in the source: the density ratio is zero or infinite",
    ),
    "start zero in the target": (
        lambda: ExactRatio(CHAIN, MarkovChain(torch.tensor([0.0, 1.0]), MIXING)),
        r"initial\[0\] is 0 in the target and 0.5 in the source",
    ),
    "sequence zero in the target": (
        lambda: ExactRatio(TABLE, EnumeratedDistribution(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))),
        r"probabilities\[1, 0\] is 0 in the target and 0.25 in the source",
    ),
    "two vocabularies": (lambda: ExactRatio(CHAIN, paper_chain(0.5)), "source has 2 states and target 5"),
    "two kinds of law": (lambda: ExactRatio(CHAIN, TABLE), "two laws of one kind; list the chain by"),
    "two kinds of law, table first": (lambda: ExactRatio(TABLE, CHAIN), "two laws of one kind and length"),
    "uniform noise without a time": (
        lambda: ExactRatio(CHAIN, CHAIN, LogLinear()).sequence(torch.tensor([[0, 1]])),
        "depends on the time: give t",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_is_named(name: str) -> None:
    act, message = MISTAKES[name]
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
