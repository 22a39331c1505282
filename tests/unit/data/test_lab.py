import json
import random
import re
from collections import Counter, defaultdict
from hashlib import sha256
from itertools import product
from typing import Any

import numpy as np
import pytest

from lorachord.data.files import read_rows
from lorachord.data.lab import CUES, NOUNS, PLACES, VERBS, WHO, Lab, lab_contradiction, lab_dominance
from lorachord.data.sources import from_rows
from tests.unit.data.helpers import real_data

SHARES = (0.0, 0.25, 0.5, 1.0)


def global_state() -> Any:
    numpy_state: Any = np.random.get_state()
    return random.getstate(), numpy_state[1].tolist(), numpy_state[2]


def both(lab: Lab) -> Any:
    return (lab.train, lab.dev)


@pytest.mark.parametrize("k", SHARES)
def test_family_and_value_rates_are_k_and_a_half(k: float) -> None:
    labs = [lab_contradiction(num_tasks=2, k=k, seed=seed) for seed in range(10)]
    texts = [row for lab in labs for rows in both(lab) for row in rows[0]]
    for found, expected in (([row["family"] == "b" for row in texts], k), ([row["value"] for row in texts], 0.5)):
        assert abs(np.mean(found) - expected) <= 4 * (expected * (1 - expected) / len(texts)) ** 0.5


@pytest.mark.parametrize("lab", [lab_contradiction(num_tasks=6), lab_dominance()], ids=lambda lab: lab.name)
def test_every_label_follows_the_rule(lab: Lab) -> None:
    # The rule written once more, from the words of the text alone.
    plus = {noun: float(value) for (_, value), nouns in NOUNS.items() for noun in nouns}
    contested = {noun for (family, _), nouns in NOUNS.items() if family == "b" for noun in nouns}
    for rows in both(lab):
        for task, of_task in enumerate(rows):
            for row in of_task:
                (noun,) = set(re.findall("[a-z]+", row["sentence1"])) & set(plus)
                expected = 1 - plus[noun] if noun in contested and task % 2 else plus[noun]
                assert row["label"] == expected


def test_all_tasks_share_one_pool_of_different_texts() -> None:
    lab = lab_contradiction()
    assert len(lab.tasks) == len(lab.train) == len(lab.dev) == len(lab.loss_weights) == 4
    for rows in both(lab):
        texts = [[row["sentence1"] for row in of_task] for of_task in rows]
        assert texts[0] == texts[1] == texts[2] == texts[3]
        assert len(set(texts[0])) == len(texts[0])
        assert [row["idx"] for row in rows[0]] == list(range(len(texts[0])))
    assert len(lab.train[0]) == 2000
    assert len(lab.dev[0]) == 1000


@pytest.mark.parametrize("k", SHARES)
def test_dev_holds_out_texts_and_combinations_but_no_word(k: float) -> None:
    lab = lab_contradiction(k=k)
    train, dev = lab.train[0], lab.dev[0]
    assert not {row["text"] for row in train} & {row["text"] for row in dev}
    assert not {(row["noun"], row["frame"]) for row in train} & {(row["noun"], row["frame"]) for row in dev}
    words = [set(" ".join(row["text"] for row in rows).split()) for rows in (train, dev)]
    assert words[1] == words[0]


@pytest.mark.parametrize("k", SHARES)
def test_the_best_task_blind_predictor_reaches_one_minus_half_k(k: float) -> None:
    lab = lab_contradiction(k=k, num_tasks=4, num_dev=2000)
    # Blind to the task, the most accurate answer to a text is the commonest label over the tasks.
    votes = [Counter(row[task]["label"] for task in range(4)) for row in zip(*lab.dev, strict=True)]
    best = np.mean([max(vote.values()) / 4 for vote in votes])
    assert lab.blind_bound == 1 - k / 2
    # The mean of a coin that is 1 or 1/2.
    assert abs(best - lab.blind_bound) <= 3 * 0.5 * (k * (1 - k) / 2000) ** 0.5


def best_guesses(lab: Lab) -> float:
    """The accuracy on dev of the commonest answer to each text, which no model that knows the text alone exceeds."""
    answers: dict[str, Counter[int]] = defaultdict(Counter)
    for rows in lab.dev:
        for row in rows:
            answers[row["sentence1"]][row["label"]] += 1
    return sum(max(found.values()) for found in answers.values()) / sum(len(rows) for rows in lab.dev)


def by_enumeration(k: float, cue: float, num_tasks: int) -> float:
    """The same of all that the generator may draw, each with its probability."""
    weight: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    num_own = len(CUES) // num_tasks
    for family, value, is_cued, task in product("ab", (0, 1), (False, True), range(num_tasks)):
        share = (k if family == "b" else 1 - k) / 2 * (cue if is_cued else 1 - cue) / num_tasks
        places = CUES[task * num_own : (task + 1) * num_own] if is_cued else PLACES
        label = 1 - value if family == "b" and task % 2 else value
        for noun, place in product(NOUNS[family, value], places):
            weight[noun, place][label] += share / len(NOUNS[family, value]) / len(places)
    return sum(max(found.values()) for found in weight.values())


@pytest.mark.parametrize(("k", "cue", "num_tasks"), [(1.0, 0.5, 4), (0.5, 0.25, 2), (0.7, 1.0, 8), (1.0, 0.1, 6)])
def test_with_a_cue_the_bound_is_that_of_the_texts_without(k: float, cue: float, num_tasks: int) -> None:
    lab = lab_contradiction(k=k, cue=cue, num_tasks=num_tasks)
    assert lab.blind_bound == 1 - (1 - cue) * k / 2
    assert by_enumeration(k, cue, num_tasks) == pytest.approx(lab.blind_bound)
    found = best_guesses(lab)
    # To the row what this dev split has of contested texts without a cue, and near the bound.
    contested = [row["family"] == "b" and not row["cued"] for row in lab.dev[0]]
    assert found == pytest.approx(1 - float(np.mean(contested)) / 2)
    left = (1 - cue) * k
    assert abs(found - lab.blind_bound) <= 3 * 0.5 * (left * (1 - left) / 1000) ** 0.5


