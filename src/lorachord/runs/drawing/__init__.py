"""Drawings: figures for Plotly, with their numbers as a table and their meaning in words.

A `Drawing` is plain data: it is put into a page (`lorachord report`), shown in a notebook, or made a Plotly figure. All
text in it that a user gave is escaped, because Plotly reads a part of HTML in its labels. `style` has the colours and
the pieces that several drawings share: maps (`heat`), lines, names of layers that are short.

>>> from lorachord.runs.drawing import Drawing, line
>>> made = Drawing("loss", "Loss", "It falls.", "Lower is better.", [["step", "loss"], ["1", "0.7"]],
...                [line("a <b>", [1, 2], [0.7, 0.5])])
>>> made.data[0]["name"], made.data[0]["y"]
('a &lt;b&gt;', [0.7, 0.5])
"""

from lorachord.runs.drawing.drawing import Drawing, Frames, show
from lorachord.runs.drawing.style import COLOURS, by_layer, column_axis, escaped, heat, layer_axis, line, plain, points

__all__ = [
    "COLOURS",
    "Drawing",
    "Frames",
    "by_layer",
    "column_axis",
    "escaped",
    "heat",
    "layer_axis",
    "line",
    "plain",
    "points",
    "show",
]
