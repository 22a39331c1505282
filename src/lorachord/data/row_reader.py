"""From a source's row to an example with normalised columns, with every fault named by its row, value and place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from lorachord.data.chats import Turns, asked_and_answer, to_text, turns_of, with_prefix
from lorachord.data.class_labels import index, named, number, plain
from lorachord.data.files import other_separator
from lorachord.data.metrics import WRITTEN
from lorachord.data.task import Source, Task
from lorachord.messages import nearest, suggest

Example = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowReader:
    """
    Attributes:
        task: whose columns are read.
        source: how they are called there.
        where: what the rows are, for errors: "train of task 'cola' (/data/cola/train.csv)".
    """

    task: Task
    source: Source
    where: str

    def example(self, row: Mapping[str, Any], position: int) -> Example:
        """The normalised columns of a row.

        `first`, `second` (str; "" if there is no second), `label` (class or option index, number, or text), `choices`
        (list[str], multiple_choice only) and `idx` (the source's own integer `idx`, else the position).

        Raises:
            ValueError: a column is missing or holds something else than the kind of the task needs.
        """
        example = self.inputs(row, position)
        example["label"] = self._label(row, position, example.get("choices", self.task.labels))
        own = row.get("idx")
        example["idx"] = int(own) if not isinstance(own, bool) and isinstance(own, Integral) else position
        return example

    def inputs(self, row: Mapping[str, Any], position: int) -> Example:
        """The same of a row that need have no label: its texts and options alone.

        Raises:
            ValueError: as `example`.
        """
        if self.task.kind == "chat":
            turns, _ = self._chat(row, position)
            return {"first": to_text(with_prefix(turns, self.task.prefix)), "second": ""}
        texts = [self._text(row, position, column) for column in self.task.text_columns]
        example: Example = {"first": self.task.prefix + texts[0], "second": texts[1] if len(texts) == 2 else ""}
        if self.task.kind == "multiple_choice":
            example["choices"] = self._options(row, position)
        return example

    def raw_label(self, row: Mapping[str, Any], position: int) -> Any:
        """The label as it is written in a row; of a chat its answer, or None.

        Raises:
            ValueError: there is no such column.
        """
        if self.task.kind == "chat":
            return self._answer(row, position)
        return self._value(row, position, self.task.label)

    def unlabelled(self, row: Mapping[str, Any], position: int) -> bool:
        """Whether a row's label is missing: no such column, null, not a number, blank, or -1 that is no class."""
        try:
            value = plain(self.raw_label(row, position))
        except ValueError:
            return True
        # Only a NaN differs from itself.
        if value is None or (isinstance(value, float) and value != value):
            return True
        if isinstance(value, str) and not value.strip():
            return True
        classes = self.task.kind not in ("regression", *WRITTEN)
        known = self.source.label_keys or self.task.labels
        return classes and number(value) == -1 and (isinstance(known, str) or named(value, known) is None)

    def group(self, row: Mapping[str, Any], position: int) -> str:
        """What keeps this row with others when val is drawn: its group columns, whatever their case and spacing."""
        if self.task.kind == "chat" and not self.task.group:
            return " ".join(self.inputs(row, position)["first"].split()).casefold()
        columns = self.task.group or self.task.text_columns[0]
        values = [self._value(row, position, name) for name in ([columns] if isinstance(columns, str) else columns)]
        # A list is a set of options here, whose order says nothing about where the row came from.
        parts = [" ".join(sorted(map(str, value))) if isinstance(value, list) else str(value) for value in values]
        return "\n".join(" ".join(part.split()).casefold() for part in parts)

    def _error(self, position: int, message: str) -> ValueError:
        return ValueError(f"Row {position} (from 0) of {self.where}: {message}")

    def _value(self, row: Mapping[str, Any], position: int, column: str) -> Any:
        names = self.source.columns.get(column, column)
        if isinstance(names, str):
            return self._reach(row, position, names) if names else ""
        return [self._reach(row, position, name) for name in names]

    def _reach(self, row: Mapping[str, Any], position: int, name: str) -> Any:
        if name in row:
            return row[name]
        value: Any = row
        for part in name.split("."):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            elif value is None:
                raise self._error(position, f"column {name!r} is missing: what holds its {part!r} is null there.")
            else:
                found = f"Columns: {', '.join(map(str, row))}."
                said = " ".join(filter(None, (nearest(name, row), found, other_separator(row))))
                raise self._error(position, f"there is no column {name!r}. {said}")
        return value

    def _text(self, row: Mapping[str, Any], position: int, column: str) -> str:
        value = self._value(row, position, column)
        parts = value if isinstance(value, list) else [value]
        for part in parts:
            if not isinstance(part, str):
                raise self._error(position, f"column {column!r} must hold text; it holds {part!r}.")
        return _whole_letters(" ".join(parts))

    def _chat(self, row: Mapping[str, Any], position: int) -> tuple[Turns, str | None]:
        """The turns before the answer; and the answer, where it is in the same column."""
        column = self.task.text_columns[0]
        turns = self._turns(row, position, column, "user")
        asked, answer = asked_and_answer(turns) if len(self.task.text_columns) == 1 else (turns, None)
        if not asked:
            raise self._error(position, f"the chat in {column!r} has no turn before the assistant's answer.")
        return asked, answer

    def _answer(self, row: Mapping[str, Any], position: int) -> str | None:
        """The assistant's last turn."""
        if len(self.task.text_columns) == 1:
            answer = self._chat(row, position)[1]
        else:
            completion = self._turns(row, position, self.task.text_columns[1], "assistant")
            if len(completion) > 1:
                column = self.task.text_columns[1]
                raise self._error(position, f"column {column!r} must hold one turn; others go into the prompt.")
            answer = asked_and_answer(completion)[1]
        return None if answer is None else answer.strip()

    def _turns(self, row: Mapping[str, Any], position: int, column: str, role: str) -> Turns:
        try:
            turns = turns_of(self._value(row, position, column), role)
        except ValueError as error:
            said = str(error)
            raise error if said.startswith("Row ") else self._error(position, f"column {column!r} {said}") from None
        return [{**turn, "content": _whole_letters(turn["content"])} for turn in turns]

    def _options(self, row: Mapping[str, Any], position: int) -> list[str]:
        options = self._value(row, position, self.task.choices)
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise self._error(
                position,
                f"column {self.task.choices!r} must hold a list of texts; it holds {options!r}. If there is a column "
                "per option, name them in the source's columns: {'choices': ('option1', 'option2')}.",
            )
        if len(options) < 2:
            raise self._error(position, f"there must be at least two options to choose from; it has {options!r}.")
        return [_whole_letters(option) for option in options]

    def _label(self, row: Mapping[str, Any], position: int, names: Sequence[str]) -> int | float | str:
        value = self.raw_label(row, position)
        if self.task.kind == "chat" and not value:
            raise self._error(position, "the chat does not end with a turn of the assistant: nothing to learn.")
        if self.task.kind in WRITTEN:
            if not isinstance(value, str):
                raise self._error(position, f"the label must be a text; it is {value!r}.")
            return _whole_letters(value)
        try:
            if self.task.kind == "regression":
                return self._number(value, position)
            return self._index(row, value, position, names)
        except ValueError as error:
            if not self.unlabelled(row, position):
                raise
            raise ValueError(
                f"{error} The label is missing; to leave such rows out, write in the source skip_unlabelled: true."
            ) from None

    def _number(self, value: Any, position: int) -> float:
        value = plain(value)
        if not isinstance(value, bool) and isinstance(value, (str, Real, Decimal)):
            try:
                found = float(value)
            except (ValueError, OverflowError):
                found = math.nan
            if math.isfinite(found):
                return found
        raise self._error(position, f"the label must be a finite number; it is {value!r}.")

    def _index(self, row: Mapping[str, Any], value: Any, position: int, names: Sequence[str]) -> int:
        keys = self.source.label_keys
        if keys:
            listed = [str(key) for key in (self._reach(row, position, keys) if isinstance(keys, str) else keys)]
            found = named(value, listed)
            if found is None:
                raise self._error(position, f"label {value!r} is none of the source's: {', '.join(listed)}.")
            if found >= len(names):
                raise self._error(position, f"label {value!r} is outside {_shown(names)}.")
            return found
        # A row's options are no names: a number among them says which option it is, whatever numbers these hold.
        options = self.task.kind == "multiple_choice"
        found = None if options and number(value) is not None else named(value, names)
        return found if found is not None else self._whole(value, position, names, own_numbers=not options)

    def _whole(self, value: Any, position: int, names: Sequence[str], *, own_numbers: bool) -> int:
        """The index that a label is which is no name."""
        whole = index(value, names)
        if whole is not None and own_numbers and any(number(name) is not None for name in names):
            raise self._error(
                position,
                f"label {value!r} is none of the names {', '.join(names)}, which are numbers themselves. If the labels "
                "are indices, list them in the source, in the order of the names: label_keys=('0', '1', ...).",
            )
        if whole is None:
            near = suggest(value, names) if isinstance(value, str) and self.task.labels else ""
            raise self._error(position, f"label {value!r} is neither an index nor the name of {_shown(names)}. {near}")
        if not 0 <= whole < len(names):
            hint = " -1 often marks rows without labels: name another split." if whole == -1 else ""
            raise self._error(position, f"label {value!r} is outside {_shown(names)}.{hint}")
        return int(whole)


def _whole_letters(text: str) -> str:
    """A text whose halves of characters (lone surrogates, left by cutting) are replaced, for no format holds them."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(f"{index} = {name}" for index, name in enumerate(names))
