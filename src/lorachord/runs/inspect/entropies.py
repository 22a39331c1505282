"""ThanoRA's calibration: how complex each task's inputs are, and the ranks that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lorachord.runs.inspect.figure import Array, Figure, Rows, by_kind, mean, number, short
from lorachord.tuner import Calibration


@final
@dataclass(frozen=True)
class TaskRanks(Figure):
    """The entropies and ranks of T tasks in L layers.

    Attributes:
        tasks: T names.
        layers: L names.
        entropies: of the spectra of the tasks' inputs, from 0, one direction, to 1, all alike, (L, T).
        ranks: of the tasks' blocks, (L, T).
        temperature: tau.
    """

    name = "task_ranks"
    title = "Entropies of the tasks' inputs, and their ranks"
    meaning = (
        "ThanoRA (arXiv 2505.18640) claims that tasks differ in complexity, and gives a task whose inputs have more "
        "entropy more ranks, by a softmax over the entropies with temperature tau. A difference of tau ln 2 doubles a "
        "task's share of the ranks that are shared out: below that threshold ranks are nearly equal."
    )

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    entropies: Array
    ranks: Array
    temperature: float

    @property
    def threshold(self) -> float:
        """tau ln 2."""
        return self.temperature * math.log(2)

    @property
    def differences(self) -> Array:
        """The largest less the smallest entropy of each layer, (L,)."""
        found: Array = self.entropies.max(1) - self.entropies.min(1)
        return found

    @property
    def words(self) -> str:
        spread, alike = float(self.differences.mean()), int((np.ptp(self.ranks, axis=1) <= 1).sum())
        doubling = "more" if spread > self.threshold else "less"
        return (
            f"In the mean over layers the tasks' entropies differ by {spread:.3f}: {doubling} than the "
            f"{self.threshold:.3f} that doubles a share. In {alike} of {len(self.layers)} layers no rank differs by "
            "more than one."
        )

    def rows(self) -> Rows:
        made = [["task", "layers", "", "entropy", "ranks", "fewest", "most"]]
        for at, task in enumerate(self.tasks):
            for kind, places in by_kind(self.layers).items():
                ranks = self.ranks[places, at]
                cells = [number(float(self.entropies[places, at].mean()), 3), number(float(ranks.mean()), 1)]
                made.append([short(task, 16), kind, str(len(places)), *cells, str(ranks.min()), str(ranks.max())])
        return made

    def summary(self) -> dict[str, Any]:
        by_task = {"entropies": mean(self.entropies, axis=0), "ranks": mean(self.ranks, axis=0)}
        return {
            **{name: dict(zip(self.tasks, values.tolist(), strict=True)) for name, values in by_task.items()},
            "difference": float(self.differences.mean()),
            "threshold": self.threshold,
        }


def task_ranks(calibration: Calibration) -> TaskRanks:
    """What a calibration of ThanoRA has found.

    Raises:
        ValueError: it is one of another method.
    """
    ranks, entropies = calibration.found.get("ranks"), calibration.report.get("entropies")
    if ranks is None or entropies is None:
        raise ValueError(f"The calibration is {calibration.method}'s, which finds no ranks: thanora's does.")
    layers, tasks = tuple(ranks), calibration.tasks
    return TaskRanks(
        tasks,
        layers,
        np.array([[entropies[layer][task] for task in tasks] for layer in layers]),
        np.array([ranks[layer] for layer in layers]),
        float(calibration.settings["temperature"]),
    )
