"""Allot: a core for each task where the tasks' gradients conflict, and plain LoRA where they agree.

    y_t = W0 x + s * (sum_i softmax(w_t / tau)_i B_i) Lambda_t A drop(x)      on split modules
    y   = W0 x + s * B A drop(x)                                              elsewhere,  s = alpha / r

This project's own. The core is MTL-LoRA's (arXiv 2410.09437), which has it everywhere. Where to split is found in a
short warm-up of plain LoRA, in which the conflict of each pair of tasks is tested in every factor: the modules with the
most significant conflict first, none without, as long as the parameters that this adds are within a share `budget` of
those that splitting everywhere would add. One matrix between A and B for all tasks would be no more than another B, so
there is none.

What is not shown: that this choice beats a random one of the same size. On generated tasks that contradict each other
(MiniLM, 4 tasks, k .5) three split modules of 37 reached 1.0 in 60 steps by conflict and at random; one alone, after 40
steps, .75 where conflict put it, and .76, .81 and .93 at random.

Start: as LoRA and MTL-LoRA. The warm-up's factors are not kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, final

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import LayerSpec, MethodConfig, RankConfig, option
from lorachord.core.registry import register
from lorachord.families.by_task import TaskCore, task_matrices
from lorachord.families.calibrated import FromConflict


@register
@final
class Allot(TaskCore, FromConflict):
    """`down` is A (r, d_in), `up` is B (d_out, r).

    On split modules `up` stacks the B_i (d_out, n r), `transform` holds the Lambda_t (T, r, r) and `mixture` the w_t
    (T, n).
    """

    method = "allot"
    paper = "this project's own, after MTL-LoRA (arXiv 2410.09437)"
    parameters_formula = "r*d_in + (num_ups*r*d_out + T*r**2 + T*num_ups if split or choose == 'all' else r*d_out)"
    uncalibrated = {"choose": "all"}
    decisive = ("choose", "budget", "seed", "warmup_steps", "warmup_learning_rate", "level")

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """
        Args:
            num_ups: n, the number of up-projections on split modules. Default 3; per layer.
            temperature: tau. Default 0.1.
            choose: which modules to split: by `conflict` (default); at `random`, with no more parameters than conflict
                would have added, for comparison; or `all`.
            budget: of the parameters that splitting all modules would add, the share that may be added. Default 0.5.
            level: the chance that any module is split although nothing conflicts. Default 0.05.
            warmup_steps: of the plain LoRA that conflict is measured on. Default 60.
            warmup_learning_rate: of its AdamW. Default 0.003.
            seed: of a random choice. Default 0.
            split: whether a module is split; per module, as calibration finds it.
        """

        num_ups: int = option(3, low=1, per_layer=True)
        temperature: float = option(0.1, above=0)
        choose: str = option("conflict", choices=("conflict", "random", "all"))
        budget: float = option(0.5, low=0, high=1)
        level: float = option(0.05, above=0, below=1)
        warmup_steps: int = option(60, low=1)
        warmup_learning_rate: float = option(3e-3, above=0)
        seed: int = option(0)
        split: bool = option(False, per_module=True)

        def added(self, layer: LayerSpec, num_tasks: int) -> int:
            """The parameters that splitting a layer adds; of the config of that layer."""
            return (self.num_ups - 1) * self.r * layer.d_out + num_tasks * (self.r**2 + self.num_ups)

    config: Config

    def build(self) -> None:
        r, layer, num_tasks = self.config.r, self.layer, self.num_tasks
        self.split = self.config.split or self.config.choose == "all"
        num_ups = self.config.num_ups if self.split else 1
        self.down = nn.Parameter(torch.empty(r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, num_ups * r))
        if self.split:
            self.transform = nn.Parameter(torch.empty(num_tasks, r, r))
            self.mixture = nn.Parameter(torch.empty(num_tasks, num_ups))

    def reset(self) -> None:
        super().reset()
        if self.split:
            with torch.no_grad():
                self.transform.copy_(torch.eye(self.config.r).expand_as(self.transform))
            # Equal weights over zero B_i would keep all B_i identical for ever.
            init.kaiming_uniform_(self.mixture, fan_in=self.config.num_ups)

    @classmethod
    def from_conflict(
        cls, config: MethodConfig, conflict: Mapping[LayerSpec, float], num_tasks: int
    ) -> dict[str, dict[str, Any]]:
        assert isinstance(config, cls.Config)
        added = {layer: config.at(layer).added(layer, num_tasks) for layer in conflict}
        ranked = sorted((layer for layer in conflict if conflict[layer] > 0), key=lambda layer: -conflict[layer])
        chosen = within(config.budget * sum(added.values()), ranked, added)
        if config.choose == "random":
            shuffled = Random(config.seed).sample(list(conflict), len(conflict))
            chosen = within(sum(added[layer] for layer in chosen), shuffled, added)
        return {"split": {layer.name: True for layer in chosen}}

    def matrices(self) -> Tensor | None:
        return task_matrices(self.transform, self.mixture, self.config.temperature) if self.split else None


def within(budget: float, layers: Sequence[LayerSpec], added: Mapping[LayerSpec, int]) -> list[LayerSpec]:
    """The layers, first come first served, that a budget of added parameters has room for."""
    chosen = []
    for layer in layers:
        # Sums of shares are not exact.
        if added[layer] <= budget * (1 + 1e-9):
            budget -= added[layer]
            chosen.append(layer)
    return chosen
