"""`lorachord compare`: from a recipe and the names of methods to a verdict."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

from lorachord.runs.auditing import audit_of, say
from lorachord.runs.compare.compared_rows import FRONT_RATIO
from lorachord.runs.compare.comparison import Comparison
from lorachord.runs.compare.plan import Plan, make_plan
from lorachord.runs.compare.results import results
from lorachord.runs.compare.row_sizes import Budget
from lorachord.runs.compare.sweep import SweepFolder, run_sweep
from lorachord.runs.compare.tables import as_csv, as_markdown
from lorachord.runs.compare.workers import Processes, RayCluster, Workers
from lorachord.runs.model import load_plain
from lorachord.runs.recipe import Recipe, read_recipe
from lorachord.runs.stopping import Stopped
from lorachord.runs.tasksets import load_data
from lorachord.whole import write_json, write_text

logger = logging.getLogger("lorachord")
FEW_ROWS = 50
"""Rows of val below which it is said that rates are chosen by few."""


def compare(
    recipe: Recipe | str | Path,
    methods: Sequence[str],
    out: str | Path,
    *,
    seeds: int = 3,
    rates: Sequence[float] | None = None,
    budget: Budget = "equal",
    claims: Sequence[str] = (),
    effect: float = 0.02,
    weights: Sequence[float] = (FRONT_RATIO,),
    data_dir: str | Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    seconds: float | None = None,
) -> Comparison:
    """Compare methods on the tasks of a recipe, or go on with the comparison that a folder holds.

    Args:
        recipe: of joint LoRA, or its file: the base, the tasks, the steps, the rank that sets the budget.
        methods: rows, as `compared_rows.parse_row` reads them. Those of `standing_rows` there are added.
        out: the folder; see `sweep.py`.
        seeds: how many of each row. Default 3.
        rates: learning rates to choose from. Default: a ladder around the recipe's, widened until the best is inside.
        budget: `equal` parameters within 2 % (default), or each row's `own`.
        claims: see `make_plan`.
        effect: the smallest difference of means that would matter. Default 0.02.
        weights: how many times as much the front lets each task count. Default 4.
        data_dir: as for `train`.
        jobs: trials at once. Default: one for each two CPUs, at least one.
        ray: the address of a Ray cluster, or "local". Default: processes of this machine.
        seconds: in which the comparison has to end. Default: no limit.

    Returns:
        The result, which a notebook shows; the same is written as `compare.json`, `compare.csv` and `compare.md`.

    Raises:
        ValueError: whatever is wrong with the recipe, the rows, the data or the folder, before any training.
        Stopped: the process was asked to stop; finished trials are kept, and the others have saved checkpoints.
    """
    cpus = os.cpu_count() or 1
    jobs = jobs if jobs is not None else max(1, cpus // 2)
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; it must be at least 1.")
    folder = SweepFolder(out)
    saved = folder.saved_plan() if folder.is_there else None
    # Digits depend on the threads of a trial: these stay as they were at the beginning.
    threads = max(1, cpus // jobs) if saved is None else saved.threads
    plan = make_plan(
        recipe if isinstance(recipe, Recipe) else read_recipe(recipe, data_dir=data_dir),
        methods,
        seeds=seeds,
        rates=rates,
        budget_kind=budget,
        claims=claims,
        effect=effect,
        threads=threads,
        data_dir=data_dir,
        ratios=weights,
    )
    _check_data(plan)
    workers = Processes(jobs, threads) if ray is None else _cluster(ray, jobs, threads, folder)
    try:
        state = folder.begin(plan)
        with _stopping(workers, folder):
            is_whole = run_sweep(folder, state, workers, seconds=seconds)
    finally:
        workers.close()
    if not is_whole:
        logger.info("The time is over; the same command goes on with the rest.")
    return Comparison(folder.path, write_results(folder, results(state)))


def write_results(folder: SweepFolder, found: dict[str, Any]) -> dict[str, Any]:
    """Write `compare.json`, `compare.csv` and `compare.md`, and return what was found."""
    write_json(folder.path / "compare.json", found)
    write_text(folder.path / "compare.csv", as_csv(found))
    write_text(folder.path / "compare.md", as_markdown(found))
    return found


def _check_data(plan: Plan) -> None:
    """Read the data once, so that their faults, leaks among them, are said before the first trial.

    Raises:
        ValueError: as `load_data`, or a task has too few rows to be scored.
    """
    data = load_data(plan.recipe, plan.tasks, plan.data_dir)
    for split in ("val", "dev"):
        for task, rows in zip(plan.tasks, data.split(split, plan.recipe.evaluation.max_rows, 0), strict=True):
            if len(rows) < 2:
                raise ValueError(
                    f"Task {task.name!r} has {len(rows)} rows of {split}; a comparison needs two at least."
                )
            if split == "val" and len(rows) < FEW_ROWS:
                logger.warning(
                    "%s: learning rates are chosen by %d val rows, which is few; give it more, or a val file",
                    task.name,
                    len(rows),
                )
    _, kind = load_plain(plan.recipe, plan.tasks)
    say(audit_of(plan.recipe, data, kind))


def _cluster(address: str, jobs: int, threads: int, folder: SweepFolder) -> Workers:
    """Workers of a Ray cluster.

    Raises:
        ValueError: the folder is not seen by all of them.
    """
    cluster = RayCluster(address, jobs, threads)
    token = f".seen-{uuid4().hex}"
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.path.absolute().parent
    (beside / token).touch()
    try:
        cluster.check_folder(str(beside), token)
    except ValueError:
        cluster.close()
        raise
    finally:
        (beside / token).unlink()
    return cluster


@contextmanager
def _stopping(workers: Workers, folder: SweepFolder) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the trials save what they have, and say how to go on."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(
            f"Stopped. The finished trials are in {folder.path}; the same command goes on with the rest.", 128 + number
        )

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Stopped:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        workers.stop()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
