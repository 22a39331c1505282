"""Scores under weights, against scores of resamples that are written out."""

import numpy as np
import pytest

from lorachord.data.metrics import METRICS, score
from lorachord.runs.compare import resampling
from lorachord.runs.compare.resampling import draw_weights, sampling_errors, weighted_scores

NUM_EXAMPLES, NUM_RUNS = 60, 5
WORDS = np.array(["a cat", "A cat.", "the dog sat", "dog", "", "猫", "the cat sat"])


def drawn(metric: str, case: str) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (runs, examples) and references that have the case's awkwardness."""
    generator = np.random.default_rng(3)
    shape = (NUM_RUNS, NUM_EXAMPLES)
    if "generation" in METRICS[metric].kinds:
        return WORDS[generator.integers(len(WORDS), size=shape)], WORDS[generator.integers(len(WORDS), size=shape[1])]
    if "regression" in METRICS[metric].kinds:
        references = generator.normal(50, 3, shape[1]) if case != "ties" else generator.integers(0, 6, shape[1]) / 5
        predictions = references + generator.normal(0, 2, shape)
        if case == "ties":
            predictions = np.round(predictions)
    else:
        classes = {"binary": 2, "rare": 2, "ties": 4, "constant": 3}[case]
        references = generator.integers(classes, size=shape[1])
        predictions = np.where(generator.random(shape) < 0.6, references, generator.integers(classes, size=shape))
    if case == "rare":
        # Some resamples have one value only, some only classes 0 and 1.
        predictions[0], predictions[0, 3], predictions[1, 5] = 1, 0, 7
    if case == "constant":
        predictions[2] = 1
    return predictions, references


@pytest.mark.parametrize("case", ["binary", "rare", "ties", "constant"])
@pytest.mark.parametrize("metric", METRICS)
def test_a_weighted_score_is_the_score_of_the_resample(metric: str, case: str) -> None:
    predictions, references = drawn(metric, case)
    weights = draw_weights(np.random.default_rng(0), 40, NUM_EXAMPLES)
    found = weighted_scores(metric, list(predictions), references, weights)
    assert found.shape == (40, NUM_RUNS)
    for row, times in zip(found, weights.astype(int), strict=True):
        rows = np.repeat(np.arange(NUM_EXAMPLES), times)
        expected = [score(metric, run[rows].tolist(), references[rows].tolist()) for run in predictions]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lost", [np.nan, np.inf])
@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_prediction_that_is_not_finite_spoils_its_own_run_alone(metric: str, lost: float) -> None:
    predictions, references = drawn(metric, "binary")
    predictions[1, 7] = lost
    errors = sampling_errors(metric, list(predictions), references)
    assert np.isnan(errors[:, 1]).all()
    assert np.isfinite(np.delete(errors, 1, axis=1)).all()


def test_weights_draw_as_many_examples_as_there_are() -> None:
    weights = draw_weights(np.random.default_rng(0), 2000, 50)
    assert (weights.sum(axis=1) == 50).all()
    # The counts of a multinomial: variance (1 - 1 / N).
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.03)


@pytest.mark.parametrize("metric", ["accuracy", "exact_match", "rouge_l"])
def test_the_covariance_of_means_needs_no_resamples(metric: str) -> None:
    predictions, references = drawn(metric, "binary")
    errors = sampling_errors(metric, list(predictions), references)
    weights = draw_weights(np.random.default_rng(0), 20000, NUM_EXAMPLES)
    resampled = np.cov(weighted_scores(metric, list(predictions), references, weights), rowvar=False)
    expected = resampled * NUM_EXAMPLES / (NUM_EXAMPLES - 1)
    np.testing.assert_allclose(errors.T @ errors, expected, atol=0.05 * expected.max())


def test_blocks_of_weights_change_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, references = drawn("f1", "ties")
    whole = sampling_errors("f1", list(predictions), references)
    monkeypatch.setattr(resampling, "_LARGEST_BLOCK", 7 * NUM_EXAMPLES)
    np.testing.assert_array_equal(sampling_errors("f1", list(predictions), references), whole)


def test_the_spread_over_resamples_is_that_over_fresh_examples() -> None:
    generator = np.random.default_rng(5)

    def fresh() -> tuple[np.ndarray, np.ndarray]:
        references = generator.normal(size=300)
        shared = generator.normal(size=300)
        return references + shared + generator.normal(0, 0.5, (2, 300)), references

    errors = sampling_errors("spearman", *fresh())
    scores = [
        [score("spearman", run, references) for run in runs] for runs, references in (fresh() for _ in range(400))
    ]
    found, expected = errors.T @ errors, np.cov(np.array(scores), rowvar=False)
    contrast = np.array([1, -1])
    assert contrast @ found @ contrast == pytest.approx(contrast @ expected @ contrast, rel=0.25)
    assert found[0, 0] == pytest.approx(expected[0, 0], rel=0.25)
