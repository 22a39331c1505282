"""The rows of a comparison: what is trained, and how it differs from the recipe.

A row is written as a method and what goes with it, joined by plus signs: `lora`, `mtl_lora[num_ups=1]`,
`lora+ortho_lora`, `lora+running_scale`, `lora+name` (the task's name before the text), `lora+sequence` (one task after
the other), `lora+fused` (tasks alone, averaged).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorachord.balance.make import balance_names
from lorachord.baselines import BASELINES
from lorachord.core.context import Mixing
from lorachord.core.registry import all_methods
from lorachord.messages import suggest
from lorachord.runs.recipe import Recipe
from lorachord.runs.strict import load_yaml
from lorachord.surgery.surgeon import rule_names

REFERENCE = "lora"
"""The row that all others are compared with: joint LoRA."""
NAME = "name"
Mode = Literal["joint", "single", "sequence", "fused"]
MODES: tuple[Mode, ...] = ("sequence", "fused")
"""Modes that a row can have beside its method."""
UNTRAINED, SINGLE, NAMED, HIGH_RANK, FRONT = "untrained", "single", f"{REFERENCE}+{NAME}", "lora, high rank", "front"
HIGH = 4
"""Times the reference's rank that the row of high rank has."""
FRONT_RATIO = 4.0
"""How many times as much as each other task a point of the front of weights lets one task count."""
PATTERN = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<options>[^\[\]]*)\])?")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a comparison.

    Attributes:
        name: as it is shown, unique.
        method: of the recipe: `name`, and options beside it.
        surgery, balance: of the recipe. Default: none.
        mode: of the recipe. Default joint.
        named: whether the task's name stands before each text. Default false.
        weights: of the tasks' losses. Default: as the recipe has them.
        trained: false for the base as it is. Default true.
    """

    name: str
    method: Mapping[str, Any]
    surgery: Mapping[str, Any] | None = None
    balance: Mapping[str, Any] | None = None
    mode: Mode = "joint"
    named: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    trained: bool = True

    @property
    def is_told(self) -> bool:
        """Whether the model knows the task of a text from elsewhere than the text as it came.

        Fused adapters count, since an encoder keeps the head of each.
        """
        if self.named or self.mode in ("single", "fused"):
            return True
        name = self.method["name"]
        return name not in BASELINES and all_methods()[name].mixing is Mixing.TASK

    @property
    def weighs_tasks(self) -> bool:
        """Whether it changes how much each task counts, so that the front of fixed weights is its rival."""
        return self.surgery is not None or self.balance is not None

    def recipe(self, base: Recipe, *, rate: float | None, seed: int) -> Recipe:
        """The recipe of one of its runs.

        Args:
            base: the recipe of the comparison.
            rate: peak learning rate; None for that of the recipe.
        """
        training = base.training if rate is None else replace(base.training, learning_rate=rate)
        if not self.trained:
            training = replace(training, epochs=None, max_steps=0)
        tasks = replace(base.tasks, name_in_text=self.named or base.tasks.name_in_text)
        if self.weights:
            tasks = replace(tasks, weights=dict(self.weights))
        return replace(
            base,
            method=dict(self.method),
            surgery=None if self.surgery is None else dict(self.surgery),
            balance=None if self.balance is None else dict(self.balance),
            mode=self.mode,
            tasks=tasks,
            training=training,
            seed=seed,
        )


def parse_row(text: str, recipe: Recipe) -> Row:
    """A row from its words.

    The options that the recipe gives its own method hold for that method's rows; the layers that it adapts and its
    dropout for those of all methods.

    Raises:
        ValueError: an unknown method, rule, balance or option; the nearest is named.
    """
    first, *others = _split(text, "+")
    name, options = _named(first)
    known = [*all_methods(), *BASELINES]
    if name not in known:
        raise ValueError(f"{text!r}: there is no method {name!r}. {suggest(name, [*known, SINGLE])}")
    made: dict[str, Any] = {"name": text, "method": {**_shared(recipe, name), "name": name, **options}}
    for part in others:
        word, settings = _named(part)
        if word == NAME and not settings:
            made["named"] = True
        elif word in MODES and not settings:
            made["mode"] = word
        elif word in rule_names():
            made["surgery"] = {"rule": word, **settings}
        elif word in balance_names():
            made["balance"] = {"name": word, **settings}
        else:
            near = suggest(word, [NAME, *MODES, *rule_names(), *balance_names()])
            raise ValueError(f"{text!r}: {word!r} is no rule of surgery, no balance and not {NAME!r}. {near}")
    return Row(**made)


def standing_rows(recipe: Recipe) -> tuple[Row, ...]:
    """The rows that every comparison has: without them a lead says little.

    The base untrained, LoRA for each task alone, joint LoRA, the same with the task's name before the text, and joint
    LoRA of high rank. The front of fixed task weights is made when the reference's rate is known; see `front_rows`.
    Where the recipe is a sequence, LoRA that learns one task after the other, and LoRAs of tasks alone, fused, as well.
    """
    plain = _shared(recipe, REFERENCE) | {"name": REFERENCE}
    rows = (
        Row(name=UNTRAINED, method=plain, trained=False),
        Row(name=REFERENCE, method=plain),
        Row(name=NAMED, method=plain, named=True),
        Row(name=SINGLE, method=plain, mode="single"),
        Row(name=HIGH_RANK, method=plain),
    )
    later = tuple(Row(name=f"{REFERENCE}+{mode}", method=plain, mode=mode) for mode in MODES)
    return (*rows, *(later if recipe.mode == "sequence" else ()))


def front_rows(
    reference: Row, tasks: Sequence[str], weights: Mapping[str, float], ratios: Sequence[float] = (FRONT_RATIO,)
) -> tuple[Row, ...]:
    """Points of the front of fixed task weights beside equal ones: each lets one task count more than the others.

    Args:
        ratios: how many times as much. Default 4.
        weights: those of the recipe, which these multiply; their mean stays.
    """
    rows = []
    for ratio in ratios:
        scale = len(tasks) / (len(tasks) - 1 + ratio)
        for chosen in tasks:
            own = {task: weights.get(task, 1.0) * scale * (ratio if task == chosen else 1.0) for task in tasks}
            rows.append(replace(reference, name=f"{FRONT}: {chosen} x{ratio:g}", weights=own))
    return tuple(rows)


def _shared(recipe: Recipe, method: str) -> dict[str, Any]:
    """What a recipe says of its method that holds for another."""
    if recipe.method["name"] == method:
        return {key: value for key, value in recipe.method.items() if key != "name"}
    own = (
        set(all_methods()[recipe.method["name"]].Config.__dataclass_fields__) - {"dropout"}
        if (recipe.method["name"] in all_methods())
        else {"r", "alpha", "rslora"}
    )
    return {key: value for key, value in recipe.method.items() if key not in {"name", "calibration", "align", *own}}


def _named(text: str) -> tuple[str, dict[str, Any]]:
    """`name[a=1,b=2]` as a name and options, with YAML's values."""
    match = PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no row: write METHOD, or METHOD[option=value, ...], and join parts by +.")
    options = {}
    for entry in _split(match["options"] or "", ","):
        key, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: write options as option=value; found {entry.strip()!r}.")
        options[key.strip()] = load_yaml(value, f"{key.strip()} of {text!r}")
    return match["name"].strip(), options


def _split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks outside brackets; none of an empty text."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def split_rows(text: str) -> list[str]:
    """The rows of a list with commas, as `--methods` has it."""
    return [part.strip() for part in _split(text, ",")]


def ratios_of(text: str) -> list[float]:
    """The numbers of a list with commas, as `--weights` has it.

    Raises:
        ValueError: no numbers.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--weights takes numbers with commas, as in 2,4,8; got {text!r}.") from None
