import random
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from lorachord.data.files import read_rows
from lorachord.data.lab import NOUNS, PLACES, VERBS, WHO, Lab, lab_contradiction, lab_dominance
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
    others = {word for phrase in (*WHO, *VERBS, *PLACES) for word in phrase.split()}
    assert len(set(nouns)) == len(nouns) == 48
    assert not set(nouns) & others


def test_the_words_are_common_english() -> None:
    wanted = {word for phrase in (*sum(NOUNS.values(), ()), *WHO, *VERBS, *PLACES) for word in phrase.split()}
    found: set[str] = set()
    for folder in ("glue_qqp", "glue_mnli", "cs_piqa", "cs_csqa", "cs_arc_easy", "cs_siqa"):
        for row in read_rows(real_data() / folder / "train.parquet"):
            texts = [row.get("sentence1", ""), row.get("question", ""), *row.get("choices", ())]
            found.update(re.findall("[a-z]+", " ".join(texts).lower()))
    assert wanted <= found
