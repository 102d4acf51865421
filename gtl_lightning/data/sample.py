"""The embedded sample: generated abstracts whose exact density is known, by archive.

Each archive has a `Grammar`: short sentences from templates (the hidden states), mostly two to a text, whose nouns
depend on the text's topic. Archives share the templates, the function words and the general words of science; they
differ in how often templates follow one another and in their own words. Every word can stand anywhere with a small
chance, in every archive, so that all density ratios are finite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gtl_lightning.data.lines import open_gzip
from gtl_lightning.data.origin import SNAPSHOT, write_provenance
from gtl_lightning.data.snapshot import survey
from gtl_lightning.errors import UserError
from gtl_lightning.files import replacing
from gtl_lightning.laws.grammar import Floats, Grammar, to_words
from gtl_lightning.laws.lexicon import OWN, SHARED, TOPICS

ARCHIVES = tuple(TOPICS)
MAX_WORDS = 30

_SLIP = 0.002  # chance of any word instead of the template's, and of a jump to any state
_ONE_SENTENCE = 0.1

# slot -> (class of its words, slots that may follow with their weights)
_SLOTS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "intro": ("intro", {"comma": 1}),
    "comma": ("comma", {"we": 3, "s_det": 4}),
    "we": ("we", {"we_verb": 3, "that_verb": 1}),
    "we_verb": ("we_verb", {"o_det": 1}),
    "that_verb": ("that_verb", {"that": 1}),
    "that": ("that", {"s_det": 1}),
    "s_det": ("det", {"s_adj": 2, "s_noun": 3}),
    "s_adj": ("adj", {"s_noun": 1}),
    "s_noun": ("noun", {"verb": 6, "adv": 1, "is": 2, "s_prep": 2}),
    "s_prep": ("prep", {"s_det_2": 1}),
    "s_det_2": ("det", {"s_noun_2": 1}),
    "s_noun_2": ("noun", {"verb": 3, "is": 1}),
    "adv": ("adv", {"verb": 1}),
    "is": ("is", {"state": 1}),
    "state": ("adj", {"stop": 2, "o_prep": 1, "conj": 1}),
    "verb": ("verb", {"o_det": 1}),
    "o_det": ("det", {"o_adj": 2, "o_noun": 3}),
    "o_adj": ("adj", {"o_noun": 1}),
    "o_noun": ("noun", {"stop": 3, "o_prep": 3, "conj": 1}),
    "o_prep": ("prep", {"o_det_2": 1}),
    "o_det_2": ("det", {"o_noun_2": 1}),
    "o_noun_2": ("noun", {"stop": 1}),
    "conj": ("conj", {"c_det": 1}),
    "c_det": ("det", {"c_noun": 1}),
    "c_noun": ("noun", {"c_verb": 1}),
    "c_verb": ("verb", {"c_det_2": 1}),
    "c_det_2": ("det", {"c_noun_2": 1}),
    "c_noun_2": ("noun", {"stop": 1}),
    "stop": ("stop", {}),
}
_FIRST: Mapping[str, float] = {"intro": 1, "we": 3, "s_det": 4}
_FIXED: Mapping[str, tuple[str, ...]] = {
    "comma": (",",),
    "we": ("we",),
    "that": ("that",),
    "is": ("is",),
    "stop": (".",),
}

# archive -> slot -> factor on the chance of entering it
_HABITS: Mapping[str, Mapping[str, float]] = {
    "cs": {"we": 1.6, "o_prep": 1.4},
    "math": {"that_verb": 2.5, "is": 2.0, "adv": 0.5},
    "physics": {"we": 0.5, "adv": 2.5, "conj": 3.0, "s_prep": 1.6},
}
# shares of a class's words: of the archive itself (for nouns: of the topic, then of its other topics), shared, others'
_VERB_SHARES = (0.42, 0.4, 0.18)
_NOUN_SHARES = (0.42, 0.13, 0.27, 0.18)


class ExactLikelihood(NamedTuple):
    """Exact negative log-likelihood of texts under one archive's law.

    `nats` [n] is inf where `known` [n] is false: a word outside the vocabulary, no word, or too many. `words` [n]
    counts words with full stops and commas.
    """

    nats: Floats
    words: NDArray[np.int64]
    known: NDArray[np.bool_]

    @property
    def mean_per_word(self) -> float:
        """Nats per word over the known texts together; nan when there is none."""
        return float(self.nats[self.known].sum() / self.words[self.known].sum()) if self.known.any() else float("nan")


def vocabulary() -> tuple[str, ...]:
    """All words of the sample, the same for every archive, sorted."""
    lists = [*SHARED.values(), *_FIXED.values()]
    lists += [words for classes in OWN.values() for words in classes.values()]
    lists += [nouns for topics in TOPICS.values() for nouns in topics.values()]
    return tuple(sorted({word for words in lists for word in words}))


@lru_cache(maxsize=len(ARCHIVES))
def grammar(archive: str) -> Grammar:
    """The law of one archive's texts.

    Raises:
        UserError: an archive that the sample does not have.
    """
    if archive not in TOPICS:
        raise UserError(f"the sample has no archive {archive!r}; it has {', '.join(ARCHIVES)}")
    words = vocabulary()
    slots = list(_SLOTS)
    habits = _HABITS[archive]
    n = len(slots)
    first = _law(slots, _FIRST, habits)
    inner = np.stack([_law(slots, following, habits) for _, following in _SLOTS.values()])
    stop = slots.index("stop")
    transition = np.zeros((2 * n, 2 * n))
    transition[:n, :n] = transition[n:, n:] = inner
    transition[stop, n:] = (1 - _ONE_SENTENCE) * first
    end = np.zeros(2 * n)
    end[stop], end[n + stop] = _ONE_SENTENCE, 1.0
    emission = np.stack([_emission(archive, topic, words) for topic in TOPICS[archive]])
    return Grammar(
        words=words,
        topic=np.full(len(TOPICS[archive]), 1 / len(TOPICS[archive])),
        start=np.concatenate([first, np.zeros(n)]),
        transition=(1 - _SLIP) * transition + _SLIP / (2 * n + 1),
        end=(1 - _SLIP) * end + _SLIP / (2 * n + 1),
        emission=np.concatenate([emission, emission], axis=1),
        max_words=MAX_WORDS,
    )


def exact_nll(texts: Sequence[str], archive: str) -> ExactLikelihood:
    """Exact negative log-likelihood of texts under the law of `archive`, end of text included.

    Raises:
        UserError: an archive that the sample does not have.
    """
    law = grammar(archive)
    log_prob = law.log_prob(texts)
    words = np.array([len(to_words(text)) for text in texts], np.int64)
    return ExactLikelihood(-log_prob, words, np.isfinite(log_prob))


def write_sample(
    folder: Path | str, *, seed: int, source_records: int = 12000, target_records: int = 8000
) -> dict[str, Any]:
    """Write `folder`/snapshot.jsonl.gz and provenance.json; the same arguments give the same bytes.

    Args:
        folder: where the pipeline looks for data.
        seed: of the draws.
        source_records: records of cs and math together, half each.
        target_records: records of physics.

    Returns:
        The provenance.

    Raises:
        UserError: an unwritable folder, a negative seed or number of records.
    """
    for name, value in {"seed": seed, "source_records": source_records, "target_records": target_records}.items():
        if value < 0:
            raise UserError(f"{name} = {value} is negative; give a number from 0 on")
    rng = np.random.default_rng(seed)
    sizes = {"cs": source_records - source_records // 2, "math": source_records // 2, "physics": target_records}
    records: list[tuple[str, str]] = []
    for archive, size in sizes.items():
        texts, topics = grammar(archive).sample(size, rng)
        codes = list(TOPICS[archive])
        records += [(codes[topic], text) for topic, text in zip(topics.tolist(), texts, strict=True)]
    order = rng.permutation(len(records)).tolist()
    with replacing(folder) as staged:
        with open_gzip(staged / SNAPSHOT, level=9) as file:
            for number, index in enumerate(order):
                category, text = records[index]
                record = {
                    "id": f"sample-{number:06d}",
                    "title": "Generated abstract",
                    "categories": category,
                    "abstract": text,
                    "update_date": "",
                    "generated": True,
                }
                file.write(json.dumps(record).encode() + b"\n")
        found = survey(staged / SNAPSHOT)
        return write_provenance(staged, kind="sample", found=found, seed=seed, archives=sizes)


def _law(slots: Sequence[str], weights: Mapping[str, float], habits: Mapping[str, float]) -> Floats:
    law = np.array([weights.get(slot, 0.0) * habits.get(slot, 1.0) for slot in slots])
    return law / law.sum() if law.any() else law


def _emission(archive: str, topic: str, words: Sequence[str]) -> Floats:
    """Law of the word in every slot: [slots, v]."""
    number = {word: index for index, word in enumerate(words)}
    others = [name for name in ARCHIVES if name != archive]

    def mixture(shares: Sequence[float], groups: Sequence[Sequence[str]]) -> Floats:
        law = np.zeros(len(words))
        for share, group in zip(shares, groups, strict=True):
            weights = 1.0 / (np.arange(len(group)) + 3.0)
            for word, weight in zip(group, weights / weights.sum(), strict=True):
                law[number[word]] += share * weight
        return law

    def shared(kind: str) -> tuple[str, ...]:
        # the archives favour different general words: each begins its list elsewhere
        group = SHARED[kind]
        turn = ARCHIVES.index(archive) * len(group) // (2 * len(ARCHIVES))
        return group[turn:] + group[:turn]

    def law(kind: str) -> Floats:
        if kind in _FIXED:
            return mixture([1.0], [_FIXED[kind]])
        if kind == "noun":
            siblings = [noun for name, nouns in TOPICS[archive].items() if name != topic for noun in nouns]
            foreign = [noun for name in others for nouns in TOPICS[name].values() for noun in nouns]
            return mixture(_NOUN_SHARES, [TOPICS[archive][topic], _spread(siblings), shared(kind), _spread(foreign)])
        if kind in OWN[archive]:
            foreign = [word for name in others for word in OWN[name][kind]]
            return mixture(_VERB_SHARES, [OWN[archive][kind], shared(kind), _spread(foreign)])
        return mixture([1.0], [shared(kind)])

    exact = np.stack([law(kind) for kind, _ in _SLOTS.values()])
    return (1 - _SLIP) * exact + _SLIP / len(words)


def _spread(group: Sequence[str]) -> list[str]:
    """A joined list in an order that favours none of its parts: by the words themselves."""
    return sorted(group)
