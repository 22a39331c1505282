"""`generate` of a model with adapters: the one road on which a sample becomes several rows of the batch.

Beams and several returned texts repeat each sample in place, inside of `generate`. A plain forward pass over twice as
many samples as have a task looks the same, and is a mistake. So `generate` itself, on the model that was injected into,
says that it is under way. It also encodes images, and the input of an encoder, before its first forward pass: these get
the contexts of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lorachord.tuner.callers import Contexts, naming
from lorachord.tuner.state import SharedState

WithBatch = Callable[[nn.Module, Mapping[str, Any], Contexts], Contexts]


class Generate:
    """Stands in for a model's `generate`.

    Args:
        model: the model that was injected into.
        state: what its layers share.
        with_batch: makes the contexts of a pass over given inputs from those that are named.
    """

    def __init__(self, model: nn.Module, state: SharedState, with_batch: WithBatch) -> None:
        self.generate: Callable[..., Any] = model.generate  # type: ignore[assignment]
        self.model = model
        self.state = state
        self.with_batch = with_batch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `generate`.

        Raises:
            ValueError: tasks were named for another number of samples than there are prompts.
        """
        caller, passing = self.state.caller, self.state.caller.passing
        generating, contexts = passing.generating, passing.contexts
        inputs = dict(zip(("input_ids",), args, strict=False)) | kwargs
        inputs.setdefault("input_ids", inputs.get("inputs"))
        passing.contexts = self.with_batch(self.model, inputs, self.state.named)
        passing.generating = True
        try:
            given = self.state.prompts.given_to_write(inputs)
            with naming({caller: replace(caller.named, given=given, prepared={})}):
                return self.generate(*args, **kwargs)
        finally:
            passing.generating, passing.contexts = generating, contexts
