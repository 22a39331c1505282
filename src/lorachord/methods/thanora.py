"""The method `thanora`: a block of ranks for each task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import MethodConfig, RankConfig, option
from lorachord.core.context import Mixing, PenaltyFrom
from lorachord.core.registry import register
from lorachord.families.calibrated import FromInputs
from lorachord.families.covariance import Covariance
from lorachord.kernels.overlap import overlap

OVERSAMPLING, ITERATIONS = 8, 8
"""Of the randomised SVD: more directions than are kept, and passes over W0 C."""


@register
@final
class ThanoRA(FromInputs):
    """Each task has a block of ranks, and a penalty keeps the blocks apart.

    Equation:
        y = W0 x + s * (B_c A_c + sum_t (B_t A_t - B0_t A0_t)) drop(x),  s = alpha / r

        C_t = X_t^T X_t / m + damping,   H_t = spectral entropy of X_t^T X_t / m
        r_c = floor(r / (T + 1))
        r_t = 1 + the share of r - r_c - T by softmax_t(H_t / tau), by largest remainder
        U S V^T = svd(W0 C_t), the r_t leading ones of each:
            A0_t = sqrt(S) V^T C_t^-1 = S^-1/2 U^T W0,   B0_t = U sqrt(S)
        SPR = lambda * sum_{t<u} |A_t A_u^T|_F^2  and/or  |B_t^T B_u|_F^2

    Where:
        X_t holds m inputs of the layer on task t. The penalty SPR divides rows of A and columns of B by
        sqrt(|.|^2 + 1e-6). Without that, shrinking them would lower it, and B = 0 has no direction.

    Paper:
        Liang et al., "ThanoRA: Task Heterogeneity-Aware Multi-Task Low-Rank Adaptation" (arXiv 2505.18640).

    Start:
        Calibration sets the ranks r_t and, with `init: svd`, A_t = A0_t and B_t = B0_t. A_c is Kaiming-uniform and B_c
        is zero. With `init: kaiming` all of A is Kaiming-uniform and all of B is zero.

    Defaults:
        r 16, alpha 32, allocation entropy, init svd, temperature 0.1, spr 0.01, side a, ranks none, dropout 0.

    Take it when:
        Tasks need ranks of their own, but the result must be one plain LoRA without task or router. Recipes calibrate
        by themselves; `lorachord.calibrate` does it for `attach`.

    Leave it when:
        You look for a better score than joint LoRA's. On four GLUE tasks it was 0.064 ± 0.058 behind at equal
        parameters (docs/findings.md). It cannot solve tasks that contradict each other on the same inputs.
        `init: svd` needs a low learning rate: its blocks are as large as W0, so a step moves the update far more than
        one from B = 0. On generated tasks without contradiction (MiniLM, r 16, 80 steps) it stayed at chance with
        3e-3, with the penalty and without. With 3e-4 it was right on every text. `init: kaiming` learned them with
        3e-3.

    Differs from the authors' code:
        A construction: it follows the paper's outline, not code of its authors. The outline has ranks by the spectral
        entropy of activations, blocks from truncated SVDs beside a cooperative one, and a penalty that keeps them
        apart. Each task's SVD is taken alone. W0 is never written: the start of each block is kept, frozen, and taken
        off again.

    Background:
        With D = A - A0 and E = B - B0, the update B A - B0 A0 is computed as [E, B0] [A; D]. It is zero at the start to
        the bit. It does not lose small changes of large factors when they are rounded to bfloat16.

    Parameters:
        down (r, d_in): A_1..A_T and A_c, stacked.
        up (d_out, r): B_1..B_T and B_c side by side.
        down_start (r - r_c, d_in): the A0_t, with `init: svd`; saved, but not trained.
        up_start (d_out, r - r_c): the B0_t, with `init: svd`; saved, but not trained.

    Shapes:
        D inputs and O outputs of the layer; R = r; T tasks.
    """

    method = "thanora"
    paper = "ThanoRA (arXiv 2505.18640)"
    mixing = Mixing.STATIC
    parameters_formula = "r*(d_in + d_out)"
    # Decay would pull the blocks away from their start, whose update is zero.
    no_decay = ("down", "up")
    uncalibrated = {"allocation": "uniform", "init": "kaiming"}
    decisive = ("r", "allocation", "init", "temperature")

    @dataclass(frozen=True, kw_only=True)
    class Config(RankConfig):
        """
        Args:
            r: ranks of all blocks together; at least one for each task. Default 16; per layer.
            alpha: numerator of the scale `s = alpha / r`. Default 32; per layer.
            allocation: ranks of the tasks by the `entropy` of their inputs (default), or `uniform`.
            init: blocks start as `svd` of W0 and the tasks' inputs (default), or `kaiming`, with B zero.
            temperature: tau, of the softmax over the tasks' entropies. Default 0.1.
            spr: lambda, weight of the penalty. Default 0.01.
            side: the factors that the penalty keeps apart: `a` (default), `b` or `both`.
            ranks: r_1..r_T, as calibration finds them; the rest of r is r_c. Default: uniform; per module.
        """

        r: int = option(16, low=1, per_layer=True)
        alpha: float = option(32.0, above=0, per_layer=True)
        allocation: str = option("entropy", choices=("entropy", "uniform"))
        init: str = option("svd", choices=("svd", "kaiming"))
        temperature: float = option(0.1, above=0)
        spr: float = option(0.01, low=0)
        side: str = option("a", choices=("a", "b", "both"))
        ranks: tuple[int, ...] = option((), items=int, low=1, per_module=True)

    config: Config
    down_start: Tensor
    up_start: Tensor

    def build(self) -> None:
        layer, r, num_tasks = self.layer, self.config.r, self.num_tasks
        ranks = self.config.ranks or share_ranks(r, [0.0] * num_tasks, self.config.temperature)
        if len(ranks) != num_tasks or sum(ranks) > r:
            raise ValueError(
                f"{layer.name} has the ranks {list(ranks)}: give one for each of {num_tasks} tasks, at most r = {r} in "
                "all."
            )
        self.own = sum(ranks)
        self.ranks = tuple(ranks)
        self.down = nn.Parameter(torch.empty(r, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, r))
        if self.config.init == "svd":
            self.register_buffer("down_start", torch.empty(self.own, layer.d_in))
            self.register_buffer("up_start", torch.empty(layer.d_out, self.own))

    def reset(self) -> None:
        super().reset()
        if self.config.init == "svd":
            # Until calibration says better, any start will do: the update is zero.
            init.kaiming_uniform_(self.up[:, : self.own], fan_in=self.own)
            self.begin({"down": self.down[: self.own], "up": self.up[:, : self.own]})

    @torch.no_grad()
    def begin(self, start: Mapping[str, Tensor]) -> None:
        for name in ("down_start", "up_start"):
            getattr(self, name).copy_(start[name.removesuffix("_start")])
        self.down[: self.own] = self.down_start
        self.up[:, : self.own] = self.up_start

    @classmethod
    def from_inputs(
        cls, config: MethodConfig, weight_OD: Tensor, inputs: Sequence[Covariance]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert isinstance(config, cls.Config)
        entropies = [covariance.entropy if config.allocation == "entropy" else 0.0 for covariance in inputs]
        ranks = config.ranks or share_ranks(config.r, entropies, config.temperature)
        if config.init == "kaiming":
            return {"ranks": ranks}, {}
        if max(ranks) > min(weight_OD.shape):
            raise ValueError(
                f"a task has rank {max(ranks)}, more than a weight {tuple(weight_OD.shape)} has: take a smaller r."
            )
        pairs = [blocks(weight_OD, *own) for own in zip(inputs, ranks, strict=True)]
        return {"ranks": ranks}, {
            "down": torch.cat([down for down, _ in pairs]),
            "up": torch.cat([up for _, up in pairs], dim=1),
        }

    def down_weight(self) -> Tensor:
        if self.config.init == "kaiming":
            return self.down
        return torch.cat([self.down, self.down[: self.own] - self.down_start])

    def up_weight(self) -> Tensor:
        if self.config.init == "kaiming":
            return self.up
        moved = self.up[:, : self.own] - self.up_start
        return torch.cat([moved, self.up[:, self.own :], self.up_start], dim=1)

    def penalty(self) -> dict[str, Tensor] | None:
        if not self.config.spr:
            return None
        sides = {"a": (self.down,), "b": (self.up.t(),), "both": (self.down, self.up.t())}
        return {"subspace": overlap(sides[self.config.side], self.ranks, self.config.spr)}

    @property
    def penalty_from(self) -> PenaltyFrom:
        return PenaltyFrom.WEIGHTS if self.config.spr else PenaltyFrom.NOTHING


def share_ranks(r: int, entropies: Sequence[float], temperature: float) -> tuple[int, ...]:
    """The ranks of the tasks.

    Raises:
        ValueError: no tasks, or fewer ranks than tasks.
    """
    num_tasks = len(entropies)
    if num_tasks == 0:
        raise ValueError("thanora has a block for each task: name them, as in tasks=['cola', 'sst2'].")
    rest = r - r // (num_tasks + 1) - num_tasks
    if rest < 0:
        raise ValueError(
            f"thanora has one rank for each task at least: r = {r} is too small, the smallest is {num_tasks}."
        )
    # On the CPU, whatever device the adapter is made on.
    entropy_T = torch.tensor(entropies, dtype=torch.float64, device="cpu")
    share_T = rest * torch.softmax(entropy_T / temperature, dim=0)
    ranks = [1 + math.floor(share) for share in share_T]
    left = r - r // (num_tasks + 1) - sum(ranks)
    for task in (share_T - share_T.floor()).argsort(descending=True, stable=True)[:left].tolist():
        ranks[task] += 1
    return tuple(ranks)


def blocks(weight_OD: Tensor, covariance: Covariance, rank: int) -> tuple[Tensor, Tensor]:
    """A0_t (r_t, D) and B0_t (O, r_t). As V^T C^-1 = S^-1 U^T W0, nothing is inverted."""
    product_OD = covariance.damped(weight_OD)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = min(rank + OVERSAMPLING, *product_OD.shape)
        vectors, values, _ = torch.svd_lowrank(product_OD, q=size, niter=ITERATIONS)
    vectors_OR = vectors[:, :rank]
    # A zero is no direction of W0 C, hence none of W0.
    root_R = values[:rank].clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    return vectors_OR.t() @ weight_OD / root_R[:, None], vectors_OR * root_R
