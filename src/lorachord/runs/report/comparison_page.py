"""The page of a comparison: the verdict first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorachord.runs.compare.comparison import PLAN, Comparison, load_comparison
from lorachord.runs.compare.comparison_drawings import WHOLE
from lorachord.runs.compare.tables import claim_rows, columns, main_rows
from lorachord.runs.compare.trial import Trial
from lorachord.runs.folder import RunFolder
from lorachord.runs.report.contents import Block, Listing, Page, Section, Table, Words, or_words
from lorachord.runs.report.curves import Curve, curves_of, draw_curves
from lorachord.runs.report.run_page import recipe_and_versions
from lorachord.runs.strict import dump_yaml
from lorachord.whole import read_json

BOTH = ("costs", "task_scores", "transfer")
"""Drawings of scores and costs."""
MARKS = (
    "± is half of a 95 % interval, * marks one that leaves out 0. After a rate: e, the best is the last that was "
    "tried; c, at chance with every rate; g, the one rate that was given. Gap: the share of single's lead that a row "
    "recovers."
)


def page_of_comparison(path: Path) -> Page:
    """The verdict, the table with intervals, the drawings, the curves of each task, the recipe.

    Raises:
        ValueError: as `load_comparison`.
    """
    found = load_comparison(path)
    result, drawings = found.result, found.drawings
    tasks = ", ".join(f"{task['name']} ({task['metric']})" for task in result["tasks"])
    verdict: list[Block] = [Words(found.verdict, leads=True)]
    failed = [f"{row['name']} failed: {row['failed']}" for row in result["rows"] if row.get("failed")]
    if result["left_out"]:
        failed.append(f"Left out to save time: {', '.join(result['left_out'])}.")
    verdict += [Words(words) for words in failed]
    sections = [
        Section("Verdict", verdict),
        Section("Table", _tables(result)),
        Section("Differences", _drawn(drawings, "differences", "No row stands beside joint LoRA yet.")),
        Section(
            "Scores and costs", [drawings[name] for name in ("costs", "task_scores", "transfer") if name in drawings]
        ),
        Section("Training", or_words(lambda: _curves(found))),
        Section("Learning rates", _drawn(drawings, "rates", "No row had several rates to choose from.")),
        Section("Recipe and versions", or_words(lambda: _recipe(found))),
    ]
    kind = f"{len(result['rows'])} rows, {len(result['seeds'])} seeds, on {tasks}"
    return Page(f"Comparison {found.path.absolute().name}", kind, [own for own in sections if own.blocks])


def _drawn(drawings: Mapping[str, Any], name: str, otherwise: str) -> list[Block]:
    return [drawings[name]] if name in drawings else [Words(otherwise)]


def _tables(result: Mapping[str, Any]) -> list[Block]:
    rows = main_rows(result, WHOLE)
    if len(rows) == 1:
        return [Words("No row is finished.")]
    blocks: list[Block] = [Table("Means over seeds; differences from joint LoRA", rows), Words(MARKS)]
    claims = claim_rows(result, WHOLE)
    if len(claims) > 1:
        blocks.append(Table("Claims, with intervals corrected for their number", claims))
    header, cells = columns(result)
    return [*blocks, Table("All columns", [header, *cells], folded=True)]


def _curves(found: Comparison) -> list[Block]:
    """A drawing for each task: the loss of the rows at their chosen rates, with the first seed."""
    by_task: dict[str, dict[str, Curve]] = {task["name"]: {} for task in found.result["tasks"]}
    for row in found.result["rows"]:
        run = _run(found, row)
        for task, curve in ({} if run is None else curves_of(run, "loss_")).items():
            by_task[task][row["name"]] = curve
    meaning = "Each row at its chosen rate, with the first seed. `single` is a LoRA for each task alone."
    drawings: list[Block] = [
        draw_curves(f"losses_{at}", f"Training loss on {task}", "loss", curves, meaning)
        for at, (task, curves) in enumerate(by_task.items())
        if curves
    ]
    return drawings or [Words("The folders of the trials are gone, and the training curves with them.")]


def _run(found: Comparison, row: Mapping[str, Any]) -> RunFolder | None:
    """The run of a row with its chosen rate and the first seed, where it was trained and is still there."""
    if row["rate"] is None:
        return None
    trial = Trial(row=row["name"], rate=row["rate"], seed=found.result["seeds"][0])
    path = found.path / trial.path
    return RunFolder.open(path) if (path / "recipe.yaml").is_file() else None


def _recipe(found: Comparison) -> list[Block]:
    plan = read_json(found.path / PLAN, ("recipe",))
    blocks: list[Block] = [Listing("The recipe of joint LoRA, with every default", dump_yaml(plan["recipe"]))]
    run = next((run for run in (_run(found, row) for row in found.result["rows"]) if run is not None), None)
    if run is None:
        return [*blocks, Words("The folders of the trials are gone, and the versions of packages with them.")]
    return [*blocks, *recipe_and_versions(run.path)[1:]]
