"""Scores of predictions, computed by scikit-learn, SciPy and rouge-score, which are imported at first use."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorachord.messages import suggest

Values = Sequence[Any] | NDArray[np.generic]


def _accuracy(predictions: Values, references: Values) -> float:
    from sklearn.metrics import accuracy_score  # type: ignore[import-untyped]

    return float(accuracy_score(references, predictions))


def _f1(predictions: Values, references: Values) -> float:
    from sklearn.metrics import f1_score

    average = "binary" if set(predictions) | set(references) <= {0, 1} else "macro"
    return float(f1_score(references, predictions, average=average, zero_division=0.0))


def _matthews(predictions: Values, references: Values) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def _pearson(predictions: Values, references: Values) -> float:
    from scipy.stats import pearsonr  # type: ignore[import-untyped]

    return float(pearsonr(predictions, references).statistic)


def _spearman(predictions: Values, references: Values) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(predictions, references).statistic)


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def _exact_match(predictions: Values, references: Values) -> float:
    return _accuracy([_plain(text) for text in predictions], [_plain(text) for text in references])


def _is_right(predictions: Values, references: Values) -> list[float]:
    return [float(value == target) for value, target in zip(predictions, references, strict=True)]


def _is_exact(predictions: Values, references: Values) -> list[float]:
    return _is_right([_plain(text) for text in predictions], [_plain(text) for text in references])


def _rouge_l(predictions: Values, references: Values) -> float:
    scores = _rouge_l_each(predictions, references)
    return sum(scores) / len(scores)


def _rouge_l_each(predictions: Values, references: Values) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    from lorachord.data.words import RougeWords

    scorer = RougeScorer(["rougeL"], tokenizer=RougeWords())
    scores = []
    for text, target in zip(predictions, references, strict=True):
        # Texts without a word, such as a face or a mark, are compared as they are.
        same = text.split() == target.split()
        scores.append(1.0 if same else float(scorer.score(target, text)["rougeL"].fmeasure))
    return scores


@dataclass(frozen=True, slots=True)
class Metric:
    """
    Attributes:
        compute: the score of (predictions, references); higher is better.
        kinds: the kinds of tasks it fits.
        constant: the score where the predictions, or the references, are all the same and the formula divides zero by
            zero; None where the formula is defined there.
        each: the score of every example, where the metric is their mean; otherwise None.
    """

    compute: Callable[[Values, Values], float]
    kinds: tuple[str, ...]
    constant: float | None = None
    each: Callable[[Values, Values], list[float]] | None = None


CLASSES = ("classification", "pair")
WRITTEN = ("generation", "chat")
"""The kinds of tasks whose answer is a text."""
METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, (*CLASSES, "multiple_choice"), each=_is_right),
    "f1": Metric(_f1, CLASSES),
    "matthews": Metric(_matthews, CLASSES, constant=0.0),
    "pearson": Metric(_pearson, ("regression",), constant=0.0),
    "spearman": Metric(_spearman, ("regression",), constant=0.0),
    "exact_match": Metric(_exact_match, WRITTEN, each=_is_exact),
    "rouge_l": Metric(_rouge_l, WRITTEN, each=_rouge_l_each),
}


def _is_constant(values: Values) -> bool:
    # The threshold below which SciPy itself calls a correlation meaningless.
    low, high = min(values), max(values)
    return bool(high - low <= 1e-13 * max(abs(low), abs(high)))


def get_metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        ValueError: no such metric; the message names the nearest.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}. {suggest(name, METRICS)}")
    return METRICS[name]


def score(metric: str, predictions: Values, references: Values) -> float:
    """One number for a task, at most 1 and higher where better.

    - `accuracy`: the share of equal values.
    - `f1`: of class 1, if no class but 0 and 1 occurs; otherwise the unweighted mean of F1 over the classes that occur.
    - `matthews`, `pearson`, `spearman`: correlations; 0 if either side is constant, NaN if a prediction is not finite.
    - `exact_match`: the share of equal texts, after lower-casing and removing punctuation and repeated spaces, which is
      the convention of Super-NaturalInstructions.
    - `rouge_l`: the mean F-measure of the longest common subsequence of stemmed words, same convention. In
      scripts that do not part words (Chinese, Japanese, Thai and their like) each character is a word. Equal texts
      score 1.

    Args:
        metric: a name in `METRICS`.
        predictions, references: class or option indices, numbers, or texts, in the same order.

    Raises:
        ValueError: no such metric, nothing to score, or a different number of predictions and references.
    """
    chosen = get_metric(metric)
    if len(predictions) != len(references):
        raise ValueError(f"There are {len(predictions)} predictions for {len(references)} references.")
    if len(references) == 0:
        raise ValueError(f"There is nothing to score with {metric}: no predictions and no references.")
    if chosen.constant is not None:
        if not all(math.isfinite(value) for value in predictions):
            return math.nan
        if _is_constant(predictions) or _is_constant(references):
            return chosen.constant
    return chosen.compute(predictions, references)
