"""The split stage: exact counts on damaged input, duplicates across domains, one test per bad input."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gtl_lightning.data.duplicates import group, signatures, similarity
from gtl_lightning.data.split import SPLITS, fraction_size, split_snapshot
from gtl_lightning.errors import UserError

WORDS = [f"w{i}" for i in range(500)]
DOMAINS: dict[str, Any] = {"source": ["cs", "math"], "target": ["physics"]}


def text(seed: int, n: int = 40) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


def records(n: int = 300) -> list[dict[str, str]]:
    archives = ("cs.LG", "math.AG", "physics.optics", "stat.ML")
    return [{"id": f"r{i}", "categories": archives[i % 4], "abstract": text(i)} for i in range(n)]


def write(path: Path, lines: list[Any]) -> Path:
    joined = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(joined.encode()))
    return path


def read(out: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(out / f"{name}.parquet") for name in SPLITS}


def test_counts_causes_and_lines_are_exact_on_a_damaged_file(tmp_path: Path) -> None:
    lines: list[Any] = records(400)
    lines[10] = "{cut off"
    lines[20] = {"id": "r20", "categories": "cs.LG"}
    lines[30] = {"id": "r30", "categories": "physics.optics", "abstract": " \n"}
    lines.append({"id": "r40", "categories": "cs.LG", "abstract": text(9040)})
    lines.append({"id": "copy", "categories": "physics.optics", "abstract": text(41)})
    summary = split_snapshot(write(tmp_path / "s.gz", lines), tmp_path / "out", **DOMAINS)
    assert summary["records"] == 402
    assert summary["quarantine"] == {
        "duplicate-id": 1,
        "empty-abstract": 1,
        "malformed": 1,
        "missing-field": 1,
        "near-duplicate": 1,
    }
    rows = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    by_cause = {row["cause"]: (row["line"], row["id"]) for row in rows}
    assert by_cause["malformed"] == (11, None)
    assert by_cause["missing-field"] == (21, "r20")
    assert by_cause["empty-abstract"] == (31, "r30")
    assert by_cause["duplicate-id"] in {(41, "r40"), (401, "r40")}
    assert by_cause["near-duplicate"] in {(42, "r41"), (402, "copy")}
    assert summary["unused"] == {"over-maximum": 0, "other-archive": 100}
    placed = sum(sum(counts.values()) for counts in summary["splits"].values())
    assert placed + len(rows) + sum(summary["unused"].values()) == summary["records"]
    assert summary == json.loads((tmp_path / "out/summary.json").read_text())


def test_splits_hold_their_domains_ranked_and_disjoint(tmp_path: Path) -> None:
    lines = records()
    summary = split_snapshot(write(tmp_path / "s.gz", lines), tmp_path / "out", **DOMAINS)
    splits = read(tmp_path / "out")
    original = {line["id"]: line for line in lines}
    seen: Counter[str] = Counter()
    for name, frame in splits.items():
        assert list(frame["rank"]) == list(range(len(frame)))
        allowed = {"cs", "math"} if "source" in name else {"physics"}
        assert set(frame["archive"]) <= allowed
        assert dict(Counter(frame["archive"])) == summary["splits"][name]
        for row in frame.itertuples():
            assert row.text == original[row.id]["abstract"]
            assert row.archive == original[row.id]["categories"].split(".")[0]
        seen.update(frame["id"])
    assert len(seen) == 225 and set(seen.values()) == {1}


def test_near_duplicates_in_two_domains_never_land_on_both_sides(tmp_path: Path) -> None:
    lines = records()
    for i in range(50):  # one word of forty changed: similarity about 37 / 43
        words = text(i).split()
        words[20] = "changed"
        lines.append({"id": f"near{i}", "categories": "physics.optics", "abstract": " ".join(words).upper() + " !"})
    summary = split_snapshot(write(tmp_path / "s.gz", lines), tmp_path / "out", **DOMAINS)
    used = sum(lines[i]["categories"] != "stat.ML" for i in range(50))
    assert summary["quarantine"] == {"near-duplicate": used}
    ids = {identity for frame in read(tmp_path / "out").values() for identity in frame["id"]}
    for i in range(50):
        if lines[i]["categories"] != "stat.ML":
            assert len(ids & {f"r{i}", f"near{i}"}) == 1


def test_a_lower_threshold_groups_more(tmp_path: Path) -> None:
    one = text(0)
    half = " ".join([*one.split()[:30], *text(1).split()[:10]])
    assert 0.5 < similarity(one.encode(), half.encode()) < 0.7
    lines = [*records(100), {"id": "half", "categories": "cs.LG", "abstract": half}]
    path = write(tmp_path / "s.gz", lines)
    loose = split_snapshot(path, tmp_path / "a", **DOMAINS, near_duplicate=0.5)
    strict = split_snapshot(path, tmp_path / "b", **DOMAINS, near_duplicate=0.8)
    assert (loose["quarantine"], strict["quarantine"]) == ({"near-duplicate": 1}, {})


def test_similarity_is_jaccard_of_word_triples() -> None:
    def triples(words: str) -> set[tuple[str, ...]]:
        split = words.split()
        return set(zip(split, split[1:], split[2:], strict=False))

    one, other = "a b c d e f g h", "a b c d e x g h"
    exact = len(triples(one) & triples(other)) / len(triples(one) | triples(other))
    assert similarity(one.encode(), other.encode()) == pytest.approx(exact)
    assert similarity(b"The cat, sat!", b"the cat sat") == 1.0
    assert similarity(b"two words", b"two words") == 1.0
    assert similarity(b"two words", b"two others") == 0.0
    assert similarity(b"...", b"...") == 0.0
    assert similarity(b"", b"word") == 0.0


def test_signature_columns_agree_as_often_as_the_sets_overlap() -> None:
    estimates, exact = [], []
    for seed in range(60):
        words = text(seed, 120).split()
        changed = words[: 60 + seed] + text(1000 + seed, 60 - seed).split()
        pair = [" ".join(words).encode(), " ".join(changed).encode()]
        estimates.append((np.equal(*signatures(pair))).mean())
        exact.append(similarity(*pair))
    error = np.array(estimates) - np.array(exact)
    assert abs(error.mean()) < 0.03  # 60 pairs of 36 columns each: standard error about 0.01
    assert error.std() < 0.12


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = [b"", b"one", b"one two", b"- -", *(text(i, 3 + i).encode() for i in range(30)), b"last"]
    together = signatures(texts)
    alone = np.concatenate([signatures([item]) for item in texts])
    np.testing.assert_array_equal(together, alone)


def test_grouping_is_transitive_and_leaves_wordless_texts_alone() -> None:
    base = text(0, 100).split()
    chain = [" ".join(base), " ".join([*base[:92], *text(5, 8).split()])]
    chain.append(" ".join([*text(6, 8).split(), *base[8:92], *text(5, 8).split()]))
    texts = [item.encode() for item in (*chain, "...", "???", text(7, 50))]
    assert similarity(texts[0], texts[2]) < 0.8 <= min(similarity(texts[0], texts[1]), similarity(texts[1], texts[2]))
    assert group(signatures(texts), texts.__getitem__, 0.8).tolist() == [0, 0, 0, 3, 4, 5]


def test_target_share_goes_to_source_train_only(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gz", records(1200))
    split_snapshot(path, tmp_path / "out", **DOMAINS, target_share_in_source=0.3)
    plain = split_snapshot(path, tmp_path / "plain", **DOMAINS)
    splits, before = read(tmp_path / "out"), read(tmp_path / "plain")
    moved = splits["source_train"].query("archive == 'physics'")
    assert 0.2 < len(moved) / 300 < 0.4
    assert set(splits["source_val"]["archive"]) | set(splits["judge_source"]["archive"]) == {"cs", "math"}
    for name in SPLITS:  # every other record stays where it was
        if name.startswith("target") or name == "judge_target":
            assert set(splits[name]["id"]) == set(before[name]["id"]) - set(moved["id"])
    own = splits["source_train"].query("archive != 'physics'")["id"].tolist()
    assert own == before["source_train"]["id"].tolist()
    assert moved["rank"].mean() == pytest.approx(len(splits["source_train"]) / 2, rel=0.25)  # mixed in, not appended
    assert plain["splits"]["source_train"].keys() == {"cs", "math"}


def test_maxima_keep_the_first_in_hash_order_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gz", records(400))
    split_snapshot(path, tmp_path / "all", **DOMAINS)
    summary = split_snapshot(path, tmp_path / "few", **DOMAINS, max_source=90, max_target=60)
    assert summary["unused"]["over-maximum"] == 400 - 100 - 90 - 60
    whole, few = read(tmp_path / "all"), read(tmp_path / "few")
    for name in SPLITS:
        assert whole[name]["id"].tolist()[: len(few[name])] == few[name]["id"].tolist()
    assert sum(len(few[name]) for name in SPLITS) == 150


def test_a_cap_on_the_target_holds_for_mixed_records_too(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gz", records(1200))
    summary = split_snapshot(path, tmp_path / "out", **DOMAINS, max_target=60, target_share_in_source=0.3)
    placed = sum(archives.get("physics", 0) for archives in summary["splits"].values())
    assert placed == 60 and 5 <= summary["splits"]["source_train"]["physics"] <= 35
    assert summary["unused"]["over-maximum"] == 300 - 60


def test_too_much_damage_stops_and_keeps_the_quarantine(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gz", [*records(98), "{", "{"])
    with pytest.raises(UserError, match=r"2 of 100 records are damaged \(malformed 2\).*max_bad_share = 0.01"):
        split_snapshot(path, tmp_path / "out", **DOMAINS, max_bad_share=0.01)
    assert len((tmp_path / "out/quarantine.jsonl").read_text().splitlines()) == 2
    split_snapshot(path, tmp_path / "out", **DOMAINS, max_bad_share=0.02)


def test_duplicates_are_no_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gz", records(200) * 2)
    summary = split_snapshot(path, tmp_path / "out", **DOMAINS, max_bad_share=0.0)
    assert summary["quarantine"] == {"duplicate-id": 200}


def test_a_domain_without_records_is_named_beside_those_present(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gz", records(40))
    with pytest.raises(UserError, match=r"no record of the target archive 'astro-ph'.*cs \(10\)"):
        split_snapshot(path, tmp_path / "out", source=["cs"], target=["astro-ph"])


def test_overlapping_domains(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'cs' is in both source and target"):
        split_snapshot(tmp_path / "s.gz", tmp_path / "out", source=["cs", "math"], target=["cs"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": []}, "source names no archive"),
        ({"target": []}, "target names no archive"),
        ({"near_duplicate": 0.4}, r"near_duplicate = 0.4 lies outside \[0.5, 1\]"),
        ({"target_share_in_source": 1.0}, "target_share_in_source = 1.0 lies outside"),
        ({"shares": {"target_val": 0.6, "target_test": 0.5}}, "must each be at least 0 and leave something for target"),
        ({"shares": {"source_val": -0.1}}, "must each be at least 0"),
        ({"shares": {"target_vla": 0.1}}, "unknown split 'target_vla'"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_snapshot(tmp_path / "s.gz", tmp_path / "out", **{**DOMAINS, **changes})


def test_too_few_target_records(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gz", records(200))
    with pytest.raises(UserError, match=r"split target_train has \d+ records, fewer than 60"):
        split_snapshot(path, tmp_path / "out", **DOMAINS, min_examples=60)


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.gz", records(8))
    with pytest.raises(UserError, match=r"split \w+ has 0 records, fewer than 1"):
        split_snapshot(path, tmp_path / "out", **DOMAINS)


def test_unwritable_folder_shows_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        split_snapshot(tmp_path / "never-read.gz", tmp_path / "file" / "out", **DOMAINS)


def test_nothing_but_the_results_is_left_in_the_folder(tmp_path: Path) -> None:
    split_snapshot(write(tmp_path / "s.gz", records()), tmp_path / "out", **DOMAINS)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"quarantine.jsonl", "summary.json", *(f"{name}.parquet" for name in SPLITS)}


def test_pandera_refuses_a_plan_with_a_record_twice(tmp_path: Path) -> None:
    from pandera.errors import SchemaError, SchemaErrors

    from gtl_lightning.data import split as module
    from gtl_lightning.data.quarantine import quarantine
    from gtl_lightning.data.scan import scan

    path = write(tmp_path / "s.gz", records(40))
    with (tmp_path / "spool").open("w+b") as spool, quarantine(tmp_path) as damaged:
        found = scan(path, spool, damaged, {"cs", "physics"}, 0)
    empty = {name: found.ranked[:0] for name in SPLITS}
    cs, physics = (found.ranked[found.archive[found.ranked] == name] for name in ("cs", "physics"))
    good = {**empty, "source_train": cs, "target_train": physics}
    module._check_plan(found, good, {"cs"}, {"physics"})
    for bad in ({**good, "source_val": cs[:1]}, {**good, "target_train": cs, "source_train": physics}):
        with pytest.raises((SchemaError, SchemaErrors)):
            module._check_plan(found, bad, {"cs"}, {"physics"})


@pytest.mark.parametrize(
    ("n", "fraction", "size"), [(100, 1.0, 100), (100, 0.07, 7), (100, 0.001, 1), (281, 0.01, 3), (3, 0.5, 2)]
)
def test_fraction_size_is_the_ceiling(n: int, fraction: float, size: int) -> None:
    assert fraction_size(n, fraction) == size


def test_fraction_below_the_minimum_names_the_counts() -> None:
    with pytest.raises(
        UserError, match=r"fraction 0\.01 of 1000 target examples keeps 10, fewer than min_examples = 16"
    ):
        fraction_size(1000, 0.01, 16)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(UserError, match="outside"):
        fraction_size(10, fraction)
