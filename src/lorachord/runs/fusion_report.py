"""What a fused model is worth beside what it was made of, and the batches that this and the methods look at."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorachord.fusion import Merged, TaskVectors
from lorachord.fusion.arithmetic import average, task_arithmetic
from lorachord.fusion.disentanglement import disentanglement_error, distance_from, references, single
from lorachord.fusion.noise import KINDS, check_kind, with_noise
from lorachord.fusion.predictions import Inputs
from lorachord.messages import suggest, table
from lorachord.runs.adapters import Tasks
from lorachord.runs.scores import report, save_scored, score_task
from lorachord.training.fusion_batches import input_batches
from lorachord.training.model_kind import Record
from lorachord.training.scoring import predict

logger = logging.getLogger("lorachord")
SWEEP = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""The lambda of task arithmetic that every report shows."""
ADAPT_ON = {"heldout": "val", "dev": "dev", "test": "test"}
SINGLE = "individual"
SHOWN = 5
"""Layers in the table of predicted losses; fusion.json has them all."""
FEW = 4
"""Batches of written answers that xi and the distance are measured on."""
XI, DISTANCE = "weight_disentanglement_error", "distance_from_own_adapters"
"""Of each task, in a report; the table has their sums."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How a fusion reads and reports.

    Args:
        adapt_on: the inputs that a method sees: `heldout` (the tasks' val), or `dev` or `test`, which then are no
            independent measure any more, as the report says. Default heldout.
        shots: labelled examples of each task, for a method that realigns on labels. Default 16.
        batch_size: examples of a task in a batch. Default 16.
        max_rows: examples of each task at most, for adapting, for xi and for the distance. Default 512.
        split: what is scored. Default dev.
        rank: of the result. Default: exact, or that of all adapters together where the result is dense.
        full: save a whole model and no LoRA.
        beside: score the individual adapters, their average and the sweep as well. Default true.
        noise: a kind of `fusion.noise`, put on the task vectors before anything else sees them. Default none.
        snr: of the noise, in dB. Default 0.
        seed: of the choice of examples, and of the noise. Default 0.
    """

    adapt_on: str = "heldout"
    shots: int = 16
    batch_size: int = 16
    max_rows: int = 512
    split: str = "dev"
    rank: int | None = None
    full: bool = False
    beside: bool = True
    noise: str | None = None
    snr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.adapt_on not in ADAPT_ON:
            raise ValueError(
                f"There is nothing called {self.adapt_on!r} to adapt on. {suggest(self.adapt_on, ADAPT_ON)}"
            )
        if self.noise is not None:
            check_kind(self.noise)
        elif self.snr is not None:
            raise ValueError(f"snr is {self.snr:g} dB, but there is no noise: name one of {', '.join(KINDS)}.")
        if self.snr is not None and not math.isfinite(self.snr):
            raise ValueError(f"snr is {self.snr}; it must be a finite number of dB.")
        for name in ("shots", "batch_size", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def heard(self, vectors: TaskVectors) -> TaskVectors:
        """The task vectors as they come over the channel."""
        return vectors if self.noise is None else with_noise(vectors, self.decibels, self.noise, self.seed)

    @property
    def decibels(self) -> float:
        """The signal-to-noise ratio."""
        return 0.0 if self.snr is None else self.snr


def task_batches(vectors: TaskVectors, tasks: Tasks, how: How, *, labelled: bool) -> dict[str, list[Inputs]]:
    """Batches of each task; answers that are written freely are written by the task's own adapter."""
    assert tasks.data is not None
    assert tasks.kind is not None
    rows = tasks.data.split(ADAPT_ON[how.adapt_on], how.shots if labelled else how.max_rows, how.seed)
    found = {}
    for index, task in enumerate(vectors.tasks):
        with single(vectors, index).model() as writer:
            found[task] = input_batches(
                tasks.kind,
                rows[index],
                index,
                batch_size=how.batch_size,
                labelled=labelled,
                writer=writer,
                seed=how.seed,
            )
    return found


def compare(merged: Merged, tasks: Tasks, how: How, out: Path) -> dict[str, Any]:
    """The scores of the fused model, of the individual adapters, their average, and a sweep of one lambda."""
    assert tasks.data is not None
    vectors, evaluation = merged.vectors, tasks.evaluation
    rows = tasks.data.split(how.split, evaluation.max_rows, tasks.seed)
    inputs = task_batches(vectors, tasks, how, labelled=False)
    # What is remembered of a written answer is a whole vocabulary a token.
    inputs = {task: own[:FEW] if own[0].kind == "tokens" else own for task, own in inputs.items()}
    against = references(vectors, inputs)

    def records(candidate: Merged, index: int) -> list[Record]:
        assert tasks.kind is not None
        with candidate.model() as model:
            return predict(model, tasks.kind, rows[index], index, max_new_tokens=evaluation.max_new_tokens)

    def scored(name: str, made: Mapping[str, list[Record]]) -> dict[str, Any]:
        logger.info("scored: %s", name)
        assert tasks.data is not None
        return report({task.name: score_task(task, made[task.name]) for task in tasks.data.tasks})

    def distances(candidate: Merged) -> dict[str, Any]:
        return {
            XI: disentanglement_error(candidate, inputs),
            DISTANCE: distance_from(candidate, inputs, against),
        }

    names = list(enumerate(vectors.tasks))
    found, candidates = {}, {}
    if how.beside:
        found[SINGLE] = scored(SINGLE, {task: records(single(vectors, index), index) for index, task in names})
        candidates = {"average": average(vectors)}
        candidates |= {f"lambda {scale:g}": task_arithmetic(vectors, scale) for scale in SWEEP}
    for name, candidate in candidates.items():
        found[name] = scored(name, {task: records(candidate, index) for index, task in names})
        found[name] |= distances(candidate)
    made = {task: records(merged, index) for index, task in names}
    found["fused"] = save_scored(out / "predictions" / how.split, tasks.data.tasks, made)
    found["fused"] |= distances(merged)
    return found


def fusion_words(found: Mapping[str, Any], split: str) -> Iterator[str]:
    """What a report says, for a terminal.

    Args:
        found: as `fusion.json` has it.
        split: that was scored.
    """
    if found["noise"] is not None:
        kind, decibels = found["noise"]["kind"], found["noise"]["snr"]
        yield f"Noise on every adapter, also on the individual ones: {kind}, {decibels:g} dB."
    if found["adapted_on"] not in (None, "heldout"):
        yield f"Adapted on the inputs of {found['adapted_on']}: its scores are no independent measure any more."
    if found["svd_error"] is not None:
        yield f"Cut by singular values: relative error of the update {found['svd_error']['all']:.3g}."
    if "rank_correlation" in found["notes"]:
        yield loss_table(found["notes"])
    if "scores" in found:
        yield f"{split}, {found['method']}\n{fusion_table(found)}"


def fusion_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table of a report's scores, below a header."""
    scores = found["scores"]
    rows = [["", *found["tasks"], "mean", "worst", "xi", "distance from own adapters"]]
    for name, scored in scores.items():
        cells = [f"{scored['tasks'][task]['score']:.3f}" for task in found["tasks"]]
        sums = [f"{sum(scored[key].values()):.3f}" if scored.get(key) else "" for key in (XI, DISTANCE)]
        rows.append([name, *cells, f"{scored['mean']:.3f}", f"{scored['worst']:.3f}", *sums])
    return rows


def fusion_table(found: Mapping[str, Any]) -> str:
    """The same as text."""
    return table(fusion_rows(found))


def loss_table(notes: Mapping[str, Any]) -> str:
    """What `collapse` foretold of the layers that lose most, and how all of that compares with what each changes."""
    foretold, changes = notes["predicted_loss"], notes["actual_change"]
    worst = sorted(foretold, key=foretold.get, reverse=True)[:SHOWN]
    rows = [["layers that lose most", "predicted loss", "change of predictions"]]
    rows += [[name, f"{foretold[name]:.3g}", f"{changes[name]:.3g}"] for name in worst]
    return f"{table(rows)}\nRank correlation of the two over {len(foretold)} layers: {notes['rank_correlation']:.2f}."
