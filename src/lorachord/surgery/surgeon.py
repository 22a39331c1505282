"""Surgery in a training loop: after the backward pass and before clipping, the factors' gradients are made by a rule.

>>> import torch, transformers, lorachord as lc
>>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
>>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
>>> model = lc.attach(base, "lora", tasks=["cola", "sst2"], r=4)
>>> surgeon = lc.Surgeon(model, rule="ortho_lora")                          # 1: once
>>> ids = torch.arange(12).view(3, 4)
>>> with lc.on_task(model, ["cola", "sst2", "sst2"]):                       # 2: name the tasks, as ever
...     logits = model(input_ids=ids).logits
>>> loss = sum(logits[rows].logsumexp(-1).mean() for rows in ([0], [1, 2]))   # a mean for each task
>>> loss.backward()
>>> report = surgeon.operate()                                              # 3: before clipping and the step
>>> tuple(report.gramians_NTT.shape)                                        # seven linears, two factors each
(14, 2, 2)

Only the factors A and B of each layer are operated on: routers, matrices between the factors, scales, heads and
penalties made of weights keep their plain sums, and what belongs to one task alone has nobody to conflict with.

On several ranks the surgeon exchanges the factors' gradients itself. `DistributedDataParallel` must not wait for them:
give it `find_unused_parameters=True`.

A loop that drops a batch after its backward pass says so: `optimizer.zero_grad()` does not reach what the surgeon has
collected, and `surgeon.reset()` drops it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lorachord.messages import suggest
from lorachord.surgery.micro_batches import MicroBatches
from lorachord.surgery.operation import Operation
from lorachord.surgery.rules import OrthoLora, Rule, Sum, Tasks, TorchJD, zoo_names
from lorachord.surgery.significant import Significant
from lorachord.surgery.task_grads import Key, OnePass, TaskGradients
from lorachord.tuner.peft_config import LorachordConfig

FACTORS = ("down", "up")
"""The parameters that are operated on."""
GRANULARITIES = ("factor", "role", "global")
COLLECTORS = {"one_pass": OnePass, "micro_batches": MicroBatches}

OWN_RULES: dict[str, type[Rule]] = {cls.name: cls for cls in (OrthoLora, Significant, Sum)}


def rule_names() -> tuple[str, ...]:
    """Every rule, this package's own first."""
    return (*OWN_RULES, *zoo_names())


def make_rule(name: str, **options: Any) -> Rule:
    """A rule by its name.

    Raises:
        ValueError: no such rule; the nearest is named.
    """
    if name in OWN_RULES:
        try:
            return OWN_RULES[name](**options)
        except TypeError as error:
            raise ValueError(f"{name}: {error}") from None
    if name in zoo_names():
        return TorchJD(name, **options)
    raise ValueError(f"There is no rule {name!r}. {suggest(name, rule_names())}")


def check_surgery(rule: str | Rule, *, granularity: str = "factor", collect: str = "one_pass", **options: Any) -> Rule:
    """The rule that a `Surgeon` of these arguments would follow.

    Raises:
        ValueError: an unknown rule, option, granularity or way to collect; the nearest is named.
    """
    for field, value, known in (("granularity", granularity, GRANULARITIES), ("way to collect", collect, COLLECTORS)):
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"There is no {field} {value!r}. {suggest(str(value), known)}")
    made = rule if isinstance(rule, Rule) else make_rule(rule, **options)
    if made.needs_halves and collect != "one_pass":
        raise ValueError(f"{made.name} looks at two halves of each task's samples, which only one_pass tells apart.")
    return made


