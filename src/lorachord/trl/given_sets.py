"""The data sets of several tasks, as TRL's trainers are given them: by name, in one order, each with its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from datasets import Dataset  # type: ignore[import-untyped]

from lorachord.messages import nearest, suggest

Sets: TypeAlias = "Mapping[str, Dataset | Sequence[Mapping[str, Any]]] | Dataset"
"""The rows of each task by its name, or one Dataset with a column `task` that names each row's."""
TASK = "task"
Check: TypeAlias = Callable[[str, Dataset], None]


def by_task(sets: Sets, names: Sequence[str] | None, what: str, *, all_tasks: bool = True) -> dict[str, Dataset]:
    """The data set of each task, in the order of the tasks.

    Args:
        names: of the adapter's tasks. Default: those of the sets, in their order.
        what: is given, for errors.
        all_tasks: whether each task needs rows. Default true.

    Raises:
        ValueError: something else than data sets by task; an unknown task, or one without rows.
    """
    found = {name: _dataset(rows, f"{what}[{name!r}]") for name, rows in _parts(sets, what).items()}
    names = list(found) if names is None else list(names)
    for name, rows in found.items():
        if name not in names:
            raise ValueError(f"{what} has rows of {name!r}, which is none of the tasks. {suggest(name, names)}")
        if not len(rows):
            raise ValueError(f"{what} has no rows of {name!r}: leave the task out, or give it some.")
    missing = [name for name in names if name not in found]
    if missing and all_tasks:
        raise ValueError(f"{what} has no rows of {', '.join(missing)}; give rows of every task.")
    return {name: found[name] for name in names if name in found}


def _parts(sets: Sets, what: str) -> dict[str, Any]:
    if isinstance(sets, Mapping):
        return dict(sets)
    if isinstance(sets, Dataset):
        if TASK not in sets.column_names:
            raise ValueError(
                f"{what} is one Dataset without a column 'task' ({', '.join(sets.column_names)}): give a Dataset for "
                "each task, {name: dataset}, or add the column, which names the task of each row."
            )
        own: dict[str, list[int]] = {}
        for row, name in enumerate(sets[TASK]):
            if not isinstance(name, str):
                raise ValueError(f"Row {row} (from 0) of {what}: 'task' must hold a task's name; it holds {name!r}.")
            own.setdefault(name, []).append(row)
        rest = sets.remove_columns(TASK)
        return {name: rest.select(rows) for name, rows in own.items()}
    raise ValueError(f"{what} is a {type(sets).__name__}; give the data set of each task: {{name: dataset}}.")


def _dataset(rows: Any, what: str) -> Dataset:
    if isinstance(rows, Dataset):
        return rows
    if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
        return Dataset.from_list(rows)
    raise ValueError(f"{what} is a {type(rows).__name__}; give a datasets.Dataset, or a list of dicts, one a row.")


def check_instructions(name: str, rows: Dataset, text: str) -> None:
    """Whether rows have the columns of an instruction set, and an assistant's turn in every chat.

    Args:
        name: of the task.
        text: the column of plain texts.

    Raises:
        ValueError: they have not; the message names the row or the columns.
    """
    columns = rows.column_names
    if "input_ids" in columns:
        return
    if "prompt" in columns and "completion" in columns:
        _check_pairs(name, rows, "prompt", ("completion",))
    elif "messages" in columns or "conversations" in columns:
        column = "messages" if "messages" in columns else "conversations"
        for position, messages in enumerate(rows[column]):
            if "assistant" not in _roles(messages, name, position, column):
                raise _row(name, position, f"the chat in {column!r} has no turn of the assistant, so nothing to learn.")
    elif text in columns:
        _check_texts(name, rows, text)
    else:
        wanted = ("messages", "prompt", "completion", text)
        near = " ".join(filter(None, (nearest(column, wanted) for column in columns)))
        raise ValueError(
            f"Task {name!r}: an instruction set has the columns 'messages', or 'prompt' and 'completion', or {text!r} "
            f"(dataset_text_field); this one has {', '.join(columns)}. {near}".strip()
        )


def check_preferences(name: str, rows: Dataset) -> None:
    """Whether rows have the columns of preferences: `chosen` and `rejected`, with or without `prompt`.

    Raises:
        ValueError: they have not; the message names the row or the columns.
    """
    columns = rows.column_names
    for column in ("chosen", "rejected"):
        if column not in columns:
            raise ValueError(
                f"Task {name!r}: preferences have the columns 'chosen' and 'rejected', and 'prompt' where these do not "
                f"begin with it; this one has {', '.join(columns)}."
            )
    _check_pairs(name, rows, "prompt" if "prompt" in columns else None, ("chosen", "rejected"))


def is_chat(rows: Dataset) -> bool:
    """Whether rows are conversations, which need a chat template."""
    first = rows[0]
    asked = (first.get(column) for column in ("messages", "conversations", "prompt", "chosen"))
    return "input_ids" not in first and any(isinstance(value, list) for value in asked)


def _check_pairs(name: str, rows: Dataset, prompt: str | None, answers: Iterable[str]) -> None:
    for column in answers:
        prompts = rows[prompt] if prompt is not None else [None] * len(rows)
        for position, (asked, answer) in enumerate(zip(prompts, rows[column], strict=True)):
            if isinstance(answer, str) and (asked is None or isinstance(asked, str)):
                continue
            if asked is not None and isinstance(asked, str) is not isinstance(answer, str):
                raise _row(name, position, f"{prompt!r} and {column!r} must both be texts, or both lists of messages.")
            if asked is not None:
                _roles(asked, name, position, str(prompt))
            if _roles(answer, name, position, column)[-1] != "assistant":
                raise _row(name, position, f"{column!r} must end with a turn of the assistant.")


def _check_texts(name: str, rows: Dataset, column: str) -> None:
    for position, text in enumerate(rows[column]):
        if not isinstance(text, str):
            raise _row(name, position, f"column {column!r} must hold text; it holds {text!r}.")


def _roles(messages: Any, name: str, position: int, column: str) -> list[str]:
    """Who speaks in each turn."""
    if not isinstance(messages, list) or not messages:
        raise _row(name, position, f"column {column!r} must hold a list of messages; it holds {messages!r}.")
    roles = []
    for message in messages:
        role = (message.get("role") or message.get("from")) if isinstance(message, Mapping) else None
        if not isinstance(role, str):
            raise _row(name, position, f"a message has a 'role' and a 'content'; found {message!r}.")
        # ShareGPT's word.
        roles.append("assistant" if role == "gpt" else role)
    return roles


def _row(name: str, position: int, message: str) -> ValueError:
    return ValueError(f"Task {name!r}, row {position} (from 0): {message}")
