"""What the adapted layers of one model share: tasks and prompts of the current forward pass, for each adapter name.

One hook on the model that was injected into prepares every forward pass. It is the only place that all roads pass (a
PeftModel, the bare model after `load_adapter`, `generate`), and it is where gradient checkpointing, which Trainer turns
on long after the adapter was attached, is taught to recompute under the tasks of its own forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorachord.core.context import NO_CONTEXT, Context
from lorachord.core.neighbours import Groups, Neighbours
from lorachord.core.ranks import is_sharded
from lorachord.core.tasks import TaskNames, Tasks
from lorachord.tuner.checkpointing import TaskCheckpoint, is_reentrant
from lorachord.tuner.layer import LorachordLinear
from lorachord.tuner.prompts import Given, Prompts

if TYPE_CHECKING:
    from lorachord.tuner.config import LorachordConfig

TASKS_KEYWORD = "lorachord_tasks"
HEADS = ""
"""In the place of an adapter's name: the tasks of the heads, which are there whatever adapter is active."""
Contexts = dict[str, Context]


class SharedState:
    """Shared by reference among the layers of one model; one for each model, whatever adapters it has.

    Attributes:
        task_names: the tasks of each adapter.
        recording: the adapters whose penalty is recorded in the forward pass.
        unverified: the adapters whose saved task order has not been compared with their task names yet.
        named: the contexts that `on_task` has set; replaced, never changed.
        contexts: those of the current pass: `named`, or the forward's keyword, with the pass's token mask and prompts.
        prompts: for adapters that choose by prompt.
        groups: the layers with the same input, by adapter, of adapters that make things for each other.
    """

    def __init__(self) -> None:
        self.task_names: dict[str, TaskNames] = {}
        self.recording: set[str] = set()
        self.unverified: set[str] = set()
        self.named: Contexts = {}
        self.contexts: Contexts = {}
        self.checkpointed: list[nn.Module] = []
        self.prompts = Prompts()
        self.groups: dict[str, Groups] = {}

    def add_adapter(self, model: nn.Module, name: str, config: LorachordConfig) -> None:
        """Take up an adapter that was put into `model`, and hook the model if that is the first."""
        self.task_names[name] = config.task_names
        self.unverified.add(name)
        adapters: list[Any] = [
            layer.lorachord_adapter[name] for layer in adapted_layers(model) if name in layer.lorachord_adapter
        ]
        # The name may have been another adapter's before.
        self.recording.discard(name)
        if any(adapter.records_penalty for adapter in adapters):
            self.recording.add(name)
        self.prompts.add_adapter(name, adapters, config)
        self.groups.pop(name, None)
        if any(adapter.neighbourly for adapter in adapters):
            self.groups[name] = Groups(adapters)
        self.checkpointed = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
        if not self.hooks_of(model):
            model.register_forward_pre_hook(self.before_forward, with_kwargs=True)
            model.register_forward_hook(self.after_forward, always_call=True)

    def uninstall(self, model: nn.Module) -> None:
        """Take everything back that has been put into `model`."""
        for key in self.hooks_of(model):
            model._forward_pre_hooks.pop(key, None)
            model._forward_pre_hooks_with_kwargs.pop(key, None)
            model._forward_hooks.pop(key, None)
            model._forward_hooks_always_called.pop(key, None)
        for module in self.checkpointed:
            wrapped = vars(module).get("_gradient_checkpointing_func")
            if isinstance(wrapped, TaskCheckpoint):
                vars(module)["_gradient_checkpointing_func"] = wrapped.checkpoint

    def hooks_of(self, model: nn.Module) -> list[int]:
        """The keys of the hooks that a state has put on `model`."""
        hooks = [*model._forward_pre_hooks.items(), *model._forward_hooks.items()]
        return [key for key, hook in hooks if isinstance(getattr(hook, "__self__", None), SharedState)]

    def before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The hook: settle the contexts of this pass."""
        if self.prompts.embedding:
            return args, kwargs
        if self.unverified:
            self._verify_tasks(model)
        contexts = self.named
        if TASKS_KEYWORD in kwargs:
            tasks = kwargs.pop(TASKS_KEYWORD)
            contexts = self.resolve(tasks, active_adapters(model))
        named = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs if args else kwargs
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            mask_BL = mask.bool()
            contexts = {
                name: replace(contexts.get(name, NO_CONTEXT), token_mask_BL=mask_BL) for name in self.task_names
            }
        # Only adapters that act: what looks at nothing needs no prompt.
        looking = [name for name in self._acting(model) if name in self.prompts.encoders]
        if looking:
            contexts = self.prompts.settle(model, named, looking, contexts)
        if self.groups and model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # In training alone: sums of another order make the first pass differ from those after it.
            contexts = {**contexts}
            for name in self.groups.keys() & self._acting(model):
                groups = self.groups[name]
                prepared = None if is_sharded(model) else groups.core_weights()
                contexts[name] = replace(
                    contexts.get(name, NO_CONTEXT), neighbours=Neighbours(groups), prepared=prepared
                )
        batch = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()), None)
        if batch is not None:
            # Once, and not again in each layer.
            contexts = {name: context.to(batch.device) for name, context in contexts.items()}
        self.contexts = contexts
        if model.training and torch.is_grad_enabled():
            self._check_batch(batch)
        self._prepare_checkpointing(model)
        return args, kwargs

    def after_forward(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The hook: what was settled for this pass ends with it."""
        if self.prompts.embedding:
            return
        for context in self.contexts.values():
            context.end()
        self.contexts = self.named
        self.prompts.finish(output)

    def _acting(self, model: nn.Module) -> list[str]:
        layer = next(adapted_layers(model), None)
        return [] if layer is None or layer.disable_adapters else layer.active_adapters

    def _verify_tasks(self, model: nn.Module) -> None:
        # Weights may come in by roads that check nothing (transformers' load_adapter), so look once, before first use.
        for layer in adapted_layers(model):
            for name in self.unverified.intersection(layer.lorachord_adapter):
                digest = getattr(layer.lorachord_adapter[name], "task_digest", None)
                if digest is not None:
                    self.task_names[name].check_digest(digest)
        self.unverified.clear()

    def _check_batch(self, batch: Tensor | None) -> None:
        # Generation repeats samples (beams), training does not: here the ids must be those of this very batch.
        for context in self.contexts.values():
            if batch is not None and context.num_samples not in (None, 1, len(batch)):
                raise ValueError(f"{context.num_samples} samples have a task, but the batch has {len(batch)}.")

    def _prepare_checkpointing(self, model: nn.Module) -> None:
        for module in self.checkpointed:
            function = vars(module).get("_gradient_checkpointing_func")
            if function is None:
                continue
            if not isinstance(function, TaskCheckpoint):
                vars(module)["_gradient_checkpointing_func"] = TaskCheckpoint(function, self)
            if model.training and module.gradient_checkpointing and is_reentrant(function):
                penalised = self.recording.intersection(active_adapters(model))
                if penalised:
                    raise ValueError(
                        f"The penalty of adapter {', '.join(sorted(penalised))} would lose its graph under reentrant "
                        "gradient checkpointing. Enable it with use_reentrant=False (in TrainingArguments: "
                        'gradient_checkpointing_kwargs={"use_reentrant": False}), or set the penalty to 0.'
                    )

    def resolve(self, tasks: Tasks, active: list[str]) -> Contexts:
        """The contexts in which the samples have these tasks, for each adapter by its own task list.

        Raises:
            ValueError: an active adapter does not have a task. Inactive ones are then left without.
        """
        contexts = {}
        for name, task_names in self.task_names.items():
            if not len(task_names):
                continue
            try:
                contexts[name] = Context.of_tasks(task_names.indices(tasks))
            except ValueError:
                if name in active:
                    raise
        return contexts


