"""The gradients of T tasks of an adapter's parameters, at the price of one backward pass.

One mixed batch, one forward, one backward: samples of different tasks do not meet inside a layer, so the kernel
hands out the gradient of each task by its rows (see `kernels/linear.py`). What it hands out is the gradient of an
*effective* weight (A', B', a router's, a core's); it is pulled back to the parameters by a vector-Jacobian product per
task, which is nothing where the effective weight is the parameter itself.

`micro_batches.py` has the alternative, for batches of one task. Shapes: T tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lorachord.core.adapter import Adapter
from lorachord.core.context import Context
from lorachord.core.forward import Frozen
from lorachord.tuner.layer import LorachordLinear


def adapters_of(model: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The active adapter of each adapted layer, by the layer's name.

    Raises:
        ValueError: there is none, or a layer has several active ones.
    """
    none = True
    for name, layer in model.named_modules():
        if isinstance(layer, LorachordLinear):
            active = layer.active()
            if len(active) > 1:
                raise ValueError(f"{name} has {len(active)} active adapters; surgery works on one: set_adapter(name).")
            for adapter in active:
                none = False
                yield name, adapter
    if none:
        raise ValueError(
            "The model has no LoRAchord adapter: attach one first (PEFT's own hand out no task gradients)."
        )


Key = tuple[str, str]
"""A parameter: the name of its layer, and its own name inside the adapter."""


def effective_weights(adapter: Adapter) -> dict[str, Tensor]:
    """What all tasks share of an adapter, as the equation sees it, with its graph: down, router, up, core."""
    found = {
        "down": adapter.down_weight(),
        "router": adapter.router_weight(),
        "up": adapter.up_weight(),
        "core": adapter.core_weight(),
    }
    return {name: weight for name, weight in found.items() if weight is not None}


def shared_parameters(adapter: Adapter) -> dict[str, nn.Parameter]:
    """The trainable parameters behind the effective weights; the others belong to one task each."""
    own = {name: parameter for name, parameter in adapter.named_parameters() if parameter.requires_grad}
    total = torch.stack([weight.sum() for weight in effective_weights(adapter).values()]).sum()
    reached = torch.autograd.grad(total, list(own.values()), allow_unused=True)
    return {name: parameter for (name, parameter), grad in zip(own.items(), reached, strict=True) if grad is not None}


