"""The method `thanora`: a block of ranks for each task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import LayerSpec, MethodConfig, RankConfig, option
from lorachord.core.context import Mixing, PenaltyFrom
from lorachord.core.registry import register
from lorachord.families.calibrated import FromInputs
from lorachord.families.covariance import Covariance
from lorachord.kernels.overlap import overlap

OVERSAMPLING, ITERATIONS = 8, 8
"""Of the randomised SVD: more directions than are kept, and passes over P W0 C."""


@register
@final
class ThanoRA(FromInputs):
    """Each task has a block of ranks, and a penalty keeps the blocks apart.

    Equation:
        y = W0 x + s * (B_c A_c + sum_t (B_t A_t - B0_t A0_t)) drop(x),  s = alpha / r

        C_t = X_t^T X_t / m + damping,   H_t = spectral entropy of X_t^T X_t / m
        r_c = floor(r / (T + 1))
        r_t = 1 + the share of r - r_c - T by softmax_t(H_t / tau), by largest remainder
        U S V^T = svd(P_t W0 C_t),   P_t = I - sum_{u<t} U_u U_u^T,   U_t = the r_t leading columns of U
            A0_t = diag(n s)^-1/2 U_t^T W0,   B0_t = U_t diag(n / s)^1/2,   n_j = |u_j^T W0|
        SPR = lambda * sum_{t<u} |A_t A_u^T|_F^2  and/or  |B_t^T B_u|_F^2

    Where:
        X_t holds m inputs of the layer on task t. Deflation P_t takes out the directions of earlier tasks, so that
        Q = [U_1 .. U_T] is orthonormal and s sum_t B0_t A0_t = Q Q^T W0. For no input x is |s B0 A0 x| above |W0 x|.
        The norms |a_j| and |b_j| are equal. The penalty SPR divides rows of A and columns of B by sqrt(|.|^2 + 1e-6).
        Without that, shrinking them would lower it, and B = 0 has no direction.

    Paper:
        Liang et al., "ThanoRA: Task Heterogeneity-Aware Multi-Task Low-Rank Adaptation" (arXiv 2505.18640).

    Start:
        Calibration sets the ranks r_t and, with `init: svd`, A_t = A0_t and B_t = B0_t. A_c is Kaiming-uniform and B_c
        is zero; directions that W0 lacks (n_j = 0) start as these. The ranks of a layer's tasks then add up to at most
        its narrower side. With `init: kaiming` all of A is Kaiming-uniform and all of B is zero.

    Defaults:
        r 16, alpha 32, allocation entropy, init svd, temperature 0.1, spr 0.01, side a, ranks none, dropout 0.

    Take it when:
        Tasks need ranks of their own, but the result must be one plain LoRA without task or router. Recipes calibrate
        by themselves; `lorachord.calibrate` does it for `attach`.

    Leave it when:
        You look for a better score than joint LoRA's. With an earlier start it was 0.064 ± 0.058 behind on four GLUE
        tasks at equal parameters (docs/findings.md). It cannot solve tasks that contradict each other on the same
        inputs. With `init: svd` blocks start as large as parts of W0, so a step moves the update further than one
        from B = 0: try a lower learning rate, too. On generated tasks without contradiction (MiniLM, r 16, 60 steps) it
        was right on every text with 3e-3, where the earlier start stayed at chance.

    Differs from the authors' code:
        A construction: it follows the paper's outline, not code of its authors. The outline has ranks by the spectral
        entropy of activations, blocks from truncated SVDs beside a cooperative one, and a penalty that keeps them
        apart. The SVDs are taken in the order of the tasks, with deflation: SVDs of W0 C_t alone share their leading
        directions, so that the blocks' sum takes W0 away several times over. W0 is never written: the start of each
        block is kept, frozen, and taken off again.

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
        # The scale may be chosen after calibration; it is taken out of both factors alike.
        root = math.sqrt(self.scale)
        self.up_start.copy_(start["up"] / root)
        # A direction that W0 lacks has no row: with A and B both zero it would never learn.
        has_row_R1 = (start["down"] != 0).any(1, keepdim=True)
        self.down_start.copy_(torch.where(has_row_R1, (start["down"] / root).to(self.down), self.down[: self.own]))
        self.down[: self.own] = self.down_start
        self.up[:, : self.own] = self.up_start

    @classmethod
    def check(cls, config: MethodConfig, layer: LayerSpec, num_tasks: int) -> None:
        assert isinstance(config, cls.Config)
        # Whatever the entropies, the shares have the same sum.
        total = sum(config.ranks or share_ranks(config.r, [0.0] * num_tasks, config.temperature))
        narrow = min(layer.d_in, layer.d_out)
        if config.init == "svd" and total > narrow:
            raise ValueError(
                f"the tasks' ranks add up to {total}, and with init = 'svd' each takes a direction of its own of the "
                f"weight ({layer.d_out}, {layer.d_in}), which has {narrow}: take a smaller r, or init = 'kaiming'."
            )

    @classmethod
    def from_inputs(
        cls, config: MethodConfig, weight_OD: Tensor, inputs: Sequence[Covariance]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert isinstance(config, cls.Config)
        entropies = [covariance.entropy if config.allocation == "entropy" else 0.0 for covariance in inputs]
        ranks = config.ranks or share_ranks(config.r, entropies, config.temperature)
        if config.init == "kaiming":
            return {"ranks": ranks}, {}
        down, up = balanced(weight_OD, directions(weight_OD, inputs, ranks))
        return {"ranks": ranks}, {"down": down, "up": up}

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


def directions(weight_OD: Tensor, inputs: Sequence[Covariance], ranks: Sequence[int]) -> Tensor:
    """Q = [U_1 .. U_T] (O, sum of ranks), orthonormal: of each task the leading directions that earlier ones left."""
    basis_OR = weight_OD.new_zeros(len(weight_OD), 0)
    for covariance, rank in zip(inputs, ranks, strict=True):
        product_OD = covariance.damped(weight_OD)
        left_OD = product_OD - basis_OR @ (basis_OR.t() @ product_OD)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            size = min(rank + OVERSAMPLING, *left_OD.shape)
            vectors, _, _ = torch.svd_lowrank(left_OD, q=size, niter=ITERATIONS)
        # Vectors of singular values near 0 may lie among earlier directions; QR turns them out of these.
        basis_OR = torch.linalg.qr(torch.cat([basis_OR, vectors[:, :rank]], dim=1)).Q
    return basis_OR


def balanced(weight_OD: Tensor, basis_OR: Tensor) -> tuple[Tensor, Tensor]:
    """A (R, D) and B (O, R) with `B A = Q Q^T W0` and `|a_j| = |b_j|`; both zero where W0 lacks a direction."""
    row_RD = basis_OR.t() @ weight_OD
    norm_R = row_RD.norm(dim=1)
    lacks_R = norm_R <= torch.finfo(norm_R.dtype).eps * max(weight_OD.shape) * norm_R.max()
    root_R = norm_R.masked_fill(lacks_R, 0).sqrt()
    return row_RD / root_R.masked_fill(lacks_R, torch.inf)[:, None], basis_OR * root_R