def modules_of(model: nn.Module) -> Iterator[nn.Module]:
    """As `model.modules()`, which also makes each one's name: in half the time, several times a step."""
    seen: set[nn.Module] = set()
    left = [model]
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            yield module
            left.extend(child for child in reversed(module._modules.values()) if child is not None)


def adapted_layers(model: nn.Module) -> Iterator[LorachordLinear]:
    """The adapted layers of `model`, which may be wrapped (PeftModel, DistributedDataParallel, a compiled module)."""
    return (module for module in modules_of(model) if isinstance(module, LorachordLinear))


def active_adapters(model: nn.Module) -> list[str]:
    """The names of the adapters that are active in `model`."""
    return next((list(layer.active_adapters) for layer in adapted_layers(model)), [])


def states_of(model: nn.Module) -> list[SharedState]:
    """The states in `model`: one for each model inside it that was injected into, and one for heads per task."""
    found = [vars(module).get("shared") for module in modules_of(model)]
    return list({id(state): state for state in found if isinstance(state, SharedState)}.values())


@contextmanager
def on_task(
    model: nn.Module, tasks: Tasks | None, *, prompt_mask: Tensor | None = None, embedding: Tensor | None = None
) -> Iterator[None]:
    """Within this block, the samples of every forward pass through `model` have these tasks.

    The backward pass may lie outside the block, also under gradient checkpointing, whose recompute sees the tasks of
    its own forward. Blocks may be nested; the inner one counts. Methods without task-dependent parts accept it too.

    Args:
        model: a model with an adapter, however wrapped.
        tasks: a task name or index for the whole batch; or one per sample, as a list of names or of indices, or as a
            LongTensor (B,). Indices are positions in the adapter's task list. None beside one of the others leaves the
            tasks as they are.
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
    # Resolve all before any is set: an error leaves everything as it was.
    entered = [
        # None alone is refused there, in words.
        (state, state.named, state.prompts.given, state.named if prompts_alone else state.resolve(tasks, active))  # type: ignore[arg-type]
        for state in states
    ]
    for state, _, _, contexts in entered:
        state.named = state.contexts = contexts
        state.prompts.given = Given(prompt_mask, embedding)
    try:
        yield
    finally:
        for state, previous, given, _ in entered:
            state.named = state.contexts = previous
            state.prompts.given = given
