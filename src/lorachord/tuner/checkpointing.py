"""Gradient checkpointing that recomputes under the tasks of its own forward.

A recompute runs in the backward pass, when the tasks of that forward may be long gone: two forwards (task 0, task 1)
before one backward would recompute both under task 1 and give wrong gradients without a word. So each checkpointed
call remembers the contexts that it was made under. A context variable alone would not do: autograd may recompute on a
thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lorachord.core.context import NO_CONTEXT, Context
from lorachord.tuner.state import SharedState


class TaskCheckpoint:
    """Stands in for a module's `_gradient_checkpointing_func`, reentrant or not.

    Args:
        checkpoint: the function that it stands in for: called with a function and its arguments.
        state: where the contexts are.
    """

    def __init__(self, checkpoint: Callable[..., Any], state: SharedState) -> None:
        self.checkpoint = checkpoint
        self.state = state

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(_Recall(function, self.state), *args, **kwargs)


class _Recall:
    """Calls a function; again (in recomputes) under the first call's contexts, recording nothing."""

    def __init__(self, function: Callable[..., Any], state: SharedState) -> None:
        self.function = function
        self.state = state
        self.contexts = state.contexts
        self.called = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        again, self.called = self.called, True
        passing = self.state.caller.passing
        current = passing.contexts
        passing.contexts = {name: self._context(name, again) for name in self.state.task_names}
        try:
            return self.function(*args, **kwargs)
        finally:
            passing.contexts = current

    def _context(self, name: str, again: bool) -> Context:
        context = self.contexts.get(name, NO_CONTEXT)
        return replace(context, recording=context.recording and not again)


def is_reentrant(checkpoint: Callable[..., Any]) -> bool:
    """Whether a checkpoint function, as transformers builds it (a partial), asks for the reentrant variant."""
    inner = checkpoint.checkpoint if isinstance(checkpoint, TaskCheckpoint) else checkpoint
    keywords: dict[str, Any] = getattr(inner, "keywords", {})
    return bool(keywords.get("use_reentrant", False))
