"""One drawing: what Plotly draws, and the same for those who do not see it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorachord.messages import table
from lorachord.runs.drawing.style import LIGHT, base_layout, merged

if TYPE_CHECKING:
    import plotly.graph_objects

PLOTLY = "application/vnd.plotly.v1+json"


@dataclass(frozen=True)
class Frames:
    """Several maps of the same axes, of which a slider shows one.

    Attributes:
        of: what the slider moves over: "step".
        labels: of its places.
        values: the map of each place, rows of numbers.
    """

    of: str
    labels: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Drawing:
    """A figure for Plotly, as plain data.

    Attributes:
        name: a word, unique on a page.
        title: a line.
        words: its own numbers in a sentence or two.
        meaning: how to read it; empty where the title says it.
        rows: its numbers as a table; the first row is the header.
        data: Plotly's traces.
        layout: Plotly's layout, without colours of the page.
        frames: values of the first trace, for a slider. Default: none.
    """

    name: str
    title: str
    words: str
    meaning: str
    rows: Sequence[Sequence[str]]
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    frames: Frames | None = None

    def plain(self) -> dict[str, Any]:
        """`data` and `layout` of Plotly's own JSON, with Plotly's slider where there are frames."""
        layout = merged(base_layout(LIGHT), self.layout, {"title": {"text": html.escape(self.title, quote=False)}})
        layout["margin"] = {**layout["margin"], "t": 48}
        if self.frames is not None:
            layout["sliders"] = [_slider(self.frames)]
            layout["margin"]["b"] = 110
        return {"data": [dict(trace) for trace in self.data], "layout": layout}

    def figure(self) -> plotly.graph_objects.Figure:
        """As a Plotly figure, to change or save it."""
        from plotly.graph_objects import Figure

        return Figure(self.plain())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """For notebooks: the drawing; its table where Plotly is not known; and text."""
        cells = [[html.escape(cell) for cell in row] for row in self.rows]
        head = "".join(f"<th>{cell}</th>" for cell in cells[0])
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells[1:])
        told = f"<h4>{html.escape(self.title)}</h4><p>{html.escape(self.words)}</p>"
        return {
            PLOTLY: {**self.plain(), "config": {"responsive": True}},
            "text/html": f"{told}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
            "text/plain": f"{self.title}\n{table(self.rows)}\n{self.words}",
        }


def show(text: str, drawings: Sequence[Drawing]) -> None:
    """Print text and display drawings in the notebook that this runs in."""
    from IPython.display import display

    print(text)
    for drawing in drawings:
        display(drawing)


def _slider(frames: Frames) -> dict[str, Any]:
    steps = [
        {"label": label, "method": "restyle", "args": [{"z": [values]}, [0]]}
        for label, values in zip(frames.labels, frames.values, strict=True)
    ]
    return {"active": 0, "currentvalue": {"prefix": f"{frames.of}: "}, "pad": {"t": 40}, "steps": steps}
