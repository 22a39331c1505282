"""The gradients of T tasks of the factors of an adapter, at the price of one backward pass.

One mixed batch, one forward, one backward: samples of different tasks do not meet inside a layer, so the kernel
hands out the gradient of each task by its rows (see `core/lowrank.py`). What it hands out is the gradient of an
*effective* factor, A' or B'; it is pulled back to the parameters by a vector-Jacobian product per task, which is
nothing where the effective factor is the parameter itself.

The alternative, for batches of one task: let each add its ordinary gradients to its task's share.

Shapes: T tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor, nn

from lorachord.core.adapter import Adapter
from lorachord.core.context import Context
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


class TaskGradients(ABC):
    """Collects the gradients of the factors per task over one accumulation window.

    Args:
        model: with one active adapter.
        num_tasks: T.

    Attributes:
        parameters: the factors `(layer, "down" or "up") -> parameter`, in a fixed order.
    """

    def __init__(self, model: nn.Module, num_tasks: int) -> None:
        self.num_tasks = num_tasks
        self.adapters = dict(adapters_of(model))
        self.parameters: dict[tuple[str, str], nn.Parameter] = {
            (layer, factor): getattr(adapter, factor)
            for layer, adapter in self.adapters.items()
            for factor in ("down", "up")
        }

    @abstractmethod
    def collect(self) -> dict[tuple[str, str], Tensor]:
        """The gradients since the last time, (T, *shape) each, by the keys of `parameters`.

        What remains in the parameters' `.grad` is what no task has a share in: penalties made of weights.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the model as it was."""


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
        self.sizes_S = torch.zeros(2 * num_tasks)
        first = next(iter(self.adapters.values()))
        self._counting = first.register_forward_pre_hook(self._count) if halves else None

    def _count(self, adapter: nn.Module, inputs: tuple[Tensor, Tensor, Context]) -> None:
        ctx = inputs[2]
        if adapter.training and ctx.recording:
            for half, start, stop in ctx.half_runs or ():
                self.sizes_S[half] += stop - start

    def collect(self) -> dict[tuple[str, str], Tensor]:
        found: dict[tuple[str, str], Tensor] = {}
        self.sizes_S = torch.zeros_like(self.sizes_S)
        for layer, adapter in self.adapters.items():
            probes = adapter.probes
            assert probes is not None, "the probes were detached"
            inner_TXD, up_TOS = (_taken(probe) for probe in (probes.inner_TXD, probes.up_TOS))
            down_RD, router_ED = adapter.down_weight(), adapter.router_weight()
            if router_ED is not None:
                inner_TXD, router_TED = inner_TXD.split([len(down_RD), len(router_ED)], dim=1)
                # Routers take the plain sum.
                own = router_TED.sum(0).detach()
                router_ED.grad = own if router_ED.grad is None else router_ED.grad + own
            found[layer, "down"] = self._pulled_back(adapter, "down", down_RD, inner_TXD)
            found[layer, "up"] = self._pulled_back(adapter, "up", adapter.up_weight(), up_TOS)
        return found

    def _pulled_back(self, adapter: Adapter, factor: str, weight: Tensor, gradients: Tensor) -> Tensor:
        parameter: nn.Parameter = getattr(adapter, factor)
        if weight is parameter:
            return gradients
        # Parameters beside the factors in it (scales) take the plain sum.
        others = [other for other in adapter.parameters() if other is not parameter and other.requires_grad]
        pulled = []
        for gradient in gradients:
            own, *rest = torch.autograd.grad(
                weight, [parameter, *others], gradient, retain_graph=True, allow_unused=True, materialize_grads=False
            )
            pulled.append(own)
            for other, more in zip(others, rest, strict=True):
                if more is not None:
                    other.grad = more if other.grad is None else other.grad + more
        return torch.stack(pulled)

    def close(self) -> None:
        if self._counting is not None:
            self._counting.remove()
        for adapter in self.adapters.values():
            adapter.detach_probes()


def _taken(probe: Tensor) -> Tensor:
    gradients = torch.zeros_like(probe) if probe.grad is None else probe.grad
    probe.grad = None
    return gradients


@final
class MicroBatches(TaskGradients):
    """From batches of one task each: call `end_of(task)` after each backward pass."""

    def __init__(self, model: nn.Module, num_tasks: int) -> None:
        super().__init__(model, num_tasks)
        self.sums = self._zeros()

    def _zeros(self) -> dict[tuple[str, str], Tensor]:
        return {key: p.new_zeros(self.num_tasks, *p.shape) for key, p in self.parameters.items()}

    def end_of(self, task: int) -> None:
        """Book what the last backward pass has left in the factors' `.grad` on a task's account."""
        for key, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.sums[key][task] += parameter.grad
                parameter.grad = None

    def collect(self) -> dict[tuple[str, str], Tensor]:
        found, self.sums = self.sums, self._zeros()
        return found

    def close(self) -> None:
        self.sums = {}
