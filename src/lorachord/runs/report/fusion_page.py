"""The page of a folder that `lorachord fuse` has made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorachord.runs.drawing import Drawing, by_layer, escaped, heat, points
from lorachord.runs.fusion_report import SINGLE, fusion_rows, fusion_words
from lorachord.runs.inspect import inspect
from lorachord.runs.inspect.draw_updates import rows_of_layers
from lorachord.runs.report.contents import Block, Listing, Page, Section, Table, Words, or_words
from lorachord.runs.report.run_page import seen
from lorachord.whole import read_json

FUSION = "fusion.json"
KEYS = ("method", "options", "tasks", "noise", "adapted_on", "svd_error", "coefficients", "notes")


def page_of_fusion(path: Path, how: dict[str, Any]) -> Page:
    """Scores beside the adapters that were fused, coefficients, the update.

    Raises:
        ValueError: `fusion.json` is damaged.
    """
    found = read_json(path / FUSION, KEYS)
    sections = [
        Section("Scores", _scores(found)),
        Section("Coefficients", or_words(lambda: _coefficients(found))),
        Section("What the adapter does", or_words(lambda: seen(inspect(path, **how)))),
        Section("How it was made", [Listing("The method and its options", _made(found))]),
    ]
    return Page(f"Fused adapter {path.absolute().name}", f"{found['method']} of {', '.join(found['tasks'])}", sections)


def _scores(found: Mapping[str, Any]) -> list[Block]:
    if "scores" not in found:
        return [Words("Nothing was scored: no run and no recipe described the tasks.", leads=True)]
    scores = found["scores"]
    fused = scores["fused"]["mean"]
    lead = f"The fused model has a mean score of {fused:.3f}"
    lead += f"; the adapters that it was made of have {scores[SINGLE]['mean']:.3f}." if SINGLE in scores else "."
    # Of the words of the command, without the table, which stands here as one.
    told = [Words(words) for words in fusion_words({**found, "notes": {}, "scores": scores}, "dev")][:-1]
    return [Words(lead, leads=True), *told, Table("Scores", fusion_rows(found)), _draw_means(found)]


def _draw_means(found: Mapping[str, Any]) -> Drawing:
    scores = found["scores"]
    names = [*scores]
    data = [
        points("mean", [scores[name]["mean"] for name in names], range(len(names))),
        points("worst", [scores[name]["worst"] for name in names], range(len(names)), 1),
    ]
    data[1]["marker"] = {**data[1]["marker"], "symbol": "line-ns-open", "size": 14, "line": {"width": 3}}
    axis = {"tickvals": list(range(len(names))), "ticktext": [escaped(name) for name in names], "zeroline": False}
    layout = {
        "yaxis": {**axis, "range": [len(names) - 0.5, -0.5]},
        "xaxis": {"title": {"text": "score"}},
        "height": 150 + 28 * len(names),
        "showlegend": True,
    }
    simple = [name for name in names if name not in (SINGLE, "fused")]
    best = max(simple, key=lambda name: scores[name]["mean"], default="")
    words = f"The fused model has {scores['fused']['mean']:.3f}."
    words += f" The best of the simple ways, {best}, has {scores[best]['mean']:.3f}." if best else ""
    meaning = "`individual` is each adapter on its own task; `lambda` is the sum of all updates times a number."
    return Drawing("means", "Beside its parts and simple fusions", words, meaning, fusion_rows(found), data, layout)


def _coefficients(found: Mapping[str, Any]) -> list[Block]:
    tasks, blocks = found["tasks"], list[Block]()
    coefficients = found["coefficients"]
    if coefficients:
        layers = [*coefficients]
        values = [coefficients[layer] for layer in layers]
        flat = [value for own in values for value in own]
        # One number for a task, or for all tasks, is a column all the same.
        columns = [escaped(task, 14) for task in tasks] if len(values[0]) == len(tasks) else [""]
        rows = [["layer", *(tasks if len(columns) > 1 else ["coefficient"])]]
        rows += [[layer, *(f"{value:.4f}" for value in own)] for layer, own in coefficients.items()]
        # Coefficients of one sign are near each other; those of both have their middle at 0.
        end = max(abs(value) for value in flat)
        low, high = (min(flat), max(flat)) if min(flat) >= 0 else (-end, end)
        data = [heat(values, low=low, high=max(high, low + 1e-6), legend="coefficient")]
        words = f"The coefficients lie between {min(flat):.3f} and {max(flat):.3f}."
        meaning = "How much of a task's update the fused one takes in each layer."
        told = "coefficients", "Coefficients by layer", words, meaning
        blocks.append(Drawing(*told, rows, data, by_layer(layers, columns)))
    loss = found["notes"].get("predicted_loss")
    if loss:
        blocks.append(_draw_loss(loss))
    return blocks or [Words(f"{found['method']} has no coefficients.")]


def _draw_loss(loss: Mapping[str, float]) -> Drawing:
    """What `collapse` foretold of each layer."""
    layers = [*loss]
    data = [points("predicted loss", list(loss.values()), range(len(layers)))]
    layout = {"xaxis": {"title": {"text": "predicted loss"}, "rangemode": "tozero"}, **rows_of_layers(layers)}
    worst = max(loss, key=lambda layer: loss[layer])
    words = f"The layer that loses most is {worst}, with {loss[worst]:.3g}."
    rows = [["layer", "predicted loss"], *([layer, f"{value:.3g}"] for layer, value in loss.items())]
    meaning = "How far the fused layer is from the tasks' own ones, on their own inputs, as the fusion foretells it."
    return Drawing("predicted_loss", "Predicted loss by layer", words, meaning, rows, data, layout)


def _made(found: Mapping[str, Any]) -> str:
    return json.dumps({key: found[key] for key in ("method", "options", "tasks", "noise", "adapted_on")}, indent=2)
