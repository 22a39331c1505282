"""The method `mtl_lora`: a matrix and a mixture for each task."""

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
    """Each task has a matrix between shared factors, and a mixture of several up-projections.

    Equation:
        y_t = W0 x + s * (sum_i softmax(w_t / tau)_i B_i) Lambda_t A drop(x),  i = 1..n,  s = alpha / r

    Paper:
        Yang et al., "MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning" (arXiv 2410.09437).

    Start:
        A is Kaiming-uniform, Lambda_t the identity, B_i zero, and w_t uniform in +-1/sqrt(n). Equal weights over zero
        B_i would keep all B_i identical for ever.

    Defaults:
        num_ups 3, temperature 0.1, transform full, unknown_task error, r 8, alpha 16, dropout 0.

    Take it when:
        Tasks contradict each other on the same inputs, and each sample's task is known, also at inference. On
        generated tasks in full contradiction its mean accuracy was 1.0, where LoRA had 0.5 (docs/findings.md). It
        merges and exports once for each task.

    Leave it when:
        Tasks do not contradict each other. On four GLUE tasks its lead over joint LoRA was 0.005 ± 0.014 at equal
        parameters: none that could be seen. With a learning rate of 1e-3 one of three runs failed there.

    Differs from the authors' code:
        The release copies A, Lambda_t and the mixed B for each sample. Here all samples share one product with A, and
        no factor is copied.

    Parameters:
        down (r, d_in): A.
        up (d_out, n r): the B_i side by side.
        transform (T, r, r): the Lambda_t; (T, r) with `transform: diagonal`.
        mixture (T, n): the logits w_t.
    """

    method = "mtl_lora"
    paper = "MTL-LoRA (arXiv 2410.09437)"
    parameters_formula = "r*d_in + num_ups*r*d_out + T*(r if transform == 'diagonal' else r**2) + T*num_ups"

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """
        Args:
            num_ups: n, the number of up-projections. Default 3; per layer.
            temperature: tau, of the softmax over up-projections. Default 0.1.
            transform: `full` Lambda_t (default) or `diagonal`.
            unknown_task: the answer to a task that was not trained: an `error` (default), or the `mean` of all tasks'
                cores.
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
