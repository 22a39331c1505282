"""The scores of a run beside those of one answer to everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorachord.runs.drawing import Drawing, escaped, points


def draw_scores(
    scores: Mapping[str, Any], constants: Mapping[str, float | None], rows: Sequence[Sequence[str]]
) -> Drawing:
    """A point for the score of each task, and a mark for its most frequent answer.

    Args:
        scores: of a split, as `metrics.json` has them.
        constants: by task; None where a task has no most frequent answer.
        rows: the table.
    """
    tasks = list(scores["tasks"])
    places = list(range(len(tasks)))
    own = [scores["tasks"][task]["score"] for task in tasks]
    constant = points("most frequent answer", [constants[task] for task in tasks], places, 1)
    constant["marker"] = {**constant["marker"], "symbol": "line-ns-open", "size": 16, "line": {"width": 3}}
    names = {"tickvals": places, "ticktext": [escaped(task, 20) for task in tasks]}
    known = [(score, least) for task, score in zip(tasks, own, strict=True) if (least := constants[task]) is not None]
    beaten = sum(score > least for score, least in known)
    words = f"In {beaten} of {len(known)} tasks the run is above the most frequent answer."
    meaning = (
        "A model that has learned nothing gives the most frequent answer, or the mean of a regression, to everything. "
        "A single run has no interval: `lorachord compare` gives one, over seeds and examples."
    )
    layout = {
        "height": 130 + 34 * len(tasks),
        "yaxis": {**names, "range": [len(tasks) - 0.5, -0.5], "zeroline": False},
        "xaxis": {"title": {"text": "score"}},
        "showlegend": True,
    }
    data = [points("the run", own, places), constant]
    return Drawing("scores", "Scores beside the most frequent answer", words, meaning, rows, data, layout)
