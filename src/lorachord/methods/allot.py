"""The method `allot`: cores by task where tasks conflict."""

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
    """Modules whose tasks conflict get a core for each task; the others stay plain LoRA.

    Equation:
        y_t = W0 x + s * (sum_i softmax(w_t / tau)_i B_i) Lambda_t A drop(x)     on split modules
        y   = W0 x + s * B A drop(x)                                             elsewhere,  s = alpha / r

    Where:
        A short warm-up of plain LoRA finds the modules to split. It tests the conflict of each pair of tasks in every
        factor. Modules with the most significant conflict are split first, modules without any never. The added
        parameters stay within a share `budget` of those that splitting every module would add. One matrix between A
        and B for all tasks would be no more than another B, so there is none.

    Paper:
        None: the choice of modules is this project's own. The core is by Yang et al., "MTL-LoRA: Low-Rank Adaptation
        for Multi-Task Learning" (arXiv 2410.09437), which has it everywhere.

    Start:
        As LoRA on plain modules, and as MTL-LoRA on split ones. The warm-up's factors are not kept.

    Defaults:
        num_ups 3, temperature 0.1, choose conflict, budget 0.5, level 0.05, warmup_steps 60,
        warmup_learning_rate 0.003, seed 0, split false, r 8, alpha 16, dropout 0.

    Take it when:
        Tasks contradict each other, and MTL-LoRA's cores in every module are too many parameters. On generated tasks
        in full contradiction its mean accuracy was 1.0, where LoRA had 0.5 (docs/findings.md). Its warm-up also tells
        where tasks conflict, if anywhere.

    Leave it when:
        Tasks do not contradict each other: it is then LoRA, after a calibration that is as long as about 100 steps. On
        four GLUE tasks it split at most one module of 37, and its score was LoRA's. A learning rate of 3e-3 is too
        high: one run in full contradiction had every training text right and then fell back to chance.

        It is not shown that the choice beats a random one of the same size. On generated tasks that contradict each
        other (MiniLM, 4 tasks, k = 0.5) three split modules of 37 reached 1.0 in 60 steps by conflict and at random.
        One module alone had 0.75 after 40 steps where conflict put it. At random it had 0.76, 0.81 and 0.93.

    Differs from the authors' code:
        There are no other authors. MTL-LoRA's diagonal transforms and its mean for unknown tasks are left out.

    Parameters:
        down (r, d_in): A.
        up (d_out, r): B; on split modules the B_i side by side, (d_out, n r).
        transform (T, r, r): the Lambda_t, on split modules.
        mixture (T, n): the logits w_t, on split modules.
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
            temperature: tau, of the softmax over up-projections. Default 0.1.
            choose: the modules to split: by `conflict` (default); at `random`, with no more parameters than conflict
                would have added, for comparison; or `all`.
            budget: the share that may be added, of the parameters that splitting all modules would add. Default 0.5.
            level: the chance that any module is split although nothing conflicts. Default 0.05.
            warmup_steps: steps of the plain LoRA in which conflict is measured. Default 60.
            warmup_learning_rate: the learning rate of its AdamW. Default 0.003.
            seed: of a `random` choice. Default 0.
            split: whether a module is split, as calibration finds it. Default false; per module.
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
