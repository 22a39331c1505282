import math
from typing import Any

import pytest

from lorachord.data.metrics import METRICS, score


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "expected"),
    [
        ("accuracy", [0, 1, 1, 0], [0, 1, 0, 0], 3 / 4),
        # Two true positives, one false, one missed.
        ("f1", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 2 / 3),
        # Class F1: 1, 2/3 and 0.
        ("f1", [0, 1, 1], [0, 1, 2], (1 + 2 / 3 + 0) / 3),
        # TP 2, TN 1, FP 1, FN 1.
        ("matthews", [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
        ("pearson", [1.0, 2.0, 4.0], [1.0, 2.0, 3.0], 0.9819805),
        ("spearman", [1.0, 2.0, 40.0], [1.0, 2.0, 3.0], 1.0),
        ("spearman", [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], -1.0),
        ("exact_match", ["The answer.", "two"], ["the  answer", "three"], 1 / 2),
        # Longest common subsequence of 2 words in 3 and 4: P 2/3, R 1/2. The second pair is the same up to its stem.
        ("rouge_l", ["a dog ran", "cats"], ["the dog quickly ran", "cat"], (4 / 7 + 1) / 2),
    ],
)
def test_scores_are_those_of_the_formula(metric: str, predictions: Any, references: Any, expected: float) -> None:
    assert score(metric, predictions, references) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman"])
@pytest.mark.parametrize(("predictions", "references"), [([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([1], [1])])
def test_correlation_with_a_constant_is_zero(metric: str, predictions: Any, references: Any) -> None:
    assert METRICS[metric].constant == 0
    assert score(metric, predictions, references) == 0


def test_a_constant_to_rounding_is_constant() -> None:
    assert score("pearson", [0.3, 0.1 + 0.2, 0.3], [1.0, 2.0, 3.0]) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_diverged_scores_nan(bad: float) -> None:
    assert math.isnan(score("spearman", [1.0, bad, 3.0], [1.0, 2.0, 3.0]))


def test_an_absent_class_scores_zero_in_silence() -> None:
    assert score("f1", [0, 0], [1, 1]) == 0
    assert score("f1", [0, 0], [0, 0]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acc", [1], [1]), "no metric 'acc'.*'accuracy'"),
        (("accuracy", [1, 2], [1]), "2 predictions for 1 references"),
        (("accuracy", [], []), "nothing to score"),
    ],
)
def test_what_cannot_be_scored_is_an_error(arguments: tuple[str, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(*arguments)


@pytest.mark.parametrize("text", ["我喜欢猫", "да конечно", "نعم", "हाँ", "ก็ดี", "café", "😀", "!", ""])
def test_an_equal_answer_has_a_rouge_of_1_in_any_script(text: str) -> None:
    assert score("rouge_l", [text], [text]) == 1


def test_rouge_compares_words_or_characters_of_other_scripts() -> None:
    # Three of four characters in order; one of two words.
    assert score("rouge_l", ["我喜欢狗"], ["我喜欢猫"]) == pytest.approx(3 / 4)
    assert score("rouge_l", ["да нет"], ["да, Конечно!"]) == pytest.approx(1 / 2)
    assert score("rouge_l", ["नहीं"], ["हाँ"]) == 0
    assert score("rouge_l", ["cats running"], ["cat runs"]) == 1
