"""How far the scores of runs would move if other examples had been drawn.

All runs predict the same examples, so they are resampled jointly: a bootstrap, whose resamples are weights, the number
of times that each example was drawn. Metrics that are means over examples need no resampling.

Shapes: M runs, N examples, B resamples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lorachord.data.metrics import Values, get_metric, score

NUM_RESAMPLES = 1000
# Weights that are held at once: 32 MB.
_LARGEST_BLOCK = 4_000_000

Floats = NDArray[np.float64]


def sampling_errors(metric: str, predictions: Sequence[Values], references: Values) -> Floats:
    """Deviations E (B or N, M) of the runs' scores, scaled so that E^T E is their covariance over draws of examples.

    Deterministic: the resamples are always the same. A run with a prediction that is not finite has NaN.

    Args:
        metric: a name in `data.metrics.METRICS`.
        predictions: of M runs, each (N,).
        references: (N,), at least two.
    """
    assert len(references) > 1, "one example has no spread"
    each = get_metric(metric).each
    if each is not None:
        values_NM = np.array([each(run, references) for run in predictions], dtype=np.float64).T
        divisor = len(references) * (len(references) - 1)
    else:
        values_NM = np.concatenate(
            [weighted_scores(metric, predictions, references, block) for block in _resamples(len(references))]
        )
        divisor = NUM_RESAMPLES - 1
    deviations_NM: Floats = (values_NM - values_NM.mean(axis=0)) / np.sqrt(divisor)
    return deviations_NM


def _resamples(num_examples: int) -> list[Floats]:
    """Weights (B, N) in blocks."""
    generator = np.random.default_rng(0)
    size = max(1, _LARGEST_BLOCK // num_examples)
    counts = [min(size, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, size)]
    return [draw_weights(generator, count, num_examples) for count in counts]


def draw_weights(generator: np.random.Generator, num_resamples: int, num_examples: int) -> Floats:
    """How often each example is drawn in each resample, (B, N): N draws with replacement."""
    drawn_BN = generator.integers(num_examples, size=(num_resamples, num_examples))
    drawn_BN += num_examples * np.arange(num_resamples)[:, None]
    counts = np.bincount(drawn_BN.ravel(), minlength=num_resamples * num_examples)
    return counts.reshape(num_resamples, num_examples).astype(np.float64)


def weighted_scores(metric: str, predictions: Sequence[Values], references: Values, weights_BN: Floats) -> Floats:
    """The scores (B, M) of runs on examples that count several times: `metrics.score` on resamples, all at once.

    Args:
        metric: a name in `data.metrics.METRICS`.
        predictions: of M runs, each (N,).
        references: (N,).
        weights_BN: whole numbers, of one sum in each row.
    """
    each = get_metric(metric).each
    if each is not None:
        values_NM = np.array([each(run, references) for run in predictions], dtype=np.float64).T
        means_BM: Floats = weights_BN @ values_NM / weights_BN.sum(axis=1, keepdims=True)
        return means_BM
    # Classes are small whole numbers, which are exact here.
    predictions_MN, references_N = np.array(predictions, np.float64), np.asarray(references, np.float64)
    is_lost_M = ~np.isfinite(predictions_MN).all(axis=1)
    predictions_MN[is_lost_M] = 0.0
    found_BM = _WEIGHTED[metric](predictions_MN, references_N, weights_BN)
    found_BM[:, is_lost_M] = np.nan
    return found_BM


def _f1(predictions_MN: Floats, references_N: Floats, weights_BN: Floats) -> Floats:
    values = np.unique(np.append(predictions_MN, references_N))
    right_KBM, predicted_KBM, true_KB1 = _counts(values, predictions_MN, references_N, weights_BN)
    both_KBM = predicted_KBM + true_KB1
    f1_KBM = np.divide(2 * right_KBM, both_KBM, out=np.zeros_like(both_KBM), where=both_KBM > 0)
    occurs_KBM = both_KBM > 0
    macro_BM = f1_KBM.sum(axis=0) / occurs_KBM.sum(axis=0)
    # Of class 1 alone where a resample happens to hold no class but 0 and 1, as `score` would have it.
    binary_BM = f1_KBM[values == 1].sum(axis=0)
    is_binary_BM = ~occurs_KBM[~np.isin(values, (0, 1))].any(axis=0)
    found_BM: Floats = np.where(is_binary_BM, binary_BM, macro_BM)
    return found_BM


def _matthews(predictions_MN: Floats, references_N: Floats, weights_BN: Floats) -> Floats:
    values = np.unique(np.append(predictions_MN, references_N))
    right_KBM, predicted_KBM, true_KB1 = _counts(values, predictions_MN, references_N, weights_BN)
    total_B1 = weights_BN.sum(axis=1, keepdims=True)
    covariance_BM = right_KBM.sum(axis=0) * total_B1 - (predicted_KBM * true_KB1).sum(axis=0)
    squares_BM = (total_B1**2 - (predicted_KBM**2).sum(axis=0)) * (total_B1**2 - (true_KB1**2).sum(axis=0))
    return _over_root(covariance_BM, squares_BM)


def _counts(
    values: Floats, predictions_MN: Floats, references_N: Floats, weights_BN: Floats
) -> tuple[Floats, Floats, Floats]:
    """For each class: right predictions (K, B, M), predictions (K, B, M), examples (K, B, 1)."""
    right, predicted, true = [], [], []
    for value in values:
        chosen_NM = (predictions_MN == value).T.astype(np.float64)
        own_N = references_N == value
        predicted.append(weights_BN @ chosen_NM)
        right.append(weights_BN[:, own_N] @ chosen_NM[own_N])
        true.append(weights_BN[:, own_N].sum(axis=1, keepdims=True))
    return np.stack(right), np.stack(predicted), np.stack(true)


def _pearson(predictions_MN: Floats, references_N: Floats, weights_BN: Floats) -> Floats:
    total_B1 = weights_BN.sum(axis=1, keepdims=True)
    # Sums of squares lose no digits if the values lie around 0 and have a like size.
    predicted_NM = _standardised(predictions_MN).T
    true_N1 = _standardised(references_N[None]).T
    mean_BM, true_mean_B1 = weights_BN @ predicted_NM / total_B1, weights_BN @ true_N1 / total_B1
    covariance_BM = weights_BN @ (predicted_NM * true_N1) / total_B1 - mean_BM * true_mean_B1
    variance_BM = weights_BN @ predicted_NM**2 / total_B1 - mean_BM**2
    true_variance_B1 = weights_BN @ true_N1**2 / total_B1 - true_mean_B1**2
    found_BM = _over_root(covariance_BM, variance_BM * true_variance_B1)
    # A resample in which a run says the same everywhere, or nearly: too few digits are left.
    doubtful_BM = (variance_BM < 1e-6) | (true_variance_B1 < 1e-6)
    doubtful_BM[:, np.ptp(predictions_MN, axis=1) == 0] = False
    for resample, run in np.argwhere(doubtful_BM):
        times_N = weights_BN[resample].astype(int)
        drawn, labels = np.repeat(predictions_MN[run], times_N), np.repeat(references_N, times_N)
        found_BM[resample, run] = score("pearson", drawn, labels)
    return found_BM


def _standardised(values_MN: Floats) -> Floats:
    centred_MN = values_MN - values_MN.mean(axis=1, keepdims=True)
    size_M1 = centred_MN.std(axis=1, keepdims=True)
    values_MN = np.divide(centred_MN, size_M1, out=np.zeros_like(centred_MN), where=size_M1 > 0)
    return values_MN


def _spearman(predictions_MN: Floats, references_N: Floats, weights_BN: Floats) -> Floats:
    true_BN = _centred_ranks(references_N, weights_BN)
    weighted_BN = weights_BN * true_BN
    true_square_B = np.einsum("bn,bn->b", weighted_BN, true_BN)
    found_BM = np.empty((len(weights_BN), len(predictions_MN)))
    for run, predictions_N in enumerate(predictions_MN):
        ranks_BN = _centred_ranks(predictions_N, weights_BN)
        covariance_B = np.einsum("bn,bn->b", ranks_BN, weighted_BN)
        ranks_BN *= ranks_BN
        square_B = np.einsum("bn,bn->b", ranks_BN, weights_BN)
        found_BM[:, run] = _over_root(covariance_B, square_B * true_square_B)
    return found_BM


def _centred_ranks(values_N: Floats, weights_BN: Floats) -> Floats:
    """The rank of each example within each resample, less the mean rank; equal values share the mean of their ranks."""
    _, group_N = np.unique(values_N, return_inverse=True)
    order_N = np.argsort(group_N, kind="stable")
    starts = np.searchsorted(group_N[order_N], np.arange(group_N.max() + 1))
    size_BG = np.add.reduceat(weights_BN[:, order_N], starts, axis=1)
    # From the group's last rank back to its middle, and from ranks that begin at 1 to ranks around 0.
    middle_BG = np.cumsum(size_BG, axis=1)
    middle_BG -= size_BG / 2
    middle_BG -= weights_BN.sum(axis=1, keepdims=True) / 2
    middle_BN: Floats = middle_BG[:, group_N]
    return middle_BN


def _over_root(covariance: Floats, squares: Floats) -> Floats:
    """A correlation; 0 where one of the squares is."""
    root = np.sqrt(np.maximum(squares, 0))
    found = np.divide(covariance, root, out=np.zeros_like(covariance), where=root > 0)
    return np.clip(found, -1, 1)


_WEIGHTED: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
