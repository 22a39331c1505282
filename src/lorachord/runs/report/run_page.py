"""The page of a run, and of an adapter that is no run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorachord.runs.constants import constant_scores
from lorachord.runs.folder import RunFolder
from lorachord.runs.inspect import Inspection, inspect
from lorachord.runs.report.contents import Block, Listing, Page, Section, Table, Words, or_words
from lorachord.runs.report.curves import draw_losses, draw_scores_on_val
from lorachord.runs.report.scores_drawing import draw_scores
from lorachord.runs.report.sequence_drawing import draw_stages
from lorachord.runs.scores import score_rows
from lorachord.runs.use import open_run, predictions
from lorachord.whole import read_json

ORDER = ("conflicts", "spectra", "beside", "overlap", "routing", "task_ranks", "masks", "interference")
"""Of the figures of an inspection on a page."""


def page_of_run(path: Path, how: dict[str, Any]) -> Page:
    """Scores, training curves, the figures of the adapter, the recipe.

    Args:
        path: of a finished run.
        how: of `inspect`.

    Raises:
        ValueError: the run is not finished, or its files are damaged.
    """
    run = open_run(path)
    recipe, scores = run.recipe, read_json(run.path / "metrics.json", ("dev",))
    kind = f"{recipe.method['name']}, {recipe.mode}, seed {recipe.seed}, on {recipe.model.name}"
    stages = or_words(lambda: [draw_stages(scores)]) if recipe.mode == "sequence" else []
    sections = [
        Section("Scores", [*_scores(run, scores["dev"]), *stages]),
        Section("Training", or_words(lambda: _curves(run))),
        Section("What the adapter does", or_words(lambda: seen(inspect(path, **how)))),
        Section("Data", or_words(lambda: [_data(scores)])),
        Section("Recipe and versions", or_words(lambda: recipe_and_versions(run.path))),
    ]
    return Page(f"Run {run.path.absolute().name}", kind, sections)


def page_of_adapter(path: Path, how: dict[str, Any]) -> Page:
    """The figures of a plain LoRA, or of a folder of them.

    Raises:
        ValueError: as `inspect`.
    """
    found = inspect(path, **how)
    return Page(f"Adapter {path.absolute().name}", "a plain LoRA", [Section("What the adapter does", seen(found))])


def seen(found: Inspection) -> list[Block]:
    """The drawings of an inspection, and a sentence for each that is missing."""
    drawings = found.drawings
    blocks: list[Block] = [drawings[name] for name in ORDER if name in drawings]
    return [*blocks, *(Words(f"No {name.replace('_', ' ')}: {reason}") for name, reason in found.absent.items())]


def recipe_and_versions(path: Path) -> list[Block]:
    """The recipe of a run as it was run, and the versions of what ran it."""
    environment = read_json(path / "environment.json", ("versions", "platform"))
    rows = [["package", "version"], *([name, str(version)] for name, version in environment["versions"].items())]
    rows.append(["platform", str(environment["platform"])])
    recipe = (path / "recipe.yaml").read_text(encoding="utf-8")
    return [Listing("The whole recipe, with every default", recipe), Table("Versions", rows, folded=True)]


def _scores(run: RunFolder, scores: dict[str, Any]) -> list[Block]:
    worst = min(scores["tasks"], key=lambda task: scores["tasks"][task]["score"])
    lead = f"The mean score on dev is {scores['mean']:.3f}; the worst is {scores['worst']:.3f}, on {worst}."

    def beside() -> Sequence[Block]:
        constants = constant_scores(run.recipe.tasks.chosen(), predictions(run.path))
        rows = score_rows(scores, constants)
        return [Table("Scores on dev", rows), draw_scores(scores, constants, rows)]

    return [Words(lead, leads=True), *or_words(beside)]


def _curves(run: RunFolder) -> list[Block]:
    on_val = draw_scores_on_val(run)
    otherwise = Words("The run was not scored on val while it trained; `training.eval_every` asks for that.")
    return [draw_losses(run), otherwise if on_val is None else on_val]


def _data(metrics: dict[str, Any]) -> Table:
    """What the run found out about its rows before training."""
    if "data" not in metrics:
        raise ValueError("The run says nothing about its data.")
    rows = [["task", "split", "rows", "duplicates", "contradictions", "also in an earlier split", "texts cut"]]
    for task, splits in metrics["data"]["tasks"].items():
        for split, told in splits.items():
            cut = told.get("lengths") or {}
            counts = [told.get(key) for key in ("rows", "duplicates", "contradictions", "leaked")]
            cells = ["-" if count is None else f"{count:,}" for count in (*counts, cut.get("cut"))]
            rows.append([task, split, *cells])
    return Table("Rows, and what is odd about them", rows, folded=True)
