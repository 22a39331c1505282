"""The scores of tasks that are learned one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorachord.runs.drawing import Drawing, escaped, line
from lorachord.runs.sequence import sequence_rows


def draw_stages(metrics: Mapping[str, Any]) -> Drawing:
    """A line for the score of each task on dev after each stage; it begins where a task has a core of its own.

    Args:
        metrics: of a run of mode `sequence`.

    Raises:
        ValueError: they say nothing of stages.
    """
    if not metrics.keys() >= {"order", "stages", "loss_of_earlier_tasks"}:
        raise ValueError("The run's metrics.json says nothing of stages, though its mode is sequence.")
    order, lost = metrics["order"], metrics["loss_of_earlier_tasks"]
    places = list(range(len(order)))
    scores = [[stage[task] for stage in metrics["stages"]["dev"]] for task in order]
    data = [line(task, places, values, at) for at, (task, values) in enumerate(zip(order, scores, strict=True))]
    words = f"In the end the earlier tasks have lost {lost['mean']:.3f} on average"
    if lost["tasks"]:
        most = max(lost["tasks"], key=lambda task: lost["tasks"][task])
        words += f", and {most} has lost the most, {lost['tasks'][most]:.3f}"
    meaning = "What a task has lost is its score after its own stage, less its score after the last. Higher is better."
    names = {"tickvals": places, "ticktext": [escaped(task, 14) for task in order]}
    layout = {
        "xaxis": {**names, "title": {"text": "after learning"}, "range": [-0.3, len(order) - 0.7]},
        "yaxis": {"title": {"text": "score"}},
        "showlegend": True,
    }
    return Drawing("stages", "Scores after each task", f"{words}.", meaning, sequence_rows(metrics), data, layout)
