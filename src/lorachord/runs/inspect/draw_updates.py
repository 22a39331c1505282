"""Drawings of the figures of updates: spectra, another adapter beside, overlap, ranks, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lorachord.runs.drawing import Drawing, Frames, by_layer, column_axis, escaped, heat, line, plain, points
from lorachord.runs.drawing.style import layer_axis, merged
from lorachord.runs.inspect.entropies import TaskRanks
from lorachord.runs.inspect.figure import Array, Figure, Rows, mean
from lorachord.runs.inspect.masks import START, Masks
from lorachord.runs.inspect.spectra import DOMINATED, Beside, Spectra
from lorachord.runs.inspect.subspaces import SIDES, Overlap


def made(
    figure: Figure,
    data: Sequence[Mapping[str, Any]],
    layout: Mapping[str, Any],
    *,
    rows: Rows | None = None,
    frames: Frames | None = None,
) -> Drawing:
    """A drawing with the words of a figure, and with its table unless there is a longer one."""
    told = figure.rows() if rows is None else rows
    return Drawing(figure.name, figure.title, figure.words, figure.meaning, told, data, layout, frames)


def draw_spectra(figure: Spectra) -> Drawing:
    """The share of the energy by direction, in the mean over layers, a line for each update."""
    shares = mean(figure.shares, axis=1)
    directions = list(range(1, shares.shape[1] + 1))
    data = [line(owner, directions, own, at) for at, (owner, own) in enumerate(zip(figure.owners, shares, strict=True))]
    layout = {
        "xaxis": {"title": {"text": "direction, strongest first"}, "dtick": max(1, len(directions) // 8)},
        "yaxis": {"title": {"text": "share of energy"}, "rangemode": "tozero"},
        "shapes": [threshold(y=DOMINATED)],
        "showlegend": len(figure.owners) > 1,
    }
    return made(figure, data, layout)


def draw_beside(figure: Beside) -> Drawing:
    """The effective rank of each layer in both."""
    data = [
        points(name, figure.effective_rank[at], np.arange(len(figure.layers)), at)
        for at, name in enumerate(figure.names)
    ]
    layout = {"xaxis": {"title": {"text": "effective rank"}, "rangemode": "tozero"}, "showlegend": True}
    return made(figure, data, merged(layout, rows_of_layers(figure.layers)))


def draw_overlap(figure: Overlap) -> Drawing:
    """The overlap of pairs of tasks, in the mean over layers; the slider changes the side."""
    values = plain(mean(figure.shares, axis=0))
    names = [escaped(task, 14) for task in figure.tasks]
    data = [heat(values[0], low=0, high=1, legend="overlap", shown=len(names) <= 8)]
    return made(figure, data, square(names), frames=Frames("side", SIDES, tuple(values)))


def draw_task_ranks(figure: TaskRanks) -> Drawing:
    """The rank of each task in each layer."""
    names = [escaped(task, 14) for task in figure.tasks]
    most = float(figure.ranks.max())
    data = [heat(figure.ranks, low=0, high=most, legend="rank")]
    return made(figure, data, by_layer(figure.layers, names))


def draw_masks(figure: Masks) -> Drawing:
    """The density of each layer."""
    data = [points("density", figure.density, np.arange(len(figure.layers)))]
    layout = {"xaxis": {"title": {"text": "density"}, "range": [0, 1]}, "shapes": [threshold(x=START)]}
    return made(figure, data, merged(layout, rows_of_layers(figure.layers)))


def rows_of_layers(layers: Sequence[str]) -> dict[str, Any]:
    """The layout of points with a row a layer."""
    return {"yaxis": {**layer_axis(layers), "showgrid": True}, "height": by_layer(layers, ())["height"]}


def square(names: list[str]) -> dict[str, Any]:
    """The layout of a map of tasks against tasks, the first at the top left."""
    down = {"tickvals": list(range(len(names))), "ticktext": names, "showgrid": False, "zeroline": False}
    axes = {"xaxis": column_axis(names), "yaxis": {**down, "range": [len(names) - 0.5, -0.5]}}
    return {**axes, "height": max(240, 36 * len(names) + 140)}


def threshold(x: float | None = None, y: float | None = None) -> dict[str, Any]:
    """A broken line right across a drawing, at x or at y."""
    ends = {"x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y} if x is None else {"x0": x, "x1": x}
    across = {} if x is None else {"y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **ends, **across, "line": {"dash": "dash", "width": 1.5, "color": "#8a94a0"}}


def thinned(count: int, size: int, most: int = 60, numbers: int = 120_000) -> Array:
    """Places of at most `most` of `count` maps of a size, so that all of them stay below some numbers."""
    kept = max(2, min(most, numbers // max(1, size), count))
    return np.unique(np.linspace(0, count - 1, kept).round().astype(int)) if count > 1 else np.arange(count)
