"""Predictions of two or more methods as if from training: runs agree on most examples, not on all.

A latent number per example and run says whether the run answers it rightly. It is the sum of the example's own, which
all runs share, and of deviations by seed, by method and example, and by all three.

Shapes: W draws of a whole comparison, R methods, S seeds, N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_EXAMPLES = 400
SHARE_RIGHT = 0.75


@dataclass(frozen=True)
class Regime:
    """Standard deviations of the latent number, whose spread over examples is 1."""

    seed: float
    example: float
    both: float

    @property
    def spread(self) -> float:
        """Of the latent number over all that is drawn."""
        return float(np.sqrt(1 + self.seed**2 + self.example**2 + self.both**2))


REGIMES = {
    "seeds dominate": Regime(seed=0.06, example=0.02, both=0.04),
    "examples dominate": Regime(seed=0.005, example=0.6, both=0.05),
    "seeds and examples": Regime(seed=0.08, example=0.5, both=0.1),
    "answers change with both": Regime(seed=0.0, example=0.0, both=0.6),
    "all three": Regime(seed=0.04, example=0.3, both=0.4),
}


def draw_right(
    regime: Regime,
    num_seeds: int,
    *,
    draws: int,
    lead: ArrayLike = 0.0,
    methods: int = 2,
    seed: int = 0,
    num_examples: int = NUM_EXAMPLES,
) -> NDArray[np.bool_]:
    """Whether each answer is right, (W, R, S, N).

    Args:
        lead: of the last method over the others in its expected share of right answers; a number, or one a draw.
    """
    from scipy.special import ndtri

    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal((draws, *shape), dtype=np.float32)

    latent = normal(1, 1, num_examples) + regime.example * normal(methods, 1, num_examples)
    latent = latent + regime.seed * normal(methods, num_seeds, 1)
    latent = latent + regime.both * normal(methods, num_seeds, num_examples)
    shares = np.full((draws, methods), SHARE_RIGHT)
    shares[:, -1] += lead
    return latent < (regime.spread * ndtri(shares))[:, :, None, None]


def variances(right: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """Of draws of two methods (W, 2, S, N): the difference, and its variances seeds, shared, sampling, each (W,).

    Written out for many draws at once; a test holds it to `Scores`.
    """
    change = right[:, 1].astype(np.float64) - right[:, 0]
    num_seeds, num_examples = change.shape[1:]
    by_seed = change.mean(axis=2)
    sampling = change.mean(axis=1).var(axis=1, ddof=1) / num_examples
    own = change.var(axis=2, ddof=1).mean(axis=1) / num_examples
    shared = (num_seeds * sampling - own) / (num_seeds - 1)
    return by_seed.mean(axis=1), by_seed.var(axis=1, ddof=1) / num_seeds, shared, sampling


def records(predictions: Sequence, labels: Sequence) -> list[dict]:
    """A run's records of one task."""
    return [
        {"idx": index, "label": label, "prediction": prediction}
        for index, (prediction, label) in enumerate(zip(predictions, labels, strict=True))
    ]
