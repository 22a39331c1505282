"""A forecast as a page of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from lorachord.data.audit import SplitAudit
from lorachord.messages import table
from lorachord.runs.forecast.parameters import SHARED_HEAD, Parameters
from lorachord.runs.forecast.summary import Forecast
from lorachord.runs.recipe import Recipe

WIDTH = 80
MOST_CLASSES = 6
"""Classes whose shares are shown."""


def as_text(recipe: Recipe, found: Forecast) -> str:
    """The page, in lines for a terminal."""
    parts = [f"{recipe.method['name']} on {recipe.model.name}, {recipe.mode}, seed {recipe.seed}"]
    if found.tasks:
        parts += [table(list(_data_rows(found))), "\n".join(_class_lines(found))]
    if found.steps_per_epoch is not None:
        parts.append(f"An epoch has {found.steps_per_epoch:,} steps, and the run {found.steps:,}.")
    if found.parameters:
        parts.append(_parameters(found.parameters))
    parts += [part for part in (_memory(found), _time(recipe, found)) if part]
    for title, words in (("Warnings", found.warnings), ("Not going to work", found.problems)):
        if words:
            lines = (textwrap.fill(each, WIDTH, initial_indent="- ", subsequent_indent="  ") for each in words)
            parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(part for part in parts if part)


def _data_rows(found: Forecast) -> Iterator[list[str]]:
    yield ["task", "split", "rows", "duplicates", "leaked", "tokens", "longest", "cut"]
    for task, splits in found.data.tasks.items():
        for name, split in splits.items():
            yield [task, name, f"{split.rows:,}", f"{split.duplicates:,}", f"{split.leaked:,}", *_lengths(split)]


def _lengths(split: SplitAudit) -> list[str]:
    lengths = split.lengths
    if lengths is None:
        return ["-", "-", "-"]
    return [str(lengths.median), str(lengths.longest), f"{lengths.cut / lengths.measured:.0%}"]


def _class_lines(found: Forecast) -> Iterator[str]:
    for task, splits in found.data.tasks.items():
        classes, total = splits["train"].classes, sum(splits["train"].classes.values())
        if total:
            shown = sorted(classes.items(), key=lambda pair: -pair[1])
            shares = ", ".join(f"{name} {count / total:.1%}" for name, count in shown[:MOST_CLASSES])
            more = f", and {len(shown) - MOST_CLASSES} more" if len(shown) > MOST_CLASSES else ""
            yield f"{task}: {shares}{more}"


def _parameters(counted: tuple[Parameters, ...]) -> str:
    rows = [["method", "trainable", "adapter", "routers", "each task"]]
    for each in counted:
        if each.adapter is not None:
            more = "-" if each.each_task is None else f"{each.each_task:,}"
            rows.append([each.method, f"{each.total:,}", f"{each.adapter:,}", f"{each.routers:,}", more])
    own = counted[0]
    heads = ", ".join(f"{task} {size:,}" for task, size in own.heads.items())
    lines = [table(rows), *(f"Not {each.method}: {each.refused}" for each in counted if each.refused)]
    if heads:
        lines.append(f"Of these, the head of {heads}." if SHARED_HEAD in own.heads else f"Of these, heads: {heads}.")
    if own.runs > 1:
        lines.append(f"Over {own.runs} runs, one a task.")
    return "\n".join(lines)


def _memory(found: Forecast) -> str:
    memory = found.memory
    if memory is None:
        return ""
    parts = {
        "frozen weights": memory.weights,
        "trained weights": memory.adapter,
        "gradients": memory.gradients,
        "AdamW": memory.optimizer,
        f"activations ({'measured' if memory.measured else 'by the shape of the model'})": memory.activations,
    }
    summed = " + ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    return (
        f"Memory of a step with the longest rows: {_bytes(memory.total)} = {summed}.\n"
        f"{memory.device} has {_bytes(memory.available)} free; libraries and the allocator take more than the sum."
    )


def _time(recipe: Recipe, found: Forecast) -> str:
    speed = found.speed
    if speed is None or found.seconds is None:
        return ""
    if not speed.timed_steps:
        return (
            f"Time: about {duration(found.seconds)} of training on {speed.device}. It is computed from the model's "
            "shape, since it does not fit here to be timed, and may be off by a factor of two."
        )
    rows = recipe.training.batch_size // recipe.training.accumulation
    scaled = f", of {speed.timed_rows} rows in place of {rows}" if speed.timed_rows < rows else ""
    stand_in = f", with {speed.stand_in} in the place of {recipe.method['name']}" if speed.stand_in else ""
    scored = f", {duration(speed.scoring_seconds)} of them scoring once" if speed.scoring_seconds is not None else ""
    return (
        f"Time: about {duration(found.seconds)} on {speed.device}{scored}. A step takes {speed.step_seconds:.3g} s "
        f"({speed.timed_steps} steps timed{scaled}{stand_in})."
    )


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _bytes(size: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**power:
            return f"{size / 2**power:.1f} {unit}"
    return f"{size} B"
