"""The hooks that prepare every forward pass of a model with adapters.

They sit on the model that was injected into: the only place that all roads pass (a PeftModel, the bare model after
`load_adapter`, `generate`). There, gradient checkpointing, which Trainer turns on long after the adapter was attached,
is taught to recompute under the tasks of its own forward.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from lorachord.core.adapter import Adapter
from lorachord.core.align import Alignment
from lorachord.core.context import NO_CONTEXT, Batch, Context, PenaltyFrom
from lorachord.tuner.batches import batch_of, first_input, store_of
from lorachord.tuner.callers import Contexts
from lorachord.tuner.checkpointing import TaskCheckpoint, is_reentrant
from lorachord.tuner.generating import Generate
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.prompt_masks import attended
from lorachord.tuner.state import SharedState
from lorachord.tuner.uncalled import FirstPass, have_linears_called, have_linears_left
from lorachord.tuner.walk import active_adapters, adapted_layers

TASKS_KEYWORD = "lorachord_tasks"


class Passes:
    """The hooks of one model.

    Args:
        state: what its layers share.
    """

    def __init__(self, state: SharedState) -> None:
        self.state = state
        self.checkpointed: list[nn.Module] = []
        self.first = FirstPass()

    def before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The hook: settle the contexts of this pass."""
        state, passing = self.state, self.state.caller.passing
        if passing.embedding:
            return args, kwargs
        if state.unverified:
            self._verify_tasks(model)
        refuse_adapter_names(kwargs)
        if TASKS_KEYWORD in kwargs:
            contexts = state.resolve(kwargs.pop(TASKS_KEYWORD), active_adapters(model))
        else:
            contexts = state.named
        named = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs if args else kwargs
        contexts = self.with_batch(model, named, contexts)
        # Only adapters that act: where none acts, no prompt is needed.
        acting = _acting(model)
        looking = [name for name in acting if name in state.prompts.encoders]
        if looking:
            contexts = state.prompts.settle(model, named, looking, contexts)
        given = first_input(named)
        if given is not None:
            # Once, and not again in each layer.
            contexts = {name: context.to(given.device) for name, context in contexts.items()}
        passing.contexts = contexts
        if model.training and torch.is_grad_enabled():
            self._remind_of_penalty(model, acting)
            if acting:
                self.first.begin(model)
        self._prepare_checkpointing(model)
        return args, kwargs

    def after_forward(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The hook: what was settled for this pass ends with it."""
        passing = self.state.caller.passing
        if passing.embedding:
            return
        passing.contexts = None
        self.first.end(finished=output is not None)
        self.state.prompts.finish(output)

    def with_batch(self, model: nn.Module, inputs: Mapping[str, Any], contexts: Contexts) -> Contexts:
        """The contexts of a pass with the rows that it begins with, for every adapter.

        Args:
            inputs: the arguments of the pass, by name.

        Raises:
            ValueError: tasks were named for another number of samples. Only inside of `generate` may each sample stand
                several times in place.
        """
        state = self.state
        # Images are looked at where their samples can matter.
        look = bool(state.prompts.encoders) or any((context.num_samples or 1) > 1 for context in contexts.values())
        batch, mask = batch_of(model, inputs, look=look), inputs.get("attention_mask")
        if batch is None:
            return contexts
        mask_BL = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        given = first_input(inputs)
        if mask is not None and mask_BL is None and given is not None:
            mask_BL = attended(inputs, given.shape[:2])
        found = {}
        prepared = None if torch.compiler.is_compiling() else store_of(inputs, batch, state.caller.named.prepared)
        for name in state.task_names:
            context = _of_batch(contexts.get(name, NO_CONTEXT), batch, repeats=state.caller.passing.generating)
            found[name] = replace(context, batch=batch, token_mask_BL=mask_BL, prepared=prepared)
        return found

    def _verify_tasks(self, model: nn.Module) -> None:
        # Weights may come in by roads that check nothing (transformers' load_adapter), so look once, before first use.
        for layer in adapted_layers(model):
            for name in self.state.unverified.intersection(layer.lorachord_adapter):
                digest = getattr(layer.lorachord_adapter[name], "task_digest", None)
                if digest is not None:
                    self.state.task_names[name].check_digest(digest)
        self.state.unverified.clear()

    def _remind_of_penalty(self, model: nn.Module, acting: list[str]) -> None:
        state = self.state
        if state.penalty_asked:
            return
        penalised = [name for name in acting if state.penalty_from.get(name) in (PenaltyFrom.WEIGHTS, PenaltyFrom.PASS)]
        adapters = [adapter for name in penalised for adapter in _adapters(model, name)]
        trains = any(parameter.requires_grad for one in adapters for parameter in one.parameters())
        if trains and state.trained:
            # Once.
            state.penalty_asked = True
            warnings.warn(
                f"The method of adapter {', '.join(penalised)} has a penalty, and this loop leaves it out: a second "
                "pass in training begins, and lorachord.penalty(model) was never asked for. Add it to the loss, as in "
                "`loss = model(**batch).loss + lorachord.penalty(model)`; or train with lorachord's MultiTaskTrainer, "
                "MultiTaskSFTTrainer of lorachord.trl or the trainer of lorachord.sentence_transformers, which add it; "
                "or set its weight to 0 in its options.",
                stacklevel=2,
            )
        state.trained = trains

    def _prepare_checkpointing(self, model: nn.Module) -> None:
        for module in self.checkpointed:
            function = vars(module).get("_gradient_checkpointing_func")
            if function is None:
                continue
            if not isinstance(function, TaskCheckpoint):
                vars(module)["_gradient_checkpointing_func"] = TaskCheckpoint(function, self.state)
            if model.training and module.gradient_checkpointing and is_reentrant(function):
                recorded = {name for name, source in self.state.penalty_from.items() if source is PenaltyFrom.PASS}
                penalised = recorded.intersection(active_adapters(model))
                if penalised:
                    raise ValueError(
                        f"The penalty of adapter {', '.join(sorted(penalised))} would lose its graph under reentrant "
                        "gradient checkpointing. Enable it with use_reentrant=False (in TrainingArguments: "
                        'gradient_checkpointing_kwargs={"use_reentrant": False}), or set the penalty to 0.'
                    )


def refuse_adapter_names(inputs: Mapping[str, Any]) -> None:
    """Raise a ValueError if a pass is asked for another adapter for each sample, as PEFT's own LoRA can be."""
    if inputs.get("adapter_names") is not None:
        raise ValueError(
            "adapter_names= is not served: all samples of a pass have the active adapters. Call set_adapter(name), and "
            "make a pass for each adapter; the tasks of one adapter may be mixed, with lorachord.on_task(model, tasks)."
        )


def _of_batch(context: Context, batch: Batch, *, repeats: bool) -> Context:
    num_named, num_samples = context.num_named, batch.num_samples
    if num_named in (1, num_samples):
        if context.tokens is not None and context.tokens not in [(num_samples, length) for length in batch.lengths]:
            raise ValueError(
                f"Tasks were named for tokens of shape {context.tokens}, but the batch has {num_samples} samples of "
                f"{' or '.join(map(str, batch.lengths))} tokens."
            )
        return context
    if repeats and num_samples % num_named == 0 and context.tokens is None:
        return context.repeated(num_samples // num_named)
    raise ValueError(
        f"{num_named} samples have a task, but the batch has {num_samples}. Name one task per sample of the batch, or "
        "one for all."
    )


def install(model: nn.Module, state: SharedState, name: str, config: LorachordConfig) -> None:
    """Take up an adapter that was put into `model`, and hook the model if that is the first."""
    # The name may have been another adapter's before.
    state.forget(name)
    state.task_names[name] = config.task_names
    state.unverified.add(name)
    adapters = _adapters(model, name)
    sources = [adapter.penalty_from for adapter in adapters]
    if config.alignment is not None:
        sources.append(PenaltyFrom.PASS)
        for adapter in adapters:
            adapter.aligned = Alignment(config.alignment, len(config.task_names))
    state.penalty_from[name] = max(sources, key=list(PenaltyFrom).index, default=PenaltyFrom.NOTHING)
    state.prompts.add_adapter(name, adapters, config)
    passes = passes_of(model)
    if passes is None:
        passes = Passes(state)
        model.register_forward_pre_hook(passes.before_forward, with_kwargs=True)
        model.register_forward_hook(passes.after_forward, always_call=True)
        if isinstance(model, GenerationMixin):
            vars(model)["generate"] = Generate(model, state, passes.with_batch)
    have_linears_called(model)
    passes.checkpointed = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def uninstall(model: nn.Module) -> None:
    """Take everything back that `install` has put into `model`."""
    passes = passes_of(model)
    if passes is None:
        return
    for key in _keys(model):
        model._forward_pre_hooks.pop(key, None)
        model._forward_pre_hooks_with_kwargs.pop(key, None)
        model._forward_hooks.pop(key, None)
        model._forward_hooks_always_called.pop(key, None)
    vars(model).pop("generate", None)
    have_linears_left(model)
    for module in passes.checkpointed:
        wrapped = vars(module).get("_gradient_checkpointing_func")
        if isinstance(wrapped, TaskCheckpoint):
            vars(module)["_gradient_checkpointing_func"] = wrapped.checkpoint


def passes_of(model: nn.Module) -> Passes | None:
    """The hooks on this very module, if there are any."""
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Passes)), None)


def _keys(model: nn.Module) -> list[int]:
    hooks = [*model._forward_pre_hooks.items(), *model._forward_hooks.items()]
    return [key for key, hook in hooks if isinstance(getattr(hook, "__self__", None), Passes)]


def _adapters(model: nn.Module, name: str) -> list[Adapter]:
    layers = (layer for layer in adapted_layers(model) if name in layer.lorachord_adapter)
    return [layer.lorachord_adapter[name] for layer in layers]  # type: ignore[misc]


def _acting(model: nn.Module) -> list[str]:
    layer = next(adapted_layers(model), None)
    return [] if layer is None or layer.disable_adapters else layer.active_adapters
