"""How far the updates of tasks lie in the same directions: principal angles between their singular subspaces.

The measure is that of the LoRA paper (arXiv 2106.09685, section 7.2), |U_s^T U_t|_F^2 / min(k_s, k_t): the mean squared
cosine of the principal angles between two subspaces.

Shapes: D inputs and O outputs of a layer, K directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lorachord.fusion.factors import LowRank, svd
from lorachord.runs.inspect.figure import Array, Figure, Rows, by_kind, mean, number

SIDES = ("inputs", "outputs")
SHARED = 0.5


@final
@dataclass(frozen=True)
class Overlap(Figure):
    """The overlap of T tasks' updates in L layers, on the side of the inputs and on that of the outputs.

    Attributes:
        tasks: T names.
        layers: L names.
        energy: the share of an update's energy that the directions hold which are looked at.
        directions: the number of these, (L, T); 0 where an update is zero.
        shares: (L, 2, T, T), inputs and then outputs: from 0, orthogonal, to 1, one inside the other.
        chance: the share of random subspaces of that size, max(k_s, k_t) / D or O, (L, 2, T, T).
        angles: principal angles in degrees, rising, (L, 2, T, T, K); NaN beyond min(k_s, k_t).
    """

    name = "overlap"
    title = "Overlap of the tasks' updates"
    meaning = (
        "The mean squared cosine of the principal angles between two tasks' directions: 1 where one task's directions "
        f"lie inside the other's, 0 where they are orthogonal. Above {SHARED} two tasks change mostly the same "
        "directions. Near chance they have no more in common than random directions of that number. The measure is "
        "the LoRA paper's (arXiv 2106.09685, section 7.2). Methods with a shared A share their inputs by construction."
    )

    tasks: tuple[str, ...]
    layers: tuple[str, ...]
    energy: float
    directions: Array
    shares: Array
    chance: Array
    angles: Array

    @property
    def pairs(self) -> Array:
        """The shares of pairs of different tasks, NaN on the diagonal, (L, 2, T, T)."""
        return np.where(np.eye(len(self.tasks), dtype=bool), np.nan, self.shares)

    @property
    def words(self) -> str:
        shares = mean(self.pairs, axis=(0, 2, 3))
        if np.isnan(shares).all():
            return "The updates are zero: nothing was trained."
        off = ~np.eye(len(self.tasks), dtype=bool)
        chance = mean(self.chance[:, :, off], axis=(0, 2))
        told = [
            f"On the side of the {side} tasks overlap by {own:.2f} (chance {random:.2f}): {_verdict(own, random)}."
            for side, own, random in zip(SIDES, shares, chance, strict=True)
        ]
        return " ".join(told)

    def rows(self) -> Rows:
        off = ~np.eye(len(self.tasks), dtype=bool)
        made = [["layers", "", "inputs", "chance", "outputs", "chance", "directions"]]
        for kind, places in by_kind(self.layers).items():
            shares, chance = (mean(values[places][:, :, off], axis=(0, 2)) for values in (self.shares, self.chance))
            cells = [number(value) for pair in zip(shares, chance, strict=True) for value in pair]
            made.append([kind, str(len(places)), *cells, number(float(self.directions[places].mean()), 1)])
        return made

    def summary(self) -> dict[str, Any]:
        by_pair = mean(self.shares, axis=0)
        return {"tasks": list(self.tasks), **dict(zip(SIDES, by_pair.tolist(), strict=True)), "energy": self.energy}


def overlap(updates: Mapping[str, Mapping[str, LowRank]], energy: float = 0.9) -> Overlap:
    """The overlap of the updates of several tasks, in the layers that all of them have.

    Args:
        updates: by task and layer.
        energy: the share of an update's energy that its directions are to hold, the strongest first. Default 0.9; with
            1 all directions count alike, however weak.

    Raises:
        ValueError: fewer than two tasks, or no layer in common.
    """
    tasks = tuple(updates)
    if len(tasks) < 2:
        raise ValueError("There is an update of one task alone: an overlap is one of several.")
    layers = tuple(layer for layer in updates[tasks[0]] if all(layer in own for own in updates.values()))
    if not layers:
        raise ValueError(f"The updates of {', '.join(tasks)} have no layer in common.")
    found = [[_bases(updates[task][layer], energy) for task in tasks] for layer in layers]
    directions = np.array([[inputs.shape[1] for inputs, _ in own] for own in found])
    shape = len(layers), 2, len(tasks), len(tasks)
    shares, chance = np.full(shape, np.nan), np.full(shape, np.nan)
    angles = np.full((*shape, max(1, int(directions.max()))), np.nan)
    for layer, side, one, two in product(*map(range, shape)):
        left, right = found[layer][one][side], found[layer][two][side]
        fewest = min(left.shape[1], right.shape[1])
        if fewest:
            cosines = torch.linalg.svdvals(left.t() @ right).clamp(max=1).cpu().numpy()
            at = layer, side, one, two
            shares[at] = (cosines**2).mean()
            chance[at] = max(left.shape[1], right.shape[1]) / len(left)
            angles[at][:fewest] = np.degrees(np.arccos(cosines))
    return Overlap(tasks, layers, energy, directions, shares, chance, angles)


@torch.no_grad()
def _bases(update: LowRank, energy: float) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of an update's strongest directions, of its inputs (D, K) and its outputs (O, K)."""
    u_OR, s_R, vh_RD = svd(update)
    # Rounding leaves values where there are no directions.
    kept_R = s_R > s_R.max() * 1e-7
    total_R = s_R.square().cumsum(0)
    number_of = int(kept_R.sum())
    if number_of:
        enough = int((total_R < energy * total_R[-1] * (1 - 1e-9)).sum()) + 1
        number_of = min(number_of, enough) if energy < 1 else number_of
    return vh_RD[:number_of].t(), u_OR[:, :number_of]


def _verdict(share: float, chance: float) -> str:
    if share <= 1.2 * chance:
        return "no more than chance"
    return "they change mostly the same directions" if share > SHARED else "more than chance, but less than half"
