"""The result of `lorachord compare` to look at: in Python, in a notebook, and on a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorachord.messages import table
from lorachord.runs.compare.comparison_drawings import (
    draw_costs,
    draw_differences,
    draw_rates,
    draw_task_scores,
    draw_transfer,
)
from lorachord.runs.compare.results import results
from lorachord.runs.compare.sweep import SweepFolder
from lorachord.runs.compare.tables import main_rows
from lorachord.runs.drawing import Drawing, show
from lorachord.whole import read_json

RESULT, PLAN = "compare.json", "sweep.json"
KEYS = ("tasks", "seeds", "effect", "rows", "claims", "unfinished", "left_out", "verdict")


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison, with its drawings.

    Attributes:
        path: its folder.
        result: what `compare.json` holds.
    """

    path: Path
    result: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """Which method to take, that none is needed, or what could not be seen."""
        text: str = self.result["verdict"]["text"]
        return text

    @property
    def drawings(self) -> dict[str, Drawing]:
        """By name: `differences`, `task_scores`, `costs`, `transfer`, `rates`, each where there are numbers."""
        made = [
            draw(self.result) for draw in (draw_differences, draw_task_scores, draw_costs, draw_transfer, draw_rates)
        ]
        return {drawing.name: drawing for drawing in made if drawing is not None}

    def _ipython_display_(self) -> None:
        """In a notebook: the verdict, the table and the drawings."""
        show(f"{self.verdict}\n\n{table(main_rows(self.result))}", list(self.drawings.values()))


def load_comparison(folder: str | Path) -> Comparison:
    """The result of a comparison, finished or so far.

    Args:
        folder: that `lorachord compare` has made, or its `compare.json`.

    Raises:
        ValueError: no comparison is there, or its files are damaged.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == RESULT else folder
    if (folder / RESULT).is_file():
        return Comparison(folder, read_json(folder / RESULT, KEYS))
    if (folder / PLAN).is_file():
        return Comparison(folder, load_results(folder))
    names = sorted(entry.name for entry in folder.iterdir())[:8] if folder.is_dir() else []
    holds = f"it holds {', '.join(names)}" if names else "it is empty or missing"
    raise ValueError(f"{folder} is no comparison, which would hold a {RESULT}; {holds}.")


def load_results(out: str | Path) -> dict[str, Any]:
    """The result of a comparison, made of its finished trials.

    Raises:
        ValueError: no folder of a comparison.
    """
    folder = SweepFolder(out)
    plan = folder.saved_plan()
    return results(folder.load(plan))
