"""All that is to be seen of one adapter: its figures, and why others are missing."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorachord.messages import table
from lorachord.runs.drawing import Drawing, show
from lorachord.runs.inspect.drawings import drawing_of
from lorachord.runs.inspect.figure import Array, Figure
from lorachord.whole import finite, new_file, write_json

logger = logging.getLogger("lorachord")
WIDTH = 80
SUMMARY = "inspect.json"


@dataclass(frozen=True)
class Inspection:
    """The figures of a run or an adapter.

    Attributes:
        of: a folder, or the method of a model in memory.
        method: its name; None where it is not known.
        tasks: their names; none where they are not known.
        figures: by name: `spectra`, `beside`, `overlap`, `routing`, `task_ranks`, `masks`, `conflicts`,
            `interference`, each where there is one.
        absent: why a figure is missing that one could look for, by name.
    """

    of: str
    method: str | None
    tasks: tuple[str, ...]
    figures: Mapping[str, Figure]
    absent: Mapping[str, str]

    def __getitem__(self, name: str) -> Figure:
        """A figure.

        Raises:
            ValueError: it is missing; the reason is told.
        """
        if name not in self.figures:
            reason = self.absent.get(name, f"There is no such figure here; there are {', '.join(self.figures)}.")
            raise ValueError(f"{name}: {reason}")
        return self.figures[name]

    @property
    def drawings(self) -> dict[str, Drawing]:
        """The figures for Plotly, by name: `found.drawings["spectra"].figure()` is a Plotly figure."""
        return {name: drawing_of(own) for name, own in self.figures.items()}

    def _ipython_display_(self) -> None:
        """In a notebook: the drawings of all figures, after a line on the whole and on what is missing."""
        absent = [f"No {name}: {reason}" for name, reason in self.absent.items()]
        show("\n".join([self._known(), *absent]), list(self.drawings.values()))

    def _known(self) -> str:
        known = f"{self.method}; tasks: {', '.join(self.tasks)}" if self.tasks else self.method or "a plain LoRA"
        return f"{self.of}: {known}."

    def to_dict(self) -> dict[str, Any]:
        """The main numbers of all figures with their words, as plain data; None where there is no number."""
        figures = {
            name: {"title": own.title, "meaning": own.meaning, "words": own.words, "values": own.summary()}
            for name, own in self.figures.items()
        }
        told = {"of": self.of, "method": self.method, "tasks": list(self.tasks)}
        plain: dict[str, Any] = finite({**told, "figures": figures, "absent": dict(self.absent)})
        return plain

    def text(self) -> str:
        """For a terminal: a table for each figure, its own sentence, and its meaning, in at most 80 columns."""
        parts = [_wrapped(self._known())]
        for own in self.figures.values():
            told = [own.title, table(own.rows()), _wrapped(own.words), _wrapped(own.meaning, "  ")]
            parts.append("\n".join(told))
        if self.absent:
            parts.append("\n".join(["Not shown", *(_wrapped(reason, "  ") for reason in self.absent.values())]))
        return "\n\n".join(parts)

    def save(self, out: str | Path) -> Path:
        """Write `inspect.json` and the arrays of each figure, `FIGURE.npz`, into a folder, which is made if needed."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        for name, own in self.figures.items():
            with new_file(out / f"{name}.npz") as scratch, scratch.open("wb") as file:
                arrays: dict[str, Array] = own.arrays()
                np.savez(file, **arrays)  # type: ignore[arg-type]
        write_json(out / SUMMARY, self.to_dict())
        logger.info("%s has %s, and the arrays of each figure as .npz", out, SUMMARY)
        return out


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
