"""Drawings of a comparison, from the numbers of `compare.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorachord.runs.compare.compared_rows import REFERENCE, UNTRAINED
from lorachord.runs.compare.tables import claim_rows, main_rows
from lorachord.runs.drawing import Drawing, column_axis, escaped, heat, line, points
from lorachord.runs.drawing.style import merged

Result = Mapping[str, Any]
WHOLE = 200
"""Letters of a name in a table of a page."""
GREY = "#8a94a0"


def draw_differences(found: Result) -> Drawing | None:
    """The difference of each row to joint LoRA, with its own interval and the corrected one."""
    # The base as it is lies so far behind that the others could not be told apart.
    rows = [row for row in found["rows"] if row.get("difference") and row["name"] != UNTRAINED]
    if not rows:
        return None
    places = {row["name"]: at for at, row in enumerate(rows)}
    own = [row["difference"] for row in rows]
    data = [_with_intervals("its own 95 % interval", own, list(places.values()), 0)]
    claims = [claim for claim in found["claims"] if claim["second"] == REFERENCE and claim["level"] is not None]
    if claims:
        beside = [places[claim["first"]] + 0.25 for claim in claims]
        data.append(_with_intervals(f"corrected for {len(found['claims'])} claims", claims, beside, 1))
    effect = found["effect"]
    band = {"type": "rect", "x0": -effect, "x1": effect, "y0": 0, "y1": 1, "yref": "paper", "line": {"width": 0}}
    zero = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": GREY, "width": 2}}
    layout = merged(
        _row_axis([row["name"] for row in rows]),
        {"shapes": [{**band, "fillcolor": GREY, "opacity": 0.18, "layer": "below"}, zero]},
        {"xaxis": {"title": {"text": "difference of mean scores"}}, "showlegend": True},
    )
    seen = [row["name"] for row in rows if row["difference"]["different"]]
    words = f"The intervals of {', '.join(seen)} leave out 0." if seen else "Every interval holds 0."
    if found["rows"] and len(found["seeds"]) < 2:
        words = "One seed was run, so differences have no interval."
    meaning = (
        f"Right of 0 a row is ahead of joint LoRA. Differences within the grey band, {effect:g} to either side, are "
        "too small to matter. The verdict rests on the corrected intervals, which are wider, because several claims "
        "are tested at once."
    )
    table = claim_rows(found, WHOLE) if claims else main_rows(found, WHOLE)
    return Drawing("differences", "Differences from joint LoRA", words, meaning, table, data, layout)


def draw_task_scores(found: Result) -> Drawing | None:
    """The score of each row on each task."""
    rows, tasks = _scored(found), found["tasks"]
    if not rows:
        return None
    names = [*(row["name"] for row in rows), "most frequent answer"]
    values = [[row["scores"][task["name"]] for task in tasks] for row in rows]
    values.append([task["majority"] for task in tasks])
    known = [value for own in values for value in own if value is not None]
    low, high = min(0.0, *known), max(1.0, *known)
    data = [heat(_numbers(values), low=low, high=high, legend="score on dev", shown=len(tasks) <= 8)]
    layout = _map_layout(names, [task["name"] for task in tasks])
    best = max(rows, key=lambda row: row["mean"])
    words = f"{best['name']} has the highest mean, {best['mean']:.3f}."
    cells = [["row", *(task["name"] for task in tasks)], *_cells(names, values)]
    meaning = "Means over the seeds. The last line is what one answer to everything would score."
    return Drawing("task_scores", "Score of each row on each task", words, meaning, cells, data, layout)


def draw_costs(found: Result) -> Drawing | None:
    """Seconds of training against the mean score."""
    rows = [row for row in _scored(found) if row["seconds"] > 0]
    if not rows:
        return None
    data = [points(row["name"], [row["seconds"]], [row["mean"]], at) for at, row in enumerate(rows)]
    cells = [["row", "seconds", "parameters", "memory MiB", "mean"]]
    for row in rows:
        memory = "-" if row["memory"] is None else f"{row['memory'] / 2**20:.0f}"
        cells.append([row["name"], f"{row['seconds']:.0f}", f"{row['parameters']:,}", memory, f"{row['mean']:.3f}"])
    cheapest = min(rows, key=lambda row: row["seconds"])
    cost = f"{cheapest['seconds']:.0f} seconds for a mean of {cheapest['mean']:.3f}"
    words = f"The cheapest row is {cheapest['name']}: {cost}."
    meaning = "High and left is best. Seconds are those of one training at the chosen rate, in the mean over seeds."
    x = {"title": {"text": "seconds of a training"}, "rangemode": "tozero"}
    layout = {"xaxis": x, "yaxis": {"title": {"text": "mean score"}}, "height": 440, "showlegend": True}
    return Drawing("costs", "Cost against score", words, meaning, cells, data, layout)


def draw_transfer(found: Result) -> Drawing | None:
    """The difference of each row to LoRA for each task alone, by task."""
    rows, tasks = [row for row in found["rows"] if row.get("transfer")], [task["name"] for task in found["tasks"]]
    if not rows:
        return None
    values = [[row["transfer"][task]["value"] for task in tasks] for row in rows]
    end = max(0.05, *(abs(value) for own in values for value in own))
    data = [heat(_numbers(values), low=-end, high=end, legend="difference", shown=len(tasks) <= 8)]
    names = [row["name"] for row in rows]
    visible = sum(row["transfer"][task]["different"] for row in rows for task in tasks)
    words = f"{visible} of {len(rows) * len(tasks)} differences have an interval that leaves out 0."
    cells = [["row", *tasks]]
    cells += [[row["name"], *(_interval(row["transfer"][task]) for task in tasks)] for row in rows]
    meaning = "Blue: the task gains by training with the others. Red: it loses. `single` is a LoRA for each task alone."
    title = "Transfer: against LoRA for each task alone"
    return Drawing("transfer", title, words, meaning, cells, data, _map_layout(names, tasks))


def draw_rates(found: Result) -> Drawing | None:
    """The mean on val by learning rate, of rows whose rate was chosen."""
    rows = [row for row in found["rows"] if len(row["rates"]) > 1]
    if not rows:
        return None
    data, cells = [], [["row", "rates that were tried", "chosen"]]
    for at, row in enumerate(rows):
        rates = sorted((float(rate), mean) for rate, mean in row["rates"].items() if mean is not None)
        data.append(line(row["name"], [rate for rate, _ in rates], [mean for _, mean in rates], at))
        tried = ", ".join(f"{rate:g}: {mean:.3f}" for rate, mean in rates)
        cells.append([row["name"], tried, "-" if row["rate"] is None else f"{row['rate']:g}"])
    words = "; ".join(f"{row[0]} takes {row[2]}" for row in cells[1:]) + "."
    meaning = "Each row has its own rate, chosen on val with the first seed. A best rate at an end may not be the best."
    tried_by_any = sorted({float(rate) for row in rows for rate in row["rates"]})
    ticks = {"tickvals": tried_by_any, "ticktext": [f"{rate:g}" for rate in tried_by_any]}
    x = {"title": {"text": "learning rate"}, "type": "log", **ticks}
    layout = {"xaxis": x, "yaxis": {"title": {"text": "mean on val"}}, "height": 400, "showlegend": True}
    return Drawing("rates", "How each learning rate was chosen", words, meaning, cells, data, layout)


def _scored(found: Result) -> list[Result]:
    return [row for row in found["rows"] if "mean" in row]


def _with_intervals(name: str, found: Sequence[Result], places: Sequence[float], at: int) -> dict[str, Any]:
    half = [each["half_width"] for each in found]
    made = points(name, [each["value"] for each in found], places, at)
    if any(width is None for width in half):
        return made
    return {**made, "error_x": {"type": "data", "array": half, "thickness": 2.5 if at == 0 else 1.5, "width": 5}}


def _row_axis(names: Sequence[str]) -> dict[str, Any]:
    ticks = {"tickvals": list(range(len(names))), "ticktext": [escaped(name, 22) for name in names]}
    axis = {**ticks, "range": [len(names) - 0.4, -0.6], "zeroline": False}
    return {"yaxis": axis, "height": 140 + 34 * len(names)}


def _map_layout(names: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
    own = {"xaxis": column_axis([escaped(task, 14) for task in tasks]), "yaxis": {"showgrid": False}}
    return merged(_row_axis(names), own)


def _numbers(values: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    return [list(own) for own in values]


def _cells(names: Sequence[str], values: Sequence[Sequence[float | None]]) -> list[list[str]]:
    shown = [["-" if value is None else f"{value:.3f}" for value in own] for own in values]
    return [[name, *own] for name, own in zip(names, shown, strict=True)]


def _interval(found: Result) -> str:
    half = found["half_width"]
    return f"{found['value']:+.3f}" if half is None else f"{found['value']:+.3f} ± {half:.3f}"