class TaskGradients(ABC):
    """Collects the gradients per task of an adapter's shared parameters over one accumulation window.

    Args:
        model: with one active adapter.
        num_tasks: T.

    Attributes:
        shared: the shared parameters of each layer, by name.
        parameters: all of them by key, in a fixed order.
    """

    def __init__(self, model: nn.Module, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self.adapters = dict(adapters_of(model))
        self.shared = {layer: shared_parameters(adapter) for layer, adapter in self.adapters.items()}
        self.parameters: dict[Key, nn.Parameter] = {
            (layer, name): parameter for layer, own in self.shared.items() for name, parameter in own.items()
        }

    @abstractmethod
    def collect(self) -> dict[Key, Tensor]:
        """The gradients since the last time, (T, *shape) each, by the keys of `parameters`.

        What remains in the parameters' `.grad` is what no task has a share in: penalties made of weights.
        """

    @abstractmethod
    def reset(self) -> None:
        """Drop what has been collected since the last time."""

    @abstractmethod
    def held(self) -> Iterator[tuple[str, Tensor]]:
        """What has been collected since the last time: a layer's name, and gradients with the tasks on the first axis.

        With halves of tasks there are two rows a task.
        """

    @torch.no_grad()
    def overflowing(self, rows: int = 1) -> list[tuple[str, int]]:
        """Layers and tasks whose gradients so far are not finite, or have no finite norm in float32.

        Args:
            rows: of `held`, for each task. Default 1.
        """
        held = list(self.held())
        if not held:
            return []
        norms_NT = torch.stack([gradients.flatten(1).float().norm(dim=1) for _, gradients in held])
        return [(held[block][0], row // rows) for block, row in (~norms_NT.isfinite()).nonzero().tolist()]

    @abstractmethod
    def close(self) -> None:
        """Leave the model as it was."""


def refuse_waiting_reducer(model: nn.Module, _: Any = None) -> None:
    """Refuse a pass of a data-parallel model whose reducer would wait for gradients that go to the leaves.

    Raises:
        ValueError: it would; torch's own error would be in the next pass, and about a loss.
    """
    if torch.compiler.is_compiling():
        return
    around = model if isinstance(model, DistributedDataParallel) else DistributedDataParallel._active_ddp_module
    if around is not None and not (around.find_unused_parameters or around.static_graph):
        raise ValueError(
            "DistributedDataParallel waits for the gradients of all parameters, and those of the factors go to the "
            "surgeon, which exchanges them itself: wrap the model with find_unused_parameters=True."
        )


@final
class OnePass(TaskGradients):
    """From mixed batches, by zero leaves with a task axis.

    Args:
        model, num_tasks: as in `TaskGradients`.
        halves: collect the gradients of two halves of each task's samples, on an axis of 2 T.

    Attributes:
        sizes_S: with `halves`, how many samples each half has had since the last time.
    """

    def __init__(self, model: nn.Module, num_tasks: int, *, halves: bool = False) -> None:
        super().__init__(model, num_tasks)
        for adapter in self.adapters.values():
            adapter.attach_probes(num_tasks, halves=halves)
        self._refusing = model.register_forward_pre_hook(refuse_waiting_reducer)
        refuse_waiting_reducer(model)
        self.sizes_S = torch.zeros(2 * num_tasks)
        first = next(iter(self.adapters.values()))
        self._counting = first.register_forward_pre_hook(self._count) if halves else None

    def _count(self, adapter: nn.Module, inputs: tuple[Tensor, Frozen, Context]) -> None:
        ctx = inputs[2]
        if not (adapter.training and ctx.recording):
            return
        if torch.compiler.is_compiling():
            assert isinstance(adapter, Adapter)
            assert adapter.probes is not None
            places_B = adapter.probes.places(ctx).to(self.sizes_S.device)
            self.sizes_S = self.sizes_S.index_add(0, places_B, self.sizes_S.new_ones(len(places_B)))
        else:
            for half, start, stop in ctx.half_runs or ():
                self.sizes_S[half] += stop - start

    def collect(self) -> dict[Key, Tensor]:
        found: dict[Key, Tensor] = {}
        self.sizes_S = torch.zeros_like(self.sizes_S)
        for layer, adapter in self.adapters.items():
            own, sums, weights = self.shared[layer], dict[str, Tensor](), effective_weights(adapter)
            for weight, gradients in zip(weights.values(), self._taken(adapter, weights), strict=True):
                for name, pulled in _pulled_back(weight, gradients, own).items():
                    sums[name] = sums[name] + pulled if name in sums else pulled
            found |= {(layer, name): sums[name] for name in own}
        return found

    def reset(self) -> None:
        self.sizes_S = torch.zeros_like(self.sizes_S)
        for _, leaf in self._leaves():
            leaf.grad = None

    def _taken(self, adapter: Adapter, weights: dict[str, Tensor]) -> Iterator[Tensor]:
        """The gradients that the leaves hold, in the order of the effective weights; the leaves are emptied."""
        probes = adapter.probes
        assert probes is not None, "the probes were detached"
        inner_TXD, up_TOS = _emptied(probes.inner_TXD), _emptied(probes.up_TOS)
        yield from inner_TXD.split([len(weights[name]) for name in ("down", "router") if name in weights], dim=1)
        yield up_TOS
        if probes.core_TC is not None:
            yield _emptied(probes.core_TC)

    def held(self) -> Iterator[tuple[str, Tensor]]:
        return ((layer, leaf.grad) for layer, leaf in self._leaves() if leaf.grad is not None)

    def _leaves(self) -> Iterator[tuple[str, Tensor]]:
        for layer, adapter in self.adapters.items():
            probes = adapter.probes
            assert probes is not None, "the probes were detached"
            leaves = (probes.inner_TXD, probes.up_TOS, probes.core_TC)
            yield from ((layer, leaf) for leaf in leaves if leaf is not None)

    def close(self) -> None:
        self._refusing.remove()
        if self._counting is not None:
            self._counting.remove()
        for adapter in self.adapters.values():
            adapter.detach_probes()


def _emptied(probe: Tensor) -> Tensor:
    gradients = torch.zeros_like(probe) if probe.grad is None else probe.grad
    probe.grad = None
    return gradients


def _pulled_back(weight: Tensor, gradients: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients (T, *) of an effective weight as those of the parameters that it is made of."""
    for name, parameter in parameters.items():
        if weight is parameter:
            return {name: gradients}
    # All tasks in one call: an effective weight is made of ordinary operations, which can be batched.
    pulled = torch.autograd.grad(weight, list(parameters.values()), gradients, allow_unused=True, is_grads_batched=True)
    return {name: gradient for name, gradient in zip(parameters, pulled, strict=True) if gradient is not None}
