"""`on_task`: the tasks and prompts of the forward passes in a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorachord.core.tasks import Tasks
from lorachord.tuner.callers import Given, Named, naming
from lorachord.tuner.state import HEADS
from lorachord.tuner.walk import active_adapters, modules_of, states_of


@contextmanager
def on_task(
    model: nn.Module, tasks: Tasks | None, *, prompt_mask: Tensor | None = None, embedding: Tensor | None = None
) -> Iterator[None]:
    """Within this block, the samples of the caller's forward passes through `model` have these tasks.

    The block belongs to the thread or coroutine that enters it. Others that use the model at the same time name their
    own tasks. A thread that is started inside the block enters one too, or runs in a copy of the context
    (`contextvars.copy_context().run`, `asyncio.to_thread`).

    The backward pass may lie outside the block, also under gradient checkpointing, whose recompute sees the tasks of
    its own forward. Blocks may be nested; the inner one counts. Methods without task-dependent parts accept it too.

    Args:
        model: a model with an adapter, however wrapped.
        tasks: a task name or index for the whole batch; or one per sample, as a list of names or of indices, or as a
            LongTensor (B,); or one per token, as a LongTensor (B, L), where rows hold texts of several tasks. Indices
            are positions in the adapter's task list. None beside one of the others leaves the tasks as they are. As
            many as samples must be named, in training and in evaluation. `generate` counts its prompts, and may then
            repeat each in place (beams, `num_return_sequences`).
        prompt_mask: for methods that choose once for each prompt: True for its tokens (B, L); tokens beyond the mask
            are no part of it. Default: of a decoder's pass with `labels`, the tokens before the first that counts; else
            all that are not padding. In passes that go on from a cache, the prompt is what the first pass has read.
        embedding: of the prompts (B, F), for methods that look at it (mor1e). Default: made by the frozen base.

    Raises:
        ValueError: the active adapter has no such task, or `model` has no adapter.
    """
    states = states_of(model)
    if not states and not any(isinstance(module, BaseTunerLayer) for module in modules_of(model)):
        raise ValueError(f"{type(model).__name__} has no adapter: attach one first, with lorachord.attach(...).")
    active = [*active_adapters(model), HEADS]
    prompts_alone = tasks is None and not (prompt_mask is None and embedding is None)
    given, named = Given(prompt_mask, embedding), {}
    for state in states:
        # None alone is refused there, in words.
        contexts = state.named if prompts_alone else state.resolve(tasks, active)  # type: ignore[arg-type]
        named[state.caller] = Named(contexts, given, prepared={})
    with naming(named):
        yield