class Surgeon:
    """Operates on the gradients of a model's adapter.

    Args:
        model: with one active LoRAchord adapter; the tasks are its config's, or `num_tasks`.
        rule: `ortho_lora` (default), `sum`, or one of TorchJD's; or a `Rule`.
        granularity: what is compared: each `factor` of each layer (Ortho-LoRA), all A's and all B's (`role`), or
            everything (`global`; with `ortho_lora` that is PCGrad).
        collect: `one_pass` (default) or `micro_batches`.
        num_tasks: T. Default: the number of the adapter's tasks.
        **options: the rule's.

    Raises:
        ValueError: an unknown rule, option or granularity; no adapter; no tasks.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: str | Rule = "ortho_lora",
        *,
        granularity: str = "factor",
        collect: str = "one_pass",
        num_tasks: int | None = None,
        **options: Any,
    ) -> None:
        self.rule = check_surgery(rule, granularity=granularity, collect=collect, **options)
        self.granularity, self.num_operations = granularity, 0
        num_tasks = num_tasks if num_tasks is not None else _num_tasks(model)
        self.gradients: TaskGradients
        if self.rule.needs_halves:
            self.gradients = OnePass(model, num_tasks, halves=True)
        else:
            self.gradients = COLLECTORS[collect](model, num_tasks)

    @torch.no_grad()
    def operate(self, step: int | None = None, *, scale: float = 1.0) -> Operation:
        """Write `.grad` of the shared parameters from the task gradients collected since the last time.

        What was in `.grad` stays and is added to: penalties made of weights. On several ranks the gradients are
        averaged first, and the result is the same on all.

        Args:
            step: of the optimiser, from 0, which random orders depend on: give it where runs are resumed. Default: how
                often this surgeon has operated.
            scale: what the loss was multiplied by, where a gradient scaler does so: `scaler.get_scale()`. Rules do not
                depend on it but for what they remember of earlier steps. Default 1.
        """
        with torch.enable_grad():
            sizes_S = self.gradients.sizes_S if isinstance(self.gradients, OnePass) else None
            found = self.gradients.collect()
        if dist.is_initialized():
            found, sizes_S = _over_ranks(found, sizes_S)
        keys = tuple(key for key in found if key[1] in FACTORS)
        gramians_NTT = torch.stack([_gramian(found[key]) for key in keys])
        if self.rule.needs_halves:
            assert sizes_S is not None
            self.rule.observe(self._grouped(keys, gramians_NTT) / scale**2, sizes_S)
            gramians_NTT = gramians_NTT.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).sum((2, 4))
            # What is remembered of pairs is by the tasks' own numbers: nobody is dropped.
            present = torch.arange(len(gramians_NTT[0]), device=gramians_NTT.device)
        else:
            present = gramians_NTT.diagonal(dim1=-2, dim2=-1).ne(0).any(0).nonzero().flatten()
        everyone = len(present) == gramians_NTT.shape[-1]
        gramians_NTT = gramians_NTT if everyone else gramians_NTT[:, present][:, :, present]
        tasks, step = tuple(present.tolist()), self.num_operations if step is None else step
        weights_NT = self._weights(keys, gramians_NTT, step, tasks)
        weights_NS = weights_NT.repeat_interleave(2, dim=1) if self.rule.needs_halves else weights_NT
        weights_of = dict(zip(keys, weights_NS, strict=True))
        for key, gradients in found.items():
            parameter = self.gradients.parameters[key]
            if key in weights_of:
                gradients = gradients if everyone else gradients[present]
                # A sum of products, not a matrix product: with weights of 1 it is the sum of the segments to the bit.
                gradients = gradients * weights_of[key].to(gradients.dtype).view(-1, *[1] * parameter.dim())
            combined = gradients.sum(0).to(parameter.dtype)
            parameter.grad = combined if parameter.grad is None else parameter.grad + combined
        self.num_operations += 1
        return Operation(keys, tasks, gramians_NTT, weights_NT)

    def _weights(self, keys: tuple[Key, ...], gramians_NTT: Tensor, step: int, present: Tasks) -> Tensor:
        if not present:
            # No task has a gradient: all factors are behind zeros, as MultiLoRA's are behind its scales at the start.
            return gramians_NTT.sum(-1)
        weights = self.rule.weights(self._grouped(keys, gramians_NTT), step, present)
        return weights[self._groups(keys)]

    def _groups(self, keys: tuple[Key, ...]) -> list[int]:
        """The group of each block, by the granularity."""
        if self.granularity == "factor":
            return list(range(len(keys)))
        return [int(self.granularity == "role" and factor == "up") for _, factor in keys]

    def _grouped(self, keys: tuple[Key, ...], gramians: Tensor) -> Tensor:
        """The Gramians of the groups: the sums of their blocks'."""
        groups = torch.tensor(self._groups(keys), device=gramians.device)
        return gramians.new_zeros(int(groups.max()) + 1, *gramians.shape[1:]).index_add_(0, groups, gramians)

    def overflowing(self) -> list[tuple[str, int]]:
        """Layers and tasks whose gradients are not finite, or too large for a float32 Gramian."""
        return self.gradients.overflowing(2 if self.rule.needs_halves else 1)

    def reset(self) -> None:
        """Forget what has been collected since the last operation: of a batch that is dropped.

        A loop that drops a batch calls it beside `optimizer.zero_grad()`, which does not reach what is collected. What
        a rule remembers of the steps that were taken stays.
        """
        self.gradients.reset()

    def close(self) -> None:
        """Back to ordinary gradients."""
        self.gradients.close()


def _over_ranks(found: Mapping[Key, Tensor], sizes_S: Tensor | None) -> tuple[dict[Key, Tensor], Tensor | None]:
    """The mean of the gradients over the ranks, as a data-parallel reducer takes it, in one exchange; the sum of sizes.

    The rule then sees the same on every rank, and does the same.
    """
    flat = torch.cat([gradients.flatten() for gradients in found.values()])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradients.numel() for gradients in found.values()])
    if sizes_S is not None:
        sizes_S = sizes_S.to(flat.device)
        dist.all_reduce(sizes_S)
    return {key: part.view_as(old) for (key, old), part in zip(found.items(), parts, strict=True)}, sizes_S


def _gramian(gradients: Tensor) -> Tensor:
    flat_TP = gradients.flatten(1)
    flat_TP = flat_TP.to(torch.promote_types(flat_TP.dtype, torch.float32))
    return flat_TP @ flat_TP.t()


def _num_tasks(model: nn.Module) -> int:
    configs = getattr(model, "peft_config", {})
    for name in getattr(model, "active_adapters", []):
        config = configs.get(name)
        if isinstance(config, LorachordConfig) and config.tasks:
            return len(config.tasks)
    raise ValueError("The adapter names no tasks: attach it with tasks=[...], or give num_tasks.")
