"""Chats: the turns of a conversation, the last of which is the assistant's answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Turns = list[dict[str, str]]
ROLES = {"human": "user", "gpt": "assistant"}
"""The words of chats whose turns have `from` and `value`, in transformers' own."""


def turns_of(value: Any, role: str) -> Turns:
    """The turns of a chat.

    Args:
        value: a list of messages with `role` and `content` (or `from` and `value`); or a text, a turn by itself.
        role: of a text.

    Raises:
        ValueError: it is neither; the message goes on behind the name of a column.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"must hold a list of messages or a text; it holds {value!r}.")
    return [_turn(message) for message in value]


def _turn(message: Any) -> dict[str, str]:
    found = message if isinstance(message, Mapping) else {}
    role, content = (found.get(key) or found.get(other) for key, other in (("role", "from"), ("content", "value")))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"has a message without texts as its 'role' and 'content': {message!r}.")
    return {"role": ROLES.get(role, role), "content": content}


def asked_and_answer(turns: Turns) -> tuple[Turns, str | None]:
    """The turns before the answer, and the answer; None where the last turn is not the assistant's."""
    if turns[-1]["role"] != "assistant":
        return turns, None
    return turns[:-1], turns[-1]["content"]


def with_prefix(turns: Turns, prefix: str) -> Turns:
    """A text before the first turn of the user."""
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), None)
    return [
        {**turn, "content": prefix + turn["content"]} if place == first else turn for place, turn in enumerate(turns)
    ]


def to_text(turns: Turns) -> str:
    """Turns as one text, the column `first` of an example."""
    return json.dumps(turns, ensure_ascii=False)


def from_text(text: str) -> Turns:
    """The turns in the column `first` of an example."""
    turns: Turns = json.loads(text)
    return turns
