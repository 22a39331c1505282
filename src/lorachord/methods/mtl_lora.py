"""MTL-LoRA: a small matrix per task between the factors, and a per-task mixture of several up-projections.

    y_t = W0 x + s * (sum_i softmax(w_t / tau)_i B_i) Lambda_t A drop(x),  s = alpha / r

Yang et al., "MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning" (arXiv 2410.09437).
A is Kaiming-uniform, Lambda_t the identity, B_i zero, and w_t uniform in +-1/sqrt(n): equal weights over zero B_i would
keep all B_i identical for ever.

Differs from the authors' code: one stacked product in place of a loop over tasks and up-projections.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import MethodConfig, RankConfig, option
from lorachord.core.registry import register
from lorachord.families.by_task import TaskCore, task_matrices


@register
@final
class MTLLoRA(TaskCore):
    """`down` is A (r, d_in), `up` stacks the B_i (d_out, n r).

    `transform` holds the Lambda_t, (T, r, r), or (T, r) if diagonal; `mixture` the logits w_t (T, n).
    """

    method = "mtl_lora"
    paper = "MTL-LoRA (arXiv 2410.09437)"
    parameters_formula = "r*d_in + num_ups*r*d_out + T*(r if transform == 'diagonal' else r**2) + T*num_ups"

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """
        Args:
            num_ups: n, the number of up-projections. Default 3; per layer.
            temperature: tau. Default 0.1.
            transform: `full` Lambda_t (default) or `diagonal`.
            unknown_task: what a task that was not trained gets: `error` (default), or the `mean` of the tasks' cores.
        """

        num_ups: int = option(3, low=1, per_layer=True)
        temperature: float = option(0.1, above=0)
        transform: str = option("full", choices=("full", "diagonal"))
        unknown_task: str = option("error", choices=("error", "mean"))

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        r, diagonal = config.r, config.transform == "diagonal"
        self.down = nn.Parameter(torch.empty(r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, config.num_ups * r))
        self.transform = nn.Parameter(torch.empty(self.num_tasks, r) if diagonal else torch.empty(self.num_tasks, r, r))
        self.mixture = nn.Parameter(torch.empty(self.num_tasks, config.num_ups))

    def reset(self) -> None:
        super().reset()
        identity = torch.ones(self.config.r) if self.transform.dim() == 2 else torch.eye(self.config.r)
        with torch.no_grad():
            self.transform.copy_(identity.expand_as(self.transform))
        init.kaiming_uniform_(self.mixture, fan_in=self.config.num_ups)

    @classmethod
    def accepts_unknown_tasks(cls, config: MethodConfig) -> bool:
        assert isinstance(config, cls.Config)
        return config.unknown_task == "mean"

    def matrices(self) -> Tensor:
        square_TRR = self.transform if self.transform.dim() == 3 else torch.diag_embed(self.transform)
        matrix_TSR = task_matrices(square_TRR, self.mixture, self.config.temperature)
        if self.config.unknown_task == "error":
            return matrix_TSR
        # The task id T, one past the last, stands for every task that was not trained.
        return torch.cat([matrix_TSR, matrix_TSR.mean(0, keepdim=True)])
