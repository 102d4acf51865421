"""The sample's density is exact: by enumeration on small grammars, by identities on the shipped ones."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtl_lightning.data.sample import ARCHIVES, grammar
from gtl_lightning.laws.grammar import Grammar, to_words


def small(seed: int, max_words: int = 5) -> Grammar:
    rng = np.random.default_rng(seed)
    onward = rng.dirichlet(np.ones(4), size=3)
    onward[0, 1] += onward[0, 2]  # a forbidden move, so that zeros are met
    onward[0, 2] = 0.0
    return Grammar(
        words=("a", "b", "c"),
        topic=rng.dirichlet(np.ones(2)),
        start=rng.dirichlet(np.ones(3)),
        transition=onward[:, :3],
        end=onward[:, 3],
        emission=rng.dirichlet(np.ones(3), size=(2, 3)),
        max_words=max_words,
    )


def every_text(law: Grammar) -> list[str]:
    return [" ".join(words) for n in range(1, law.max_words + 1) for words in product(law.words, repeat=n)]


def by_paths(law: Grammar, text: str) -> float:
    """Unconditional probability of a text: the sum over topics and state paths."""
    ids = [law.words.index(word) for word in to_words(text)]
    total = 0.0
    for topic, path in product(range(len(law.topic)), product(range(len(law.start)), repeat=len(ids))):
        p = law.topic[topic] * law.start[path[0]] * law.end[path[-1]]
        for before, after in pairwise(path):
            p *= law.transition[before, after]
        for state, word in zip(path, ids, strict=True):
            p *= law.emission[topic, state, word]
        total += p
    return float(total)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), max_words=st.integers(1, 6))
def test_density_sums_to_one(seed: int, max_words: int) -> None:
    law = small(seed, max_words)
    assert np.exp(law.log_prob(every_text(law))).sum() == pytest.approx(1.0, abs=1e-10)


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000))
def test_forward_algorithm_equals_the_sum_over_paths(seed: int) -> None:
    law = small(seed, 4)
    texts = every_text(law)
    exact = np.array([by_paths(law, text) for text in texts])
    np.testing.assert_allclose(np.exp(law.log_prob(texts)), exact / exact.sum(), rtol=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_sampler_and_density_agree(seed: int) -> None:
    law = small(seed)
    texts = every_text(law)
    p = np.exp(law.log_prob(texts))
    drawn, _ = law.sample(40_000, np.random.default_rng(seed))
    counts = np.bincount([texts.index(text) for text in drawn], minlength=len(texts))
    large = p * len(drawn) > 20
    z = (counts - len(drawn) * p)[large] / np.sqrt(len(drawn) * p * (1 - p))[large]
    assert np.abs(z).max() < 5
    assert 0.6 < (z**2).mean() < 1.5
    entropy = -(p * np.log(p)).sum()
    spread = np.sqrt((p * (np.log(p) + entropy) ** 2).sum() / len(drawn))
    assert abs(-law.log_prob(drawn).mean() - entropy) < 4 * spread


def test_topics_are_drawn_by_their_weights() -> None:
    law = small(3)
    _, topics = law.sample(20_000, np.random.default_rng(0))
    inside = np.array([np.exp(law._forward(*law.encode(every_text(law))[:2], law.emission[z])).sum() for z in range(2)])
    weights = law.topic * inside / (law.topic * inside).sum()
    assert abs((topics == 0).mean() - weights[0]) < 4 * np.sqrt(weights[0] * weights[1] / 20_000)


@pytest.mark.parametrize("archive", ARCHIVES)
def test_rows_of_the_shipped_grammars_are_laws(archive: str) -> None:
    law = grammar(archive)
    np.testing.assert_allclose(law.transition.sum(1) + law.end, 1.0, rtol=1e-12)
    np.testing.assert_allclose(law.emission.sum(2), 1.0, rtol=1e-12)
    np.testing.assert_allclose([law.start.sum(), law.topic.sum()], 1.0, rtol=1e-12)


@pytest.mark.parametrize("archive", ARCHIVES)
def test_own_law_explains_own_samples_best(archive: str) -> None:
    texts, _ = grammar(archive).sample(400, np.random.default_rng(0))
    log_prob = {name: grammar(name).log_prob(texts) for name in ARCHIVES}
    for name in set(ARCHIVES) - {archive}:
        gain = log_prob[archive] - log_prob[name]
        assert np.isfinite(gain).all()
        assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))


def test_shipped_sampler_matches_its_density_on_lengths() -> None:
    # lengths have a law that needs no emission: compare it with the sampler's
    law = grammar("physics")
    belief, chance = law.start, []
    for _ in range(law.max_words):
        chance.append(float(belief @ law.end))
        belief = belief @ law.transition
    p = np.array(chance) / sum(chance)
    texts, _ = law.sample(5000, np.random.default_rng(0))
    mean = np.mean([len(to_words(text)) for text in texts])
    lengths = np.arange(1, law.max_words + 1)
    deviation = np.sqrt((p * lengths**2).sum() - (p * lengths).sum() ** 2)
    assert abs(mean - (p * lengths).sum()) < 4 * deviation / np.sqrt(5000)


def test_the_topic_is_worth_knowing() -> None:
    law = grammar("physics")
    texts, topics = law.sample(300, np.random.default_rng(0))
    ids, lengths, _ = law.encode(texts)
    given_topic = np.stack([law._forward(ids, lengths, emission) for emission in law.emission])
    assert (given_topic.argmax(0) == topics).mean() > 0.75
