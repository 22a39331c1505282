"""Words for people: the nearest thing that would have worked, and tables in columns."""

import json
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

OTHERS_SAY = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lr": "learning_rate",
    "num_train_epochs": "epochs",
    "steps": "max_steps",
    "bs": "batch_size",
    "wd": "weight_decay",
}
"""Words that people bring from elsewhere, and ours for them."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A question naming what lies near `word` in `known`, or nothing."""
    names = sorted(known)
    if OTHERS_SAY.get(word) in names:
        return f"Did you mean {OTHERS_SAY[word]!r}?"
    near = get_close_matches(word, names, n=3, cutoff=0.5)
    return "Did you mean " + " or ".join(repr(name) for name in near) + "?" if near else ""


def suggest(word: str, known: Iterable[str]) -> str:
    """A sentence naming what lies near `word` in `known`, or all of `known` if nothing does."""
    names = sorted(known)
    return nearest(word, names) or "Known: " + (", ".join(names) if names else "none") + "."


def show(text: str) -> None:
    """Print text to standard output; in a terminal with colours, numbers and paths have some."""
    from rich.console import Console

    # Lines keep their length, so that they can be copied. What is no terminal gets the text alone.
    Console(soft_wrap=True, markup=False, emoji=False).print(text)


def tell(as_json: bool, plain: Any, words: Callable[[], str]) -> None:
    """Print plain data as JSON, where that was asked for, or the same in words."""
    if as_json:
        print(json.dumps(plain, indent=2, allow_nan=False))
    else:
        show(words())


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
