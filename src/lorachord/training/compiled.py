"""Compiled training: the repeated blocks of a model, each compiled as one whole graph.

A block lies below the point where the tasks of a pass are settled, and its code is the same in all layers. So heads,
poolers, losses and what names the tasks stay as they are, and one block is compiled for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lorachord.families.by_prompt import PromptLevel

MOST_GRAPHS = 32
"""Of one kind of block, before torch gives up: a first block needs no gradient of its input, a batch may be of one task
or one row, or have no padding, and a method may have other sizes in other layers."""


class CompiledBlocks:
    """The blocks of a model that have adapters, compiled for passes in training that are differentiated.

    All other passes, and the first in training, call the blocks as they are: generation changes its shapes with every
    token, and what watches a model's first pass ends with it.

    Args:
        model: with an adapter.
        backend: of `torch.compile`. Default inductor, which on a CPU needs a C++ compiler.

    Raises:
        ValueError: no block in a `nn.ModuleList` has an adapter; or the method looks at prompts' embeddings, and each
            size of a batch would be compiled anew.
    """

    def __init__(self, model: nn.Module, backend: str = "inductor") -> None:
        blocks = list(_blocks(model))
        if not blocks:
            raise ValueError(
                f"{type(model).__name__} has no repeated blocks (nn.ModuleList) with adapters, which are what is "
                "compiled: leave out compile."
            )
        embedding = [part for part in model.modules() if isinstance(part, PromptLevel) and part.embeds]
        if backend == "inductor" and embedding:
            raise ValueError(
                f"{embedding[0].method} cannot be compiled: each size of a batch would be compiled anew. Leave out "
                "compile."
            )
        self.forwards = {block: _compiled(block, backend) for block in blocks}
        self.started = False

    @contextmanager
    def called(self, model: nn.Module) -> Iterator[None]:
        """Within this block, a pass through `model` calls the compiled blocks, if it is one to compile."""
        if not (model.training and torch.is_grad_enabled() and self.started):
            self.started = self.started or model.training
            yield
            return
        for block, forward in self.forwards.items():
            vars(block)["forward"] = forward
        try:
            # Sizes are dynamic, and with them all other numbers, unless it is said that floats are not.
            with torch._dynamo.config.patch(specialize_float=True, recompile_limit=MOST_GRAPHS):
                yield
        finally:
            for block in self.forwards:
                vars(block).pop("forward")


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of lists that have adapters inside."""
    for child in module.children():
        adapted = any(isinstance(part, BaseTunerLayer) for part in child.modules())
        if adapted and isinstance(module, nn.ModuleList):
            yield child
        elif adapted:
            yield from _blocks(child)


def _compiled(block: nn.Module, backend: str) -> Callable[..., Any]:
    compiled = torch.compile(block.forward, backend=backend, fullgraph=True, dynamic=True)

    def forward(*args: Any, **kwargs: Any) -> Any:
        # A decoder makes a cache in training too, which nobody reads, and in which each layer has a number of its own.
        kept = {name: None if name in ("past_key_values", "layer_past") else value for name, value in kwargs.items()}
        return compiled(*args, **kept)

    return forward