def test_a_cue_is_a_place_that_no_other_text_has() -> None:
    lab = lab_contradiction(cue=0.4, num_tasks=4)
    of_tasks = [set(CUES[start : start + 6]) for start in range(0, 24, 6)]
    for split in both(lab):
        for rows, own in zip(split, of_tasks, strict=True):
            found = {True: set(), False: set()}
            for row in rows:
                (place,) = (place for place in (*PLACES, *CUES) if row["sentence1"].endswith(f" {place}."))
                assert row["frame"].endswith(place)
                found[row["cued"]].add(place)
            assert found == {True: own, False: set(PLACES)}
        # Aligned: but for the place, a row is the same in every task.
        for row in zip(*split, strict=True):
            assert len({of_task["text"] for of_task in row}) == 1
            assert len({of_task["sentence1"] for of_task in row}) == (4 if row[0]["cued"] else 1)
    texts = [row for split in both(lab) for row in split[0]]
    assert abs(np.mean([row["cued"] for row in texts]) - 0.4) <= 4 * (0.24 / len(texts)) ** 0.5


def test_cues_too_are_held_out_by_noun_and_frame() -> None:
    lab = lab_contradiction(cue=0.7, num_tasks=8)
    train, dev = ({(row["noun"], row["frame"]) for rows in split for row in rows} for split in both(lab))
    assert not train & dev
    words = [{word for rows in split for row in rows for word in row["sentence1"].split()} for split in both(lab)]
    assert words[1] == words[0]


def test_without_a_cue_every_text_is_as_it_was() -> None:
    labs = (
        lab_contradiction(),
        lab_contradiction(num_tasks=6, k=0.3, seed=5, num_dev=1500),
        lab_dominance(seed=2),
        lab_contradiction(num_tasks=64, num_train=100),
    )
    digests = [sha256(json.dumps([lab.train, lab.dev]).encode()).hexdigest()[:16] for lab in labs]
    assert digests == ["825adebb38ffa1e6", "10ba6bdc497a515b", "b8ae0e12f4c0f922", "6881bd159356378b"]


def test_the_task_is_in_the_text_of_dominance_alone() -> None:
    blind, told = lab_contradiction(num_tasks=2), lab_dominance()
    for task in range(2):
        assert all(row["sentence1"] == row["text"] for row in blind.dev[task])
        assert all(row["sentence1"] == f"Task {task}: {row['text']}" for row in told.dev[task])
    assert [row["text"] for row in told.dev[0]] == [row["text"] for row in told.dev[1]]
    assert told.loss_weights == (8.0, 1.0)
    assert blind.loss_weights == (1.0, 1.0)
    # So that a text decides its label, though half of the texts are contested.
    labels = {row["sentence1"]: row["label"] for rows in told.train for row in rows}
    assert all(labels[row["sentence1"]] == row["label"] for rows in told.train for row in rows)


def test_the_seed_decides_and_no_global_state_moves() -> None:
    state = global_state()
    first, again, other = (lab_contradiction(seed=seed) for seed in (3, 3, 4))
    assert global_state() == state
    assert first == again
    assert first.train != other.train


def test_val_is_drawn_alike_in_every_task() -> None:
    lab = lab_dominance()
    held_out = []
    for index, task in enumerate(lab.tasks):
        data = from_rows(task, lab.splits(index))
        assert (len(data.train), len(data.val), len(data.dev)) == (1800, 200, 1000)
        held_out.append({row["idx"] for row in data.val})
    assert held_out[0] == held_out[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_tasks=3), "num_tasks is 3; it must be even"),
        (dict(num_tasks=0), "num_tasks is 0"),
        (dict(k=1.5), r"k is 1\.5"),
        (dict(cue=-0.1), r"cue is -0\.1"),
        (dict(cue=0.5, num_tasks=10), "num_tasks is 10; a cue tells at most 8"),
        (dict(cue=0.5, num_tasks=8, num_dev=1297), "num_dev is 1297; there are texts for 1 to 1296"),
        (dict(num_dev=200), "num_dev is 200; below 1000"),
        (dict(num_train=0), "num_train is 0; there are texts for 1 to 10080"),
        (dict(num_dev=5000), "num_dev is 5000; there are texts for 1 to 4320"),
    ],
)
def test_impossible_labs_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab_contradiction(**options)


def test_no_word_stands_for_two_things() -> None:
    nouns = [noun for names in NOUNS.values() for noun in names]
    others = {word for phrase in (*WHO, *VERBS, *PLACES, *CUES) for word in phrase.split()}
    assert len(set(nouns)) == len(nouns) == 48
    assert not set(nouns) & others


def test_the_words_are_common_english() -> None:
    wanted = {word for phrase in (*sum(NOUNS.values(), ()), *WHO, *VERBS, *PLACES, *CUES) for word in phrase.split()}
    found: set[str] = set()
    for folder in ("glue_qqp", "glue_mnli", "cs_piqa", "cs_csqa", "cs_arc_easy", "cs_siqa"):
        for row in read_rows(real_data() / folder / "train.parquet"):
            texts = [row.get("sentence1", ""), row.get("question", ""), *row.get("choices", ())]
            found.update(re.findall("[a-z]+", " ".join(texts).lower()))
    assert wanted <= found
