"""The drawing of each figure of an inspection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lorachord.runs.drawing import Drawing
from lorachord.runs.inspect.draw_tasks import draw_conflicts, draw_interference, draw_routing
from lorachord.runs.inspect.draw_updates import draw_beside, draw_masks, draw_overlap, draw_spectra, draw_task_ranks
from lorachord.runs.inspect.figure import Figure

DRAW: dict[str, Callable[[Any], Drawing]] = {
    "spectra": draw_spectra,
    "beside": draw_beside,
    "overlap": draw_overlap,
    "routing": draw_routing,
    "task_ranks": draw_task_ranks,
    "masks": draw_masks,
    "conflicts": draw_conflicts,
    "interference": draw_interference,
}
"""By the figure's name."""


def drawing_of(figure: Figure) -> Drawing:
    """The drawing of a figure: the same numbers, its words, meaning and table."""
    return DRAW[figure.name](figure)
