"""The density of the mask that Concrete fusion has learned, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lorachord.runs.inspect.figure import Array, Figure, Rows, by_kind, number

START = 0.5
MOVED = 0.05


@final
@dataclass(frozen=True)
class Masks(Figure):
    """The mean entry of the mask in each of L layers.

    Attributes:
        layers: L names.
        density: from 0, nothing of the layer is kept, to 1, all of it, (L,).
    """

    name = "masks"
    title = "Density of the Concrete mask"
    meaning = (
        f"Concrete fusion (arXiv 2312.06173) learns which entries all tasks keep. Every entry starts at {START}. A "
        f"layer whose density is still within {MOVED} of it was not thinned: its mask says little about the layer. "
        "A lower density means that the layer gives up entries on which tasks interfere, a higher one that it keeps "
        "them."
    )

    layers: tuple[str, ...]
    density: Array

    @property
    def words(self) -> str:
        moved = int((np.abs(self.density - START) > MOVED).sum())
        lowest = self.layers[int(self.density.argmin())]
        return (
            f"The mean density is {self.density.mean():.2f}. In {moved} of {len(self.layers)} layers it has left "
            f"{START} by more than {MOVED}. The thinnest is {lowest}, with {self.density.min():.2f}."
        )

    def rows(self) -> Rows:
        made = [["layers", "", "density", "thinnest", "densest"]]
        for kind, places in by_kind(self.layers).items():
            own = self.density[places]
            cells = [number(float(value)) for value in (own.mean(), own.min(), own.max())]
            made.append([kind, str(len(places)), *cells])
        return made

    def summary(self) -> dict[str, Any]:
        return {"density": dict(zip(self.layers, self.density.tolist(), strict=True)), "mean": self.density.mean()}


def masks(notes: Mapping[str, Any]) -> Masks:
    """The masks of a report of fusion.

    Args:
        notes: of its method, as `fusion.json` has them.

    Raises:
        ValueError: it was no Concrete fusion.
    """
    density = notes.get("mask_density")
    if not density:
        raise ValueError("Only Concrete fusion learns a mask: fuse with --method concrete.")
    return Masks(tuple(density), np.array(list(density.values()), dtype=np.float64))
