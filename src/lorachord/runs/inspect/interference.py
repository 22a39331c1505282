"""How much a step for one task helps or harms another: the interference matrix of conditional mixture of LoRA.

    I(j -> i) = [L_i(theta) - L_i(theta - d g_j / |g_j|)] / [L_i(theta) - L_i(theta - d g_i / |g_i|)]

Shen et al., "Multimodal Instruction Tuning with Conditional Mixture of LoRA" (arXiv 2402.15896). With short steps it is
the cosine of the gradients. The d of a run is its learning rate.

Shapes: P entries of the adapter's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from lorachord.runs.inspect.figure import Array, Figure, Rows, number, short
from lorachord.tuner.walk import adapted_layers

Loss = Callable[[nn.Module, Any], Tensor]
LEAST = 1e-5
"""A task's own gain over its loss; a smaller one is made of rounding."""
SHOWN = 6
"""Tasks that 80 columns have room for."""


@final
@dataclass(frozen=True)
class Interference(Figure):
    """What a step for each of T tasks does to each of them.

    Attributes:
        tasks: T names.
        step: d, the length of a step.
        losses: of the tasks before any step, (T,).
        decrease: what a step for task j takes off the loss of task i, at [j, i], (T, T).
        cosines: of the tasks' gradients, (T, T); NaN where one is zero.
    """

    name = "interference"
    title = "Interference of the tasks"
    meaning = (
        "The row's task takes a step; the column says how much of the gain from a step of its own a task has by it. 1 "
        "is as good as its own step, 0 does nothing for it, and a negative value harms it: the threshold is 0. "
        "Conditional mixture of LoRA (arXiv 2402.15896) claims to have fewer negative values than LoRA. Where a task's "
        "own step does not lower its loss, because it has nothing left to learn on these rows, there is no value."
    )

    tasks: tuple[str, ...]
    step: float
    losses: Array
    decrease: Array
    cosines: Array

    @property
    def values(self) -> Array:
        """I(j -> i) at [j, i], (T, T); NaN where a task's own step does not lower its loss."""
        own = self.decrease.diagonal()
        return self.decrease / np.where(own > LEAST * np.abs(self.losses), own, np.nan)

    @property
    def others(self) -> Array:
        """The values of two different tasks."""
        return self.values[~np.eye(len(self.tasks), dtype=bool)]

    @property
    def words(self) -> str:
        known = self.others[~np.isnan(self.others)]
        if not len(known):
            return "No task's own step lowers its loss on these rows: there is nothing to compare others' steps with."
        harmful = int((known < 0).sum())
        return (
            f"{harmful} of {len(known)} steps for one task harm another. A step for another task is worth "
            f"{known.mean():.2f} of one's own in the mean, and {known.min():.2f} in the worst case."
        )

    def rows(self) -> Rows:
        shown = range(min(len(self.tasks), SHOWN))
        made = [["step for", *(short(self.tasks[at], 9) for at in shown)]]
        for at, task in enumerate(self.tasks):
            made.append([short(task, 14), *(number(float(self.values[at, other])) for other in shown)])
        return made if len(self.tasks) <= SHOWN else [*made, ["more: --json", *([""] * SHOWN)]]

    def summary(self) -> dict[str, Any]:
        parts = {"values": self.values.tolist(), "cosines": self.cosines.tolist(), "losses": self.losses.tolist()}
        return {"tasks": list(self.tasks), **parts, "step": self.step}

    def arrays(self) -> dict[str, Array]:
        return {**super().arrays(), "values": self.values}


def interference(
    model: nn.Module, batches: Mapping[str, Sequence[Any]], loss: Loss, step: float = 1e-3
) -> Interference:
    """Take a step for each task, look at all losses, and take it back. The model ends as it was, in eval mode.

    Args:
        model: with an adapter of this package.
        batches: of each task; gradients and losses are means over them.
        loss: of a batch, given the model.
        step: d, its length over all parameters of the adapter. Default 1e-3.

    Raises:
        ValueError: fewer than two tasks, or no adapter.
    """
    tasks = tuple(batches)
    if len(tasks) < 2:
        raise ValueError("There is one task alone: no other can interfere with it.")
    model.eval()
    with _differentiable(model) as parameters:
        flat_TP = torch.stack([_gradient(model, own, loss, parameters) for own in batches.values()])
        before_T = _losses(model, batches, loss)
        decrease = []
        for gradient_P in flat_TP:
            with _moved(parameters, -step * gradient_P / gradient_P.norm().clamp_min(1e-30)):
                decrease.append(before_T - _losses(model, batches, loss))
    norm_T = flat_TP.norm(dim=1)
    cosines = flat_TP @ flat_TP.t() / (norm_T[:, None] * norm_T).where((norm_T[:, None] * norm_T) > 0, torch.nan)
    return Interference(tasks, step, before_T, np.stack(decrease), cosines.cpu().double().numpy())


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The floating-point parameters of the active adapters, all of which have gradients within this block."""
    adapters = [adapter for layer in adapted_layers(model) for adapter in layer.active()]
    parameters = [parameter for adapter in adapters for parameter in adapter.parameters()]
    if not parameters:
        raise ValueError("The model has no adapter of lorachord's to take steps with.")
    everyone = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in everyone:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter, was in everyone.items():
            parameter.requires_grad_(was)


def _gradient(model: nn.Module, batches: Sequence[Any], loss: Loss, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The mean gradient over batches (P,)."""
    total = torch.zeros(())
    for batch in batches:
        found = torch.autograd.grad(loss(model, batch), parameters, allow_unused=True)
        flat = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(found, parameters, strict=True)
        ]
        total = total.to(parameters[0].device) + torch.cat([gradient.flatten().float() for gradient in flat])
    return total / len(batches)


@torch.no_grad()
def _losses(model: nn.Module, batches: Mapping[str, Sequence[Any]], loss: Loss) -> Array:
    """The mean loss of each task (T,)."""
    return np.array([np.mean([float(loss(model, batch)) for batch in own]) for own in batches.values()])


@contextmanager
@torch.no_grad()
def _moved(parameters: Sequence[nn.Parameter], step_P: Tensor) -> Iterator[None]:
    """Within this block the parameters are a step further."""
    before = [parameter.detach().clone() for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]
    try:
        for parameter, own in zip(parameters, step_P.split(sizes), strict=True):
            parameter.add_(own.view_as(parameter).to(parameter.dtype))
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
