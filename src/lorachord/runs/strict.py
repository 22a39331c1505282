"""Strict YAML: into typed dataclasses, or an error that names the path, what was found and what was expected.

The checking is pydantic's; `yaml_loader.py` bounds what YAML lets through, and this file adds near names.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from lorachord.messages import suggest
from lorachord.runs.yaml_loader import Dumper, Loader

Built = TypeVar("Built")
Path = tuple[int | str, ...]


def load_yaml(text: str, where: str) -> Any:
    """Plain data from YAML.

    Args:
        where: what the text is, for errors.

    Raises:
        ValueError: no YAML, or a key twice in one mapping.
    """
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def dump_yaml(tree: Any) -> str:
    """YAML that `load_yaml` reads back as it was, in the order of the keys."""
    text: str = yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text


def with_settings(tree: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of a tree of mappings with `a.b=value` set, the value being YAML; missing mappings are made.

    Raises:
        ValueError: no `=`, or a path through something that is no mapping.
    """
    made: dict[str, Any] = copy.deepcopy(dict(tree))
    for setting in settings:
        path, found, text = setting.partition("=")
        if not found or not path:
            raise ValueError(f"A setting is written path=value, as in training.learning_rate=1e-3; got {setting!r}.")
        *parents, last = path.split(".")
        place = made
        for depth, parent in enumerate(parents):
            inner = place.get(parent)
            if inner is None:
                inner = place[parent] = {}
            if not isinstance(inner, dict):
                raise ValueError(f"{'.'.join(parents[: depth + 1])} is {inner!r}, so {path} cannot be set inside it.")
            place = inner
        place[last] = load_yaml(text, f"the value of {path}")
    return made


def build(kind: type[Built], tree: Any, where: str) -> Built:
    """A typed tree of dataclasses from plain data.

    Args:
        where: what the data are, for errors.

    Raises:
        ValueError: everything that is wrong with it, one line each: the path, what was found, what was expected; an
            unknown key with its nearest neighbour.
    """
    try:
        text = json.dumps(tree)
    except (TypeError, RecursionError, ValueError) as error:
        raise ValueError(f"{where}: {error}; write dates and the like in quotes.") from None
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        lines = [_line(kind, problem) for problem in error.errors(include_url=False)]
        raise ValueError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _line(kind: type, problem: Mapping[str, Any]) -> str:
    path: Path = problem["loc"]
    shown = ".".join(map(str, path)) or "the whole"
    message, found = problem["msg"], problem["input"]
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{shown}: there is no such key. {suggest(str(path[-1]), _keys(kind, path[:-1]))}"
    if problem["type"] == "missing":
        return f"{shown}: missing; give it a value."
    if problem["type"] == "value_error":
        return f"{shown}: {message.removeprefix('Value error, ')}"
    return f"{shown}: {message.replace('Input should be', 'must be')}; found {found!r}."


def _keys(kind: Any, path: Path) -> list[str]:
    """The keys known at a path; none where it does not lead to one dataclass."""
    for step in path:
        # A position in a tuple: its type was found with the tuple's own.
        if isinstance(step, str):
            kind = get_type_hints(kind).get(step) if is_dataclass(kind) else None
            kind = next((inner for inner in (kind, *get_args(kind)) if is_dataclass(inner)), None)
    return [spec.name for spec in fields(kind)] if is_dataclass(kind) else []
