"""A run's tasks, each asked tasks of the harness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from lorachord.harness.run_model import LorachordLM, one_of
from lorachord.messages import suggest
from lorachord.runs.served import Served, find_served

Score = dict[str, Any]
"""`task`, of the run; `harness`, the harness's; `metric`; `filter`; `value`; `stderr` or None."""


def score_by_harness(
    run: str | Path,
    asked: Sequence[str],
    *,
    include: str | Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    chat: bool = False,
) -> list[Score]:
    """Ask tasks of a run tasks of the harness; the weights of one base are read once.

    Args:
        run: a finished run, an exported LoRA or a folder of them, or a merged model.
        asked: `TASK=NAME`, the run's task and the harness's; or `NAME` alone, of which the task of this name is asked,
            or the only one.
        include: a folder with task files of one's own. Default: the harness's own tasks alone.
        shots: examples before each question. Default: as the task says.
        limit: rows of each task at most. Default: all.
        batch_size: rows at a time. Default: that of the run's evaluation.
        chat: whether prompts go through the tokenizer's chat template. Default false.

    Returns:
        One entry for each metric of each pair, in the order asked.

    Raises:
        ValueError: a task that the run or the harness does not have; before weights are read.
    """
    served = find_served(run)
    pairs = [_pair(entry, served) for entry in asked]
    manager = _manager([name for _, name in pairs], include)
    found: list[Score] = []
    for task, name in pairs:
        own, _ = one_of(served, task)
        told = simple_evaluate(
            model=LorachordLM.of(served, task, batch_size or own.batch_size),
            tasks=[name],
            task_manager=manager,
            num_fewshot=shots,
            limit=limit,
            apply_chat_template=chat,
            log_samples=False,
        )
        assert told is not None, "of several processes the first alone has scores"
        for part, values in told["results"].items():
            found += [{"task": task, "harness": part, **score} for score in _scores(values)]
    return found


def _pair(entry: str, served: Sequence[Served]) -> tuple[str, str]:
    names = [task.name for each in served for task in each.tasks]
    task, separator, name = entry.partition("=")
    if separator:
        one_of(served, task)
        return task, name
    if entry in names or len(names) == 1:
        return (entry if entry in names else names[0]), entry
    raise ValueError(f"Which of the tasks {', '.join(names)} is asked {entry}? Write it as {names[0]}={entry}.")


def _manager(names: Sequence[str], include: str | Path | None) -> TaskManager:
    if include is not None:
        if not Path(include).is_dir():
            raise ValueError(f"There is no folder {include} with task files.")
        alone = TaskManager(include_path=str(include), include_defaults=False)
        # The harness's own are thousands of files.
        if all(alone.match_tasks([name]) for name in names):
            return alone
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in names:
        if not manager.match_tasks([name]):
            raise ValueError(f"The harness has no task {name!r}. {suggest(name, manager.all_tasks)}")
    return manager


def _scores(values: dict[str, Any]) -> list[Score]:
    found = []
    for key, value in values.items():
        metric, _, how = key.partition(",")
        if how and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = values.get(f"{metric}_stderr,{how}")
            known = error if isinstance(error, (int, float)) else None
            found.append({"metric": metric, "filter": how, "value": value, "stderr": known})
    return found


def harness_table(scores: Sequence[Score]) -> list[list[str]]:
    """Rows of a table, the first of them its head."""
    rows = [["task", "harness", "metric", "score", "stderr"]]
    for score in scores:
        metric = score["metric"] if score["filter"] == "none" else f"{score['metric']} ({score['filter']})"
        error = "" if score["stderr"] is None else f"{score['stderr']:.3f}"
        rows.append([score["task"], score["harness"], metric, f"{score['value']:.3f}", error])
    return rows
