"""What drawings have in common: colours, a layout for wide and narrow pages, and a few kinds of traces."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

COLOURS = ("#3b82c4", "#e07b39", "#2a9d74", "#c05aa8", "#b8962e", "#d1495b", "#5f8a8b", "#8d7bd6")
"""Of tasks and rows; each can be seen on white and on black."""
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down")
"""One more than the colours, so that many rows differ in one of both."""
DIVERGING = [[0.0, "#e0705f"], [0.25, "#efb3a6"], [0.5, "#f4f4f4"], [0.75, "#b4d2ec"], [1.0, "#5a9bd4"]]
"""Red below 0, blue above."""
SEQUENTIAL = [[0.0, "#f4f6f9"], [0.5, "#b4d2ec"], [1.0, "#4f93cf"]]
"""Light enough for dark numbers on them, in both themes."""
DARK = "#10181f"
LIGHT = {"text": "#1c2733", "ground": "#ffffff", "lines": "#d5dce4"}
"""Colours of a light page; `page.css` has these and the dark ones."""
WIDEST = 26
"""Letters of a name on an axis or in a legend."""
LAYER_NAME = 28
"""Letters of a layer's name."""
LOWEST, HIGHEST, LAYER = 220, 760, 15
"""Pixels: of a map with few and with many layers, and of one layer."""


def escaped(text: str, width: int = WIDEST) -> str:
    """A user's text as Plotly shows it letter by letter, without its middle where it is wider; names differ at ends."""
    head, tail = width // 2, width - width // 2 - 1
    return html.escape(text if len(text) <= width else f"{text[:head]}…{text[-tail:]}", quote=False)


def plain(values: Any) -> Any:
    """Arrays as lists of numbers with few digits, and None for what is not finite."""
    if isinstance(values, (list, tuple)):
        return [plain(value) for value in values]
    if isinstance(values, (np.ndarray, np.generic)):
        return plain(values.tolist())
    if isinstance(values, float):
        return float(f"{values:.5g}") if math.isfinite(values) else None
    return values


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Trees of mappings in one; a later one has the last word."""
    made: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
            made[key] = merged(made[key], value) if both else dict(value) if isinstance(value, Mapping) else value
    return made


def base_layout(colours: Mapping[str, str]) -> dict[str, Any]:
    """The layout of all drawings, before their own.

    Args:
        colours: `text`, `ground` and `lines`, as `LIGHT` has them.
    """
    axis = {"automargin": True, "fixedrange": True, "gridcolor": colours["lines"], "zerolinecolor": colours["lines"]}
    return {
        "font": {"size": 12, "color": colours["text"], "family": "system-ui, sans-serif"},
        "paper_bgcolor": colours["ground"],
        "plot_bgcolor": colours["ground"],
        "colorway": list(COLOURS),
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "height": 340,
        "dragmode": False,
        "hoverlabel": {"namelength": -1},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": axis,
        "yaxis": dict(axis),
    }


def line(name: str, x: Iterable[Any], y: Iterable[Any], at: int = 0) -> dict[str, Any]:
    """A line with its points.

    Args:
        name: in the legend, as a user gave it.
        x, y: of the points.
        at: its place among the lines, which chooses colour and marker.
    """
    colour = COLOURS[at % len(COLOURS)]
    look = {"line": {"color": colour, "width": 2}, "marker": {"symbol": MARKERS[at % len(MARKERS)], "size": 6}}
    made = {"type": "scatter", "mode": "lines+markers", "name": escaped(name), "x": plain(list(x)), "y": plain(list(y))}
    return merged(made, look)


def points(name: str, x: Iterable[Any], y: Iterable[Any], at: int = 0) -> dict[str, Any]:
    """Points without a line; arguments as `line`."""
    own = {"mode": "markers", "marker": {"size": 10, "color": COLOURS[at % len(COLOURS)]}}
    return merged(line(name, x, y, at), own)


def heat(values: Any, *, low: float, high: float, legend: str, shown: bool = False) -> dict[str, Any]:
    """A map of numbers; colours diverge around 0 where `low` is negative.

    Args:
        values: rows of numbers.
        low, high: where the colours end.
        legend: of the colours.
        shown: write the numbers into the cells.
    """
    bar = {
        "title": {"text": legend, "side": "top"},
        "thickness": 10,
        "nticks": 4,
        "orientation": "h",
        "y": 1.0,
        "yanchor": "bottom",
    }
    text = {"texttemplate": "%{z:.2f}", "textfont": {"color": DARK}} if shown else {}
    return {
        "type": "heatmap",
        "z": plain(values),
        "zmin": low,
        "zmax": high,
        "colorscale": DIVERGING if low < 0 else SEQUENTIAL,
        "colorbar": {**bar, "x": 0.5, "len": 0.7},
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        **text,
    }


def layer_axis(layers: Sequence[str]) -> dict[str, Any]:
    """The y axis of a map of layers, the first at the top: numbered places with short names, of which not all fit."""
    names = _short_names(layers)
    step = max(1, -(-len(names) * LAYER // HIGHEST))
    at = list(range(0, len(names), step))
    return {
        "tickvals": at,
        "ticktext": [escaped(names[place], LAYER_NAME) for place in at],
        "range": [len(names) - 0.5, -0.5],
        "tickfont": {"size": 10},
        "showgrid": False,
        "zeroline": False,
    }


def by_layer(layers: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
    """The layout of a map with a row a layer, and named columns."""
    height = min(HIGHEST, max(LOWEST, LAYER * len(layers) + 130))
    return {"height": height, "yaxis": layer_axis(layers), "xaxis": column_axis(columns)}


def column_axis(columns: Sequence[str]) -> dict[str, Any]:
    """The x axis of a map, with a name at each column; a page turns names that have no room."""
    ticks = {"tickvals": list(range(len(columns))), "ticktext": [*columns], "tickangle": 0}
    return {**ticks, "showgrid": False, "zeroline": False}


def _short_names(layers: Sequence[str]) -> list[str]:
    """Names without the modules that all begin with, nor their first ones where they are still long."""
    parts = [layer.split(".") for layer in layers]
    while all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        parts = [part[1:] for part in parts]
    return [_ending(part) for part in parts]


def _ending(modules: list[str]) -> str:
    kept = list(modules)
    while len(kept) > 1 and len(".".join(kept)) > LAYER_NAME - 2:
        kept = kept[1:]
    name = ".".join(kept)
    return name if len(kept) == len(modules) else f"… {name}"
