"""Where and when the gradients of tasks oppose each other, from what surgery has written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lorachord.runs.inspect.figure import Array, Figure, Rows, mean, number, short
from lorachord.surgery.watch import Watched

STRONG = -0.05
CHANCE = 0.5
FACTORS = ("down", "up")
WORST = 5


@final
@dataclass(frozen=True)
class Conflicts(Figure):
    """Cosines of the gradients of T tasks at K steps, in both factors of L layers.

    Attributes:
        tasks: T names.
        steps: of the optimizer, counted from 1, (K,).
        layers: L names.
        cosines: (K, L, 2, T, T), of A and then of B; NaN where a task is absent or its gradient zero.
        moved: how far the rule moved the gradient, |new - sum| / |sum|, (K, L, 2).
    """

    name = "conflicts"
    title = "Conflicts of the tasks' gradients"
    meaning = (
        "The share of pairs of tasks whose gradients have a negative cosine. Independent directions would have one in "
        f"half of the pairs: below {CHANCE} tasks agree more often than by chance. A cosine below {STRONG} is a strong "
        "conflict. Ortho-LoRA (arXiv 2601.09684) claims that conflicts in the factors cost joint training its score; "
        "where no cosine is negative, surgery changes nothing. At the first step A has no gradient, since B is zero."
    )

    tasks: tuple[str, ...]
    steps: Array
    layers: tuple[str, ...]
    cosines: Array
    moved: Array

    @property
    def negative(self) -> Array:
        """The share of pairs with a negative cosine, (K, L, 2)."""
        return self._share_below(0)

    @property
    def strong(self) -> Array:
        """The share of pairs with a cosine below the threshold, (K, L, 2)."""
        return self._share_below(STRONG)

    @property
    def by_pair(self) -> Array:
        """The cosine of each of the P pairs of tasks, in the mean over both factors, (K, L, P)."""
        one, other = np.triu_indices(len(self.tasks), 1)
        found: Array = mean(self.cosines[..., one, other].astype(np.float32), axis=2)
        return found

    @property
    def by_layer(self) -> Array:
        """The share of negative cosines over both factors, (K, L)."""
        found: Array = mean(self.negative, axis=2)
        return found

    def _share_below(self, limit: float) -> Array:
        one, other = np.triu_indices(len(self.tasks), 1)
        pairs = self.cosines[..., one, other].astype(np.float32)
        found: Array = mean(np.where(np.isnan(pairs), np.nan, pairs < limit), axis=-1)
        return found

    @property
    def words(self) -> str:
        negative, strong = float(mean(self.negative)), float(mean(self.strong))
        if np.isnan(negative):
            return "No two tasks had a gradient in the same step."
        often = "more often" if negative > CHANCE else "no more often"
        return (
            f"{negative:.2f} of the pairs oppose each other, {often} than by chance ({CHANCE}); {strong:.2f} of the "
            f"pairs do so strongly. The rule moved a factor's gradient by {float(mean(self.moved)):.2f} of its length."
        )

    def rows(self) -> Rows:
        """The parts of the run in order, and then the layers with the most conflict."""
        made = [["", "negative", f"below {STRONG}", "moved by"]]
        parts = [part for part in np.array_split(np.arange(len(self.steps)), 3) if len(part)]
        for part in parts:
            first, last = self.steps[part[0]], self.steps[part[-1]]
            made.append([f"steps {first} to {last}", *self._cells(part, slice(None))])
        by_layer = mean(self.negative, axis=(0, 2))
        worst = np.argsort(-np.where(np.isnan(by_layer), -1, by_layer), kind="stable")[:WORST]
        for layer in worst:
            made.append([short(self.layers[layer], 44), *self._cells(slice(None), layer)])
        return made

    def _cells(self, steps: Any, layers: Any) -> list[str]:
        return [number(float(mean(values[steps][:, layers]))) for values in (self.negative, self.strong, self.moved)]

    def summary(self) -> dict[str, Any]:
        layers = mean(self.negative, axis=(0, 2)).tolist()
        return {
            "tasks": list(self.tasks),
            "steps": self.steps.tolist(),
            "negative": float(mean(self.negative)),
            "strong": float(mean(self.strong)),
            "moved": float(mean(self.moved)),
            "negative_by_step": mean(self.negative, axis=(1, 2)).tolist(),
            "negative_by_layer": dict(zip(self.layers, layers, strict=True)),
            "cosines": mean(self.cosines.astype(np.float32), axis=(0, 1, 2)).tolist(),
        }

    def arrays(self) -> dict[str, Array]:
        return {**super().arrays(), "negative": self.negative, "strong": self.strong}


def conflicts(watched: Watched) -> Conflicts:
    """What was watched, by layer and factor."""
    layers = tuple(dict.fromkeys(layer for layer, _ in watched.keys))
    places = [(layers.index(layer), FACTORS.index(factor)) for layer, factor in watched.keys]
    num_steps, _, num_tasks, _ = watched.cosines.shape
    cosines = np.full((num_steps, len(layers), 2, num_tasks, num_tasks), np.nan, dtype=np.float16)
    moved = np.full((num_steps, len(layers), 2), np.nan, dtype=np.float32)
    for block, (layer, factor) in enumerate(places):
        cosines[:, layer, factor] = watched.cosines[:, block]
        moved[:, layer, factor] = watched.moved[:, block]
    return Conflicts(watched.tasks, watched.steps, layers, cosines, moved)
