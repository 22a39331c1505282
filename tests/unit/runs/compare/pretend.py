"""Comparisons whose trials are drawn and not trained: a function says how often each is right."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorachord.runs.compare.compared_rows import REFERENCE, Row, parse_row, standing_rows
from lorachord.runs.compare.plan import Plan
from lorachord.runs.compare.sweep_state import State
from lorachord.runs.compare.trial import Outcome, Trial
from tests.tiny_data import recipe

TASKS = ("colour", "other")
NUM = 400
Right = Callable[[Trial, str], float]
"""The expected share of right answers of a trial on a task."""


def plan_of(*methods: str, seeds: int = 3, rates: Sequence[float] | None = None, effect: float = 0.02) -> Plan:
    """A plan of two classification tasks, of which no data and no model are there."""
    own = [
        {"name": name, "kind": "classification", "text": ["text"], "labels": ["no", "yes"], "source": {"path": "a/b"}}
        for name in TASKS
    ]
    made = recipe(Path("/tiny"), tasks={"own": own}, method={"name": "lora", "r": 4}, training={"learning_rate": 1e-3})
    rows = list(standing_rows(made))
    rows += [parse_row(text, made) for text in methods if text not in {row.name for row in rows}]
    names = [row.name for row in rows]
    claims = tuple((name, REFERENCE) for name in names if name not in (REFERENCE, "untrained", "single"))
    return Plan(
        recipe=made,
        rows=tuple(rows),
        seeds=tuple(range(seeds)),
        rates=None if rates is None else tuple(rates),
        claims=claims,
        effect=effect,
        threads=1,
        data_dir=None,
        parameters={row.name: (1000, 1.0) for row in rows},
    )


def examples() -> dict[str, Any]:
    labels = np.random.default_rng(0).integers(2, size=NUM).tolist()
    return {split: {task: {"idx": list(range(NUM)), "label": labels} for task in TASKS} for split in ("val", "dev")}


def pretend(trial: Trial, right: Right) -> Outcome:
    """A trial that answers so many examples rightly, the same ones more or less whatever the row."""
    found: dict[str, Any] = {}
    for place, split in enumerate(("val", "dev")):
        found[split] = {}
        for task in TASKS:
            share = right(trial, task)
            generator = np.random.default_rng([place, TASKS.index(task)])
            latent = generator.random(NUM)
            own = np.random.default_rng(zlib.crc32(f"{trial.path} {split} {task}".encode())).normal(0, 0.02, NUM)
            answers = np.asarray(examples()[split][task]["label"])
            found[split][task] = {"prediction": np.where(latent + own < share, answers, 1 - answers).tolist()}
    return Outcome(trial=trial, found=found, seconds=10.0, parameters=1000)


def run_all(state: State, right: Right, limit: int = 10_000) -> list[Trial]:
    """Run what a comparison wants, one trial at a time, at most so many; in the order in which they ran."""
    ran: list[Trial] = []
    while len(ran) < limit:
        _, wanted = state.settled()
        if not wanted:
            break
        state.add(pretend(wanted[0], right), examples())
        ran.append(wanted[0])
    return ran


def row_of(state: State, name: str) -> Row:
    return state.plan.any_row(name)
