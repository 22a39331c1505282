"""Whose tasks a pass has: its caller's.

An `on_task` block belongs to the thread or coroutine that entered it, and to those that run in a copy of its context
(`asyncio.create_task`, `asyncio.to_thread`), until it is left. Others have their own, or none. So the open blocks are
in a context variable.

A pass that has begun belongs to its thread: nothing else runs there before it ends. So what the layers read is in a
thread-local, which a compiled model may read without a break in its graph, and which a checkpoint's recompute sets on
autograd's own threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lorachord.core.context import Context
from lorachord.core.prepared import Store

Contexts = dict[str, Context]


@dataclass(frozen=True, slots=True)
class Given:
    """What `on_task` says of the prompts: True for their tokens (B, L), and their embeddings (B, F)."""

    mask_BL: Tensor | None = None
    embedding_BF: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """What one `on_task` block says to one model.

    Attributes:
        contexts: the tasks, by adapter; replaced, never changed.
        given: the prompts.
        prepared: where its passes over single tokens keep what they make of the weights; None keeps nothing.
    """

    contexts: Contexts = field(default_factory=dict)
    given: Given = Given()
    prepared: Store | None = None


class _Block:
    """An `on_task` block; closed, it counts nowhere any more, whoever leaves it and in whatever order."""

    def __init__(self, named: Mapping[Caller, Named]) -> None:
        self.named = dict(named)
        self.open = True


_NOTHING = Named()
_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("lorachord_on_task", default=())


class _Pass(threading.local):
    """The pass under way in this thread.

    Attributes:
        contexts: those of the pass, or of the prompts while `generate` prepares its first; None outside of one.
        generating: whether `generate` is under way, which may repeat each of its samples in place.
        embedding: whether it is a pass of the frozen base alone, in which no adapter acts.
        pending: what it keeps of the prompts, where there is no cache yet to put it on.
    """

    contexts: Contexts | None = None
    generating = False
    embedding = False
    pending: Contexts = {}


class Caller:
    """What differs between those who call one model at the same time."""

    def __init__(self) -> None:
        self.passing = _Pass()

    @property
    def named(self) -> Named:
        """What the caller's innermost block says to this model."""
        for block in reversed(_blocks.get()):
            if block.open and self in block.named:
                return block.named[self]
        return _NOTHING

    def __deepcopy__(self, memo: dict[int, Any]) -> Caller:
        """That of a copy of the model, which is in the caller's blocks too, as long as they are open."""
        made = Caller()
        for block in _blocks.get():
            if self in block.named:
                block.named[made] = block.named[self]
        return made

    def __reduce__(self) -> Any:
        # Elsewhere the model has no callers yet.
        return Caller, ()


@contextmanager
def naming(named: Mapping[Caller, Named]) -> Iterator[None]:
    """Within this block these models have these tasks and prompts, for this caller."""
    block = _Block(named)
    _blocks.set((*_still_open(), block))
    try:
        yield
    finally:
        block.open = False
        _blocks.set(_still_open())


def _still_open() -> tuple[_Block, ...]:
    return tuple(block for block in _blocks.get() if block.open)
