"""The README of a run folder: what the run is, and the commands that repeat and use it, in any directory."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from shlex import quote

from lorachord.core.context import Mixing
from lorachord.core.registry import all_methods
from lorachord.runs.recipe import Recipe


def run_readme(path: Path, recipe: Recipe, data_dir: str | None, packages: Sequence[str]) -> str:
    """The text.

    Args:
        path: the run's folder, absolute.
        data_dir: where the data lie, absolute; None for the tasks' own sources.
        packages: whose versions the run is repeated with.
    """
    data = "" if data_dir is None else f" --data {quote(data_dir)}"
    # Without the build's own suffix (2.13.0+cpu), which no index has.
    pins = " ".join(f"{name}=={version(name).partition('+')[0]}" for name in packages)
    again = [f"pip install {pins}", f"lorachord train {quote(str(path / 'recipe.yaml'))}{data} --out AGAIN"]
    first = recipe.tasks.chosen()[0].name
    use = [
        f"lorachord evaluate {quote(str(path))} --split dev",
        f"lorachord predict {quote(str(path))} --task {quote(first)} --input NEW.csv --out ANSWERS.csv",
        *_leaving(path, recipe),
    ]
    return (
        f"# {recipe.method['name']} on {recipe.model.name}, {recipe.mode}, seed {recipe.seed}\n\n"
        f"Made by LoRAchord. To repeat it:\n\n{_block(again)}\n"
        "`environment.json` has all versions. On another machine or with other versions, rounding may differ.\n\n"
        f"To use it:\n\n{_block(use)}"
    )


def _block(commands: Sequence[str]) -> str:
    lines = "".join(f"{command}\n" for command in commands)
    return f"```\n{lines}```\n"


def _leaving(path: Path, recipe: Recipe) -> list[str]:
    """The commands that export and merge; none for a method that does neither."""
    method = all_methods().get(recipe.method["name"])
    mixing = Mixing.STATIC if method is None else method.mixing
    if mixing is Mixing.INPUT:
        return []
    first = recipe.tasks.chosen()[0].name
    merged, task = path, ""
    if recipe.mode == "single":
        merged = path / first
    elif mixing is Mixing.TASK or (recipe.model.kind == "encoder" and recipe.model.heads == "per_task"):
        task = f" --task {quote(first)}"
    return [
        f"lorachord export {quote(str(path))} --out LORA",
        f"lorachord merge {quote(str(merged))} --out MODEL{task}",
    ]
