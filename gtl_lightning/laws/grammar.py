"""Hidden Markov models over words with exact densities: a mixture over topics, an end, a greatest length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CHUNK = 2048
_WORD = re.compile(r"[.,]|[^\s.,]+")


def to_words(text: str) -> list[str]:
    """Words of a text, lower case; full stops and commas are words."""
    return _WORD.findall(text.lower())


def to_text(words: Sequence[str]) -> str:
    """The text of words: one blank between them, none before full stops and commas."""
    return " ".join(words).replace(" .", ".").replace(" ,", ",")


@dataclass(frozen=True)
class Grammar:
    """Law of a text: draw a topic, then walk the states, a word each, until the end; given at most `max_words` words.

    Args:
        words: the vocabulary, v words.
        topic: [z], law of the topic.
        start: [s], law of the first state.
        transition: [s, s]; a row and its `end` sum to 1.
        end: [s], chance that the text ends after this state.
        emission: [z, s, v], law of the word.
        max_words: texts longer than that have probability 0.
    """

    words: tuple[str, ...]
    topic: Floats
    start: Floats
    transition: Floats
    end: Floats
    emission: Floats
    max_words: int

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Texts -> word ids [n, max_words] (0 beyond the end), lengths [n], and which texts can occur at all [n].

        Texts that cannot occur hold a word outside the vocabulary, no word, or more than `max_words`.
        """
        number = {word: index for index, word in enumerate(self.words)}
        ids = np.zeros((len(texts), self.max_words), np.int64)
        lengths = np.zeros(len(texts), np.int64)
        known = np.zeros(len(texts), bool)
        for row, text in enumerate(texts):
            words = to_words(text)
            lengths[row] = len(words)
            known[row] = 0 < len(words) <= self.max_words and all(word in number for word in words)
            if known[row]:
                ids[row, : len(words)] = [number[word] for word in words]
        return ids, lengths, known

    def log_prob(self, texts: Sequence[str]) -> Floats:
        """Exact log-probability of whole texts, end included, in nats: [n]; -inf for texts that cannot occur."""
        ids, lengths, known = self.encode(texts)
        result = np.full(len(texts), -np.inf)
        rows = np.flatnonzero(known)
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            by_topic = [self._forward(ids[chunk], lengths[chunk], emission) for emission in self.emission]
            with np.errstate(divide="ignore"):
                joint = np.log(self.topic)[:, None] + np.stack(by_topic)
            result[chunk] = np.logaddexp.reduce(joint, axis=0) - self._log_mass
        return result

    def sample(self, n: int, rng: np.random.Generator) -> tuple[list[str], NDArray[np.int64]]:
        """Draw `n` texts and their topics. Longer ones than `max_words` are drawn again, topic and all."""
        texts: list[str] = []
        topics: list[int] = []
        while len(texts) < n:
            walks, drawn, ended = self._walk(n, rng)
            for row in np.flatnonzero(ended)[: n - len(texts)].tolist():
                walk = walks[row]
                texts.append(to_text([self.words[index] for index in walk[walk >= 0]]))
                topics.append(int(drawn[row]))
        return texts, np.array(topics, np.int64)

    def _walk(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Word ids [n, max_words] (-1 beyond the end), topics [n], whether the walk ended in time [n]."""
        topics = _draw(np.broadcast_to(np.cumsum(self.topic), (n, len(self.topic))), rng)
        states = _draw(np.broadcast_to(np.cumsum(self.start), (n, len(self.start))), rng)
        onward = np.cumsum(np.concatenate([self.transition, self.end[:, None]], axis=1), axis=1)
        emitted = np.cumsum(self.emission, axis=2)
        walks = np.full((n, self.max_words), -1, np.int64)
        ended = np.zeros(n, bool)
        for step in range(self.max_words):
            words = _draw(emitted[topics, states], rng)
            walks[:, step] = np.where(ended, -1, words)
            following = _draw(onward[states], rng)
            ended |= following == len(self.start)
            states = np.where(ended, states, following)
        return walks, topics, ended

    def _forward(self, ids: NDArray[np.int64], lengths: NDArray[np.int64], emission: Floats) -> Floats:
        """Log-likelihood given the topic, without the condition on the length: [n]."""
        belief = self.start * emission[:, ids[:, 0]].T
        log_scale = np.zeros(len(ids))
        result = np.full(len(ids), -np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            for step in range(1, int(lengths.max()) + 1):
                scale = belief.sum(axis=1)
                log_scale += np.log(scale)
                belief = np.where(scale[:, None] > 0, belief / scale[:, None], 0.0)
                last = lengths == step
                result[last] = log_scale[last] + np.log(belief[last] @ self.end)
                if step < self.max_words:
                    belief = (belief @ self.transition) * emission[:, ids[:, step]].T
        return result

    @cached_property
    def _log_mass(self) -> float:
        """Log-probability that a walk ends within `max_words` words."""
        belief, mass = self.start, 0.0
        for _ in range(self.max_words):
            mass += float(belief @ self.end)
            belief = belief @ self.transition
        return float(np.log(mass))


def _draw(cumulative: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """One index per row of cumulative weights [n, k]."""
    threshold = rng.random(len(cumulative)) * cumulative[:, -1]
    return np.asarray((cumulative > threshold[:, None]).argmax(axis=1), np.int64)
