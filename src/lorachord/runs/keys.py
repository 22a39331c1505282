"""The page of every key of a recipe, from the docstrings and fields of the classes that read them.

python -m lorachord.runs.keys > docs/recipe_keys.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lorachord.data.metrics import METRICS, score
from lorachord.data.task import Source, Task
from lorachord.runs.parts import EvaluationPart, LabPart, MixturePart, ModelPart, TasksPart, TrainingPart
from lorachord.runs.recipe import Recipe

SECTIONS: dict[str, type] = {
    "The recipe": Recipe,
    "model": ModelPart,
    "tasks": TasksPart,
    "tasks.own": Task,
    "tasks.own.source": Source,
    "tasks.lab": LabPart,
    "mixture": MixturePart,
    "training": TrainingPart,
    "evaluation": EvaluationPart,
}
"""By the heading: the class whose fields are the keys."""
HEAD = """# Every key of a recipe

Generated from the docstrings by `python -m lorachord.runs.keys`; `docs/recipes.md` has examples. A key without a
default has to be given. `lorachord methods --json` prints the options of `method`.
"""
WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}


def recipe_keys() -> str:
    """The page, as Markdown."""
    parts = [HEAD]
    for title, kind in SECTIONS.items():
        rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
        documented = arguments(kind)
        for spec in fields(kind):
            hint = get_type_hints(kind)[spec.name]
            cells = [f"`{spec.name}`", _words(hint), _default(spec), documented[spec.name]]
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append(f"## {title}\n\n" + "\n".join(rows) + "\n")
    return "\n".join([*parts, _metrics()])


def arguments(documented: type) -> dict[str, str]:
    """The text of each argument in a class's docstring."""
    text = inspect.getdoc(documented) or ""
    [block] = re.findall(r"^Args:\n((?:    .*\n?)+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n    (?! )", "\n" + block.rstrip())[1:]:
        names, _, meaning = entry.partition(":")
        for name in names.split(","):
            found[name.strip()] = " ".join(meaning.split())
    return found


def _words(hint: Any) -> str:
    """A type in the words of YAML."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_words(kind) for kind in inner if kind is not NoneType)
    if origin in (tuple, Sequence) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"list of {_plural(_words(inner[0]))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping to {_plural(_words(inner[1]))}"
    return "keys of its own, below" if is_dataclass(hint) else WORDS[hint]


def _plural(words: str) -> str:
    first, _, rest = words.partition(" ")
    return f"{first}s {rest}".strip() if first in ("integer", "number", "text", "list", "value") else words


def _default(spec: Field[Any]) -> str:
    value = spec.default
    if spec.default_factory is not MISSING:
        value = spec.default_factory()
    if value is MISSING:
        return ""
    if is_dataclass(value):
        return "its defaults"
    if value is None or value in ("", (), {}):
        # What that means is in the text.
        return "none"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _metrics() -> str:
    rows = ["| metric | kinds of tasks |", "|---|---|"]
    rows += [f"| `{name}` | {', '.join(metric.kinds)} |" for name, metric in METRICS.items()]
    text = inspect.getdoc(score) or ""
    listed = text[text.index("\n- ") : text.index("\n\nArgs:")].strip()
    return "## Metrics\n\n" + "\n".join(rows) + f"\n\nHigher is better, and 1 the most.\n\n{listed}\n"


if __name__ == "__main__":
    print(recipe_keys(), end="")
