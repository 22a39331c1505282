"""Drawings of the figures of tasks that meet: conflicts, routing, interference."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from lorachord.runs.drawing import Drawing, Frames, by_layer, escaped, heat, plain
from lorachord.runs.drawing.style import merged
from lorachord.runs.inspect.conflicts import Conflicts
from lorachord.runs.inspect.draw_updates import made, square, thinned
from lorachord.runs.inspect.figure import Array, number
from lorachord.runs.inspect.interference import Interference
from lorachord.runs.inspect.routing import Routing

NAMED = 4
"""Tasks whose pairs have names below a map; more have numbers, and the table says whose they are."""


def draw_conflicts(figure: Conflicts) -> Drawing:
    """The cosine of each pair of tasks in each layer; the slider moves over the steps."""
    pairs = list(combinations(range(len(figure.tasks)), 2))
    few = len(figure.tasks) <= NAMED
    columns = [" · ".join(escaped(figure.tasks[at], 10) if few else str(at + 1) for at in pair) for pair in pairs]
    chosen = thinned(len(figure.steps), len(figure.layers) * len(pairs))
    values = tuple(_short(figure.by_pair[step]) for step in chosen)
    labels = tuple(str(figure.steps[step]) for step in chosen)
    seen = figure.by_pair[np.isfinite(figure.by_pair)]
    end = float(max(0.1, np.abs(seen).max(initial=0)))
    data = [heat(values[0], low=-end, high=end, legend="cosine of gradients")]
    layout = by_layer(figure.layers, columns)
    rows = figure.rows()
    if not few:
        rows += [[f"task {at + 1}", task, "", ""] for at, task in enumerate(figure.tasks)]
    return made(figure, data, layout, rows=rows, frames=Frames("step", labels, values))


def draw_routing(figure: Routing) -> Drawing:
    """The usage of each expert by each task in each layer; the slider changes the router, where there are several."""
    usage = plain(_side_by_side(figure))
    num_experts = figure.usage.shape[-1]
    middles = [num_experts * at + (num_experts - 1) / 2 for at in range(len(figure.tasks))]
    borders = [
        {
            "type": "line",
            "x0": at,
            "x1": at,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"width": 3, "color": "#8a94a0"},
        }
        for at in (num_experts * task - 0.5 for task in range(1, len(figure.tasks)))
    ]
    names = [escaped(task, 14) for task in figure.tasks]
    layout = merged(by_layer(figure.layers, names), {"xaxis": {"tickvals": middles}, "shapes": borders})
    experts = [f"expert {at + 1}" for at in range(num_experts)] * len(names)
    hover = [[f"{expert} of {name}" for expert, name in zip(experts, np.repeat(names, num_experts), strict=True)]]
    data = [
        heat(usage[0], low=0, high=1, legend="share of choices")
        | {"text": hover * len(figure.layers), "hovertemplate": "%{text}: %{z:.2f}<extra></extra>"}
    ]
    frames = Frames("router", figure.groups, tuple(usage)) if len(figure.groups) > 1 else None
    return made(figure, data, layout, frames=frames)


def draw_interference(figure: Interference) -> Drawing:
    """What a step for the row's task is worth to the column's."""
    names = [escaped(task, 14) for task in figure.tasks]
    data = [heat(figure.values, low=-1, high=1, legend="worth of the step", shown=len(names) <= 8)]
    rows = [["step for", *figure.tasks]]
    rows += [
        [task, *(number(float(value)) for value in own)] for task, own in zip(figure.tasks, figure.values, strict=True)
    ]
    return made(figure, data, square(names), rows=rows)


def _side_by_side(figure: Routing) -> Array:
    """The usage as maps of layers by tasks and experts, (G, L, T E)."""
    groups = figure.usage.transpose(2, 0, 1, 3)
    joined: Array = groups.reshape(len(figure.groups), len(figure.layers), -1)
    return joined


def _short(values: Array) -> list[list[float | None]]:
    """Two digits are enough for a colour, and a page has thousands of these."""
    rounded: list[list[float | None]] = plain(np.round(values.astype(float), 2))
    return rounded
