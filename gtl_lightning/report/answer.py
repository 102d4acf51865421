"""The first screen: at each share of the data the best method, by how much, how sure that is, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gtl_lightning.report.differences import BASELINE, comparisons, guided_methods
from gtl_lightning.report.style import SOURCE, count, listing, method_label, missing, number, order_methods, percent
from gtl_lightning.report.style import seconds as time_words
from gtl_lightning.report.tables import METRICS, summarise

Row = Mapping[str, Any]
WANTED_SEEDS = 3
DEMO = "THIS IS A DEMO: tiny networks, trained for seconds. It shows what a report looks like, not which method wins."


@dataclass(frozen=True)
class Finding:
    """What one share of the data shows: `best` in a few words, `rest` of the sentence, and the two that are compared.

    `compared` is the best guided method and fine-tuning, whichever wins; empty where one of them has no result.
    """

    best: str
    rest: str
    compared: frozenset[str] = frozenset()

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        return f"{self.best} {self.rest}"


def findings(transfer: Sequence[Row]) -> list[Finding]:
    """One for each share of the data, largest first."""
    shares = sorted({float(r["fraction"]) for r in transfer if not missing(r.get("fraction"))}, reverse=True)
    alike = {share: _of_all(transfer, share) for share in shares}
    compared = comparisons([row for rows, _ in alike.values() for row in rows])
    return [_finding(*alike[share], share, [row for row in compared if row["fraction"] == share]) for share in shares]


def _of_all(transfer: Sequence[Row], share: float) -> tuple[list[Row], str]:
    """The rows of the seeds that every method has at a share, so that means are of the same ones; and which, if few.

    A method that lacks the hardest seed would else be the best.
    """
    rows = [row for row in transfer if missing(row.get("fraction")) or row["fraction"] == share]
    seeds: dict[str, set[int]] = {}
    for row in rows:
        if not missing(row.get("fraction")) and not missing(row.get("nelbo")):
            seeds.setdefault(str(row["method"]), set()).add(row["seed"])
    every, common = set().union(*seeds.values()), set.intersection(*seeds.values()) if seeds else set[int]()
    if common == every:
        return rows, ""
    if not common:
        return rows, ", of methods that have no seed in common,"
    kept = [row for row in rows if row["seed"] in common]
    return kept, f", of the seeds that every method has ({listing([str(seed) for seed in sorted(common)])}),"


def _finding(transfer: Sequence[Row], seeds: str, share: float, pairs: Sequence[Row]) -> Finding:
    means = {(r["metric"], r["fraction"], r["method"]): r["mean"] for r in summarise(transfer)}
    at = f"At {percent(share)} of the data{_texts(transfer, share)}{seeds}"
    order = order_methods({str(row["method"]) for row in transfer})
    nelbo = {m: means["nelbo", f, m] for m in order for f in (share, None) if ("nelbo", f, m) in means}
    if not set(nelbo) - {SOURCE}:
        return Finding(f"{at}: no method has a held-out NELBO.", "")
    best = min(nelbo, key=lambda method: nelbo[method])  # of equal ones the first in order
    head = f"{at} {'the untouched source' if best == SOURCE else method_label(best)} is best:"
    said = f"NELBO {number(nelbo[best])} {METRICS['nelbo'].unit}"
    by_nelbo = {row["method"]: row for row in pairs if row["metric"] == "nelbo" and row["n"]}
    rivals = [method for method in guided_methods(transfer) if method in by_nelbo and method in nelbo]
    if not rivals:
        return Finding(head, f"{said}; no guided method has a pair with {method_label(BASELINE)}.")
    pair = by_nelbo[min(rivals, key=lambda method: nelbo[method])]
    first, second = (BASELINE, pair["method"]) if best == BASELINE else (pair["method"], BASELINE)
    below = (pair["mean"] < 0) == (first != BASELINE)
    size = f"{number(abs(pair['mean']))} {'below' if below else 'above'} {method_label(second)}"
    by = f", {size}" if best == first else f"; {method_label(first)}, of the guided methods the best, is {size}"
    scores = [means.get(("mauve", share, method)) for method in (first, second)]
    if not any(missing(score) for score in scores):
        by += f" (MAUVE {number(scores[0])} against {number(scores[1])})"
    weights = [count(means.get(("trainable_parameters", share, method))) for method in (first, second)]
    times = [time_words(means.get(("train_seconds", share, method))) for method in (first, second)]
    who = "it" if best == first else method_label(first)
    cost = f"{who} trained {weights[0]} weights in {times[0]}, {method_label(second)} {weights[1]} in {times[1]}."
    sure = _sure(pair, 1 if below == (pair["mean"] < 0) else -1)
    return Finding(head, f"{said}{by}; {sure}; {cost}", frozenset((first, second)))


def _sure(pair: Row, sign: int) -> str:
    """How sure a difference is, in words; `sign` is -1 where the sentence speaks of the opposite difference."""
    if pair["n"] == 1:
        return "one seed, so it may be chance"
    low, high = (number(end, sign=True) for end in sorted((sign * pair["low"], sign * pair["high"])))
    interval = f"95 % interval {low} to {high}, {pair['n']} seeds"
    if pair["verdict"] == "open":
        return f"not distinguishable ({interval})"
    kept = "also" if pair["verdict_holm"] != "open" else "but not"
    return f"more than chance ({interval}), {kept} after Holm's adjustment for {pair['family']} comparisons"


def _texts(transfer: Sequence[Row], share: float) -> str:
    sizes = [row["examples"] for row in transfer if row.get("fraction") == share and not missing(row.get("examples"))]
    return f" ({count(max(sizes))} texts)" if sizes else ""


def limits(transfer: Sequence[Row]) -> list[str]:
    """What a run of one seed can and cannot say; nothing of a run that has more."""
    seeds = sorted({row["seed"] for row in transfer if not missing(row.get("fraction"))})
    if len(seeds) != 1:
        return []
    return [
        f"One seed ({seeds[0]}): this run says which method came out ahead in it, and what each cost. It cannot say "
        "whether another seed would turn that around: differences have no interval over seeds."
    ]


def next_command(transfer: Sequence[Row], repeats: Sequence[int] = ()) -> tuple[str, str] | None:
    """What a run of one seed is followed by: (words with the time it takes, command); None after several seeds.

    Args:
        transfer: rows of the cells.
        repeats: how many of the seeds each share has, which would leave out further ones.
    """
    seeds = {row["seed"] for row in transfer if not missing(row.get("fraction"))}
    if len(seeds) != 1:
        return None
    (seed,) = seeds
    wanted = [seed, *(other for other in range(WANTED_SEEDS) if other != seed)][:WANTED_SEEDS]
    known = [
        float(row[key])
        for row in transfer
        for key in ("train_seconds", "sample_seconds")
        if not missing(row.get(key)) and not missing(row.get("fraction"))
    ]
    more = len(wanted) - 1
    time = f", about {time_words(more * sum(known))} of training and sampling at this run's pace" if known else ""
    names = listing([str(one) for one in sorted(wanted)])
    all_of_them = " --set 'sweep.repeats=[]'" if repeats else ""
    command = f"gtl configure --set 'sweep.seeds={sorted(wanted)}'{all_of_them} && dvc repro report"
    return f"Next: seeds {names}{time}; what exists is kept.", command
