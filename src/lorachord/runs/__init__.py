"""From a recipe to trained, scored and exported adapters in a run folder: the work behind the command line.

A recipe (`recipe.py`) is a YAML file; `keys.py` documents its keys. `train.train` makes a run folder of it
(`folder.py`): the recipe, the adapter, predictions, `metrics.json`, a log. `use.py` opens a finished run:
`predictions`, `evaluate`, `export_run`, `merge_run`. `beside.py` and `paired.py` compare runs by the statistics of
`compare`, `fuse.py` fuses them.

On a run's way: `checks.py` refuses a recipe before anything is loaded, `tasksets.py` reads the rows, `model.py` loads
the base and attaches the adapter, `calibrating.py` fits methods to their tasks, `train.py` trains and scores.

>>> from lorachord.runs import recipe_from
>>> recipe = recipe_from(
...     {
...         "model": {"name": "minilm", "kind": "encoder"},
...         "tasks": {"suite": "glue", "only": ["glue_cola", "glue_sst2"]},
...         "method": {"name": "lora", "r": 4},
...         "training": {"epochs": 3},
...     }
... )
>>> recipe.method["r"], recipe.training.batch_size, [task.name for task in recipe.tasks.chosen()]
(4, 32, ['glue_cola', 'glue_sst2'])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import Recipe, read_recipe, recipe_from

if TYPE_CHECKING:
    from lorachord.runs.use import evaluate, export_run, load_run, merge_run, predictions

__all__ = [
    "Recipe",
    "RunFolder",
    "evaluate",
    "export_run",
    "load_run",
    "merge_run",
    "predictions",
    "read_recipe",
    "recipe_from",
]


def __getattr__(name: str) -> Any:
    # transformers takes seconds to import, and a recipe is read without it.
    if name in ("evaluate", "export_run", "load_run", "merge_run", "predictions"):
        return getattr(import_module("lorachord.runs.use"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
