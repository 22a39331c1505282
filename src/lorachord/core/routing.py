"""Routers: gates over experts for each token.

Shapes: B samples, L rows of one sample, N = B * L rows; D inputs; R rows of what is gated, S of what comes out; E
experts, K of them chosen per row; G groups of rank slots, each with gates of its own; Y routers with the same input.

Background. What a router does to a row is a dozen operations on a handful of numbers, so their number is what it costs:
as autograd's own they took as long as the factors' products. Here they are one autograd function, for all layers with
the same input (`core/neighbours.py`), and the logits come out of the product with A (`Adapter.router_weight`). All has
rows last, (Y, E, G, N): on a CPU, whose loops are fast where the last axis is long, a softmax over 8 experts takes a
tenth of the time that way, and gating a fifth. Products make and take such rows as fast as others (`core/lowrank.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorachord.core import init
from lorachord.core.context import Context
from lorachord.core.devices import on_cpu
from lorachord.core.router_losses import Tally, losses_of
from lorachord.core.settings import MethodConfig, option


@dataclass(frozen=True, kw_only=True)
class RouterConfig(MethodConfig):
    """What every method with a router can be told.

    Args:
        balance: weight of the Switch balance loss of each layer. Default 0.
        z: weight of the z-loss of each layer, the mean of logsumexp squared. Default 0.
        noise: standard deviation of the Gaussian noise that the logits get in training, from torch's global generator
            (which a checkpoint's recompute restores). Default 0.
    """

    balance: float = option(0.0, low=0)
    z: float = option(0.0, low=0)
    noise: float = option(0.0, low=0)


class Router(nn.Module):
    """Token-level gates `g = softmax(W x)` without a bias, dense or top-k renormalised.

    It starts Kaiming-uniform: with equal gates and zero `B` all experts would stay identical for ever.

    With several groups the rows of A fall into G blocks, and each has a router of its own. W stacks them experts first:
    rows e G to (e + 1) G are those of expert e.

    Its losses are made of what its passes record, when they are asked for (`core/router_losses.py`).

    Args:
        d_in: D.
        num_experts: E, at least 2.
        config: weights of the losses, and noise.
        top_k: K, from 2 to E (with 1, renormalised gates are constant and the router gets no gradient); None keeps all.
        groups: G.
        own_blocks: whether each expert gates a block of rows of its own, as where experts do not share A; with one
            group only.

    Attributes:
        recorded: what the losses of the last forward pass in training are made of, and which of its routers this is.
        last, total: choices by expert and group (E, G), of the last forward pass and of all since `forget_load`; of a
            dense router the sums of its gates. None before any.
    """

    def __init__(
        self,
        d_in: int,
        num_experts: int,
        config: RouterConfig,
        *,
        top_k: int | None = None,
        groups: int = 1,
        own_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts * groups, d_in))
        self.config, self.top_k, self.groups, self.own_blocks = config, top_k, groups, own_blocks
        self.recorded: tuple[Tally, int] | None = None
        self.last: Tensor | None = None
        self.total: Tensor | None = None

    def reset(self) -> None:
        """Initialise the weight and forget what was recorded."""
        init.kaiming_uniform_(self.weight, fan_in=self.weight.shape[1])
        self.recorded = None
        self.forget_load()

    @property
    def penalised(self) -> bool:
        """Whether there is a loss to record."""
        return self.config.balance > 0 or self.config.z > 0

    def noisy(self, logits_BLX: Tensor) -> Tensor:
        """The logits `W x`, with the noise of training if there is any."""
        if not self.training or not self.config.noise:
            return logits_BLX
        return torch.add(logits_BLX, torch.randn_like(logits_BLX), alpha=self.config.noise)

    def penalty(self) -> Tensor | None:
        """The weighted losses of the last forward pass, or None where there are none."""
        return next(iter(losses_of([self])), None)

    @property
    def load(self) -> Tensor | None:
        """The share of the last forward pass's choices that fell on each expert: (E,), or (G, E) of several groups."""
        return None if self.last is None else share(self.last)

    def forget_load(self) -> None:
        """Count choices from here on."""
        self.last = self.total = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle has no part in the graph of the last forward.
        return {**self.__dict__, "recorded": None}


def mix(
    routers: Sequence[Router], h_BLX: Tensor, logits_BLX: Tensor, ctx: Context, rows_BM: Tensor | None = None
) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """`g (x) h` of each router, (B, L, S), experts side by side; the gates in at least float32. And samples of rows.

    Args:
        routers: of layers with the same input, alike in all but their weights.
        h_BLX: (B, L, Y R), one router's rows beside the other's: what all its experts share, then S = E R; or their own
            blocks side by side, then S = R.
        logits_BLX: (B, L, Y E G), from `noisy`.
        ctx: of this pass; padding counts in no loss and no load.
        rows_BM: of which rows, counted through the batch, to return each router's h and choices as well. As an
            operation of its own, sampling would make gradients for all other rows too.

    Returns:
        The gated; and with `rows_BM` each router's h of these rows (B, M, R), then each one's choices (E, G, B * M),
        as 0 and 1: top-k routers alone have any.
    """
    first, num_routers = routers[0], len(routers)
    weights = (first.config.balance, first.config.z) if first.training and first.penalised else None
    options = num_routers, first.groups, first.own_blocks, first.top_k, weights
    results = _Route.apply(h_BLX, logits_BLX, *options, mask_of(ctx, logits_BLX), ctx.recording, rows_BM)
    (load_YEG, chosen_YEG, probs_YEG, squares_YG), results = results[:4], results[4:]
    mixed, *sampled = (results[n * num_routers : (n + 1) * num_routers] for n in range(3))
    if ctx.recording:
        # Marked as without a gradient, it still has one to the compiler.
        load_YEG = load_YEG.detach()
        tally = Tally(load_YEG if chosen_YEG is None else chosen_YEG, probs_YEG, squares_YG) if weights else None
        for nth, (router, load_EG) in enumerate(zip(routers, load_YEG.unbind(), strict=True)):
            total = load_EG if router.total is None else router.total.to(load_EG.device) + load_EG
            # A module's own way to set an attribute takes as long as an operation.
            vars(router).update(last=load_EG, total=total, recorded=None if tally is None else (tally, nth))
    return mixed, *sampled


def mask_of(ctx: Context, rows_BLX: Tensor) -> Tensor | None:
    """True for the rows that count; None where all do, and where a layer does not see the rows that the mask is of."""
    mask_BL = ctx.token_mask_BL
    return mask_BL if mask_BL is not None and mask_BL.numel() == rows_BLX.shape[:-1].numel() else None


def share(counts_EG: Tensor) -> Tensor:
    """Counts by expert as shares: (E,), or (G, E) of several groups."""
    return (counts_EG / counts_EG.sum(0).clamp_min(1)).t().squeeze(0)


class _Route(torch.autograd.Function):
    """The loads (Y, E, G) and the parts of a tally, or None of each; of each router `g (x) h`, with g the gates of the
    logits; h of the sampled rows; and their choices.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_BLX: Tensor,
        logits_BLX: Tensor,
        num_routers: int,
        groups: int,
        own_blocks: bool,
        top_k: int | None,
        weights: tuple[float, float] | None,
        mask_BL: Tensor | None,
        recording: bool,
        rows_BM: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        wide = torch.promote_types(logits_BLX.dtype, torch.float32)
        num_experts, num_rows = logits_BLX.shape[-1] // (groups * num_routers), h_BLX.shape[:2].numel()
        shape = num_routers, num_experts, groups
        logits_YEGN = logits_BLX.to(wide).reshape(num_rows, -1).t().contiguous().view(*shape, num_rows)
        probs_YEGN = gates_YEGN = torch.softmax(logits_YEGN, dim=1)
        mask_N = None if mask_BL is None else mask_BL.flatten().to(wide)

        def over_rows(values: Tensor) -> Tensor:
            # No matrix product: under autocast it would count in half precision.
            return (values if mask_N is None else values * mask_N).sum(3)

        chosen_YEGN = gates_YEGN
        if top_k is not None or (weights and weights[0]):
            chosen_YEGN = _most_probable(probs_YEGN, top_k or 1)
        if top_k is not None:
            gates_YEGN = probs_YEGN * chosen_YEGN
            gates_YEGN.div_(gates_YEGN.sum(1, keepdim=True))

        load_YEG = lse_Y1GN = chosen_YEG = probs_YEG = squares_YG = None
        if weights and weights[1]:
            lse_Y1GN = logits_YEGN.logsumexp(1, keepdim=True)
        tallied = recording and weights is not None
        if recording:
            load_YEG = over_rows(gates_YEGN if top_k is None else chosen_YEGN)
        if tallied:
            # A top-k router's load is its choices.
            chosen_YEG = over_rows(chosen_YEGN) if top_k is None else None
            probs_YEG = over_rows(probs_YEGN)
            squares_YG = None if lse_Y1GN is None else over_rows(lse_Y1GN.square()).squeeze(1)
        # X is E where each expert gates a block of its own, else 1; a group has P rows.
        h_XN = h_BLX.reshape(num_rows, -1).t()
        h_YXGPN = h_XN.reshape(num_routers, num_experts if own_blocks else 1, groups, -1, num_rows)
        ctx.save_for_backward(h_YXGPN, gates_YEGN, probs_YEGN if weights else None, lse_Y1GN, mask_N, rows_BM)
        ctx.shapes, ctx.dtype = (h_BLX.shape, logits_BLX.shape), logits_BLX.dtype
        mixed_YEGPN = h_BLX.new_empty(*shape, h_YXGPN.shape[3], num_rows)
        torch.mul(h_YXGPN, gates_YEGN.to(h_BLX.dtype).unsqueeze(3), out=mixed_YEGPN)
        mixed = (mixed_SN.t().view(*h_BLX.shape[:2], -1) for mixed_SN in mixed_YEGPN.flatten(1, 3).unbind())
        sampled: tuple[Tensor, ...] = ()
        choices: tuple[Tensor, ...] = ()
        if rows_BM is not None:
            rows_N = rows_BM.flatten()
            sampled_YRN = h_XN.index_select(1, rows_N).view(num_routers, -1, len(rows_N))
            sampled = tuple(sampled_RN.t().unflatten(0, rows_BM.shape) for sampled_RN in sampled_YRN.unbind())
            choices = chosen_YEGN.index_select(3, rows_N).unbind()
        ctx.mark_non_differentiable(*(part for part in (load_YEG, chosen_YEG) if part is not None), *choices)
        ctx.set_materialize_grads(False)
        return load_YEG, chosen_YEG, probs_YEG, squares_YG, *mixed, *sampled, *choices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_YXGPN, gates_YEGN, probs_YEGN, lse_Y1GN, mask_N, rows_BM = ctx.saved_tensors
        (_, _, grad_probs_YEG, grad_squares_YG), grads = grads[:4], grads[4:]
        num_routers, num_rows = len(gates_YEGN), gates_YEGN.shape[3]
        num_gated = h_YXGPN.shape[3] * gates_YEGN[0].numel() // num_rows
        grad_XN = _stacked(grads[:num_routers], num_gated, num_rows, h_YXGPN)
        grad_YEGPN = grad_XN.reshape(*gates_YEGN.shape[:3], -1, num_rows)
        # One tensor of both gradients: the product that they go back through takes them as one.
        num_h, num_logits = h_YXGPN.shape.numel() // num_rows, gates_YEGN.shape.numel() // num_rows
        grad_h_XN, grad_logits_XN = grad_XN.new_empty(num_h + num_logits, num_rows).split((num_h, num_logits))
        gates_YEG1N = gates_YEGN.to(grad_YEGPN.dtype).unsqueeze(3)
        if h_YXGPN.shape[1] == 1:
            torch.sum(grad_YEGPN * gates_YEG1N, 1, keepdim=True, out=grad_h_XN.view(h_YXGPN.shape))
        else:
            torch.mul(grad_YEGPN, gates_YEG1N, out=grad_h_XN.view(h_YXGPN.shape))
        slope_YEGPN = grad_YEGPN * h_YXGPN
        # Of blocks of one row there is nothing to sum.
        slope_YEGN = (slope_YEGPN.squeeze(3) if h_YXGPN.shape[3] == 1 else slope_YEGPN.sum(3)).to(gates_YEGN.dtype)
        # Renormalised top-k gates are a softmax too, over the chosen logits alone.
        grad_YEGN = through_softmax(slope_YEGN, gates_YEGN, dim=1)
        if grad_probs_YEG is not None:
            cost_YEGN = through_softmax(grad_probs_YEG.unsqueeze(3).expand_as(probs_YEGN), probs_YEGN, dim=1)
            if lse_Y1GN is not None:
                cost_YEGN.addcmul_(probs_YEGN, lse_Y1GN * (2 * grad_squares_YG)[:, None, :, None])
            grad_YEGN.add_(cost_YEGN if mask_N is None else cost_YEGN * mask_N)
        h_shape, logits_shape = ctx.shapes
        grad_logits_XN.copy_(grad_YEGN.flatten(0, 2))
        sampled = grads[num_routers : 2 * num_routers]
        if rows_BM is not None and any(grad_BMR is not None for grad_BMR in sampled):
            rows_N = rows_BM.flatten()
            grad_h_XN.index_add_(1, rows_N, _stacked(sampled, num_h // num_routers, len(rows_N), grad_h_XN))
        grad_h, grad_logits = grad_h_XN.t().view(h_shape), grad_logits_XN.t().view(logits_shape).to(ctx.dtype)
        return grad_h, grad_logits, None, None, None, None, None, None, None, None


def _stacked(grads: Sequence[Tensor | None], num_features: int, num_rows: int, like: Tensor) -> Tensor:
    """(Y X, N) of each router's gradient (..., X); where there is none, zeros of the dtype of `like`."""
    parts_XN = [
        like.new_zeros(num_features, num_rows) if grad is None else grad.reshape(num_rows, num_features).t()
        for grad in grads
    ]
    return parts_XN[0] if len(parts_XN) == 1 else torch.cat(parts_XN)


def _most_probable(probs_YEGN: Tensor, top_k: int) -> Tensor:
    """1 for the experts of the K highest probabilities, else 0."""
    chosen_YEGN = torch.zeros_like(probs_YEGN)
    if not on_cpu(probs_YEGN):
        return chosen_YEGN.scatter_(1, probs_YEGN.topk(top_k, dim=1).indices, 1.0)
    # A CPU is slow at sorting a few numbers many times: faster are the highest of all, then that of the others, below
    # which a probability less 2 lies.
    for nth in range(top_k):
        left_YEGN = torch.sub(probs_YEGN, chosen_YEGN, alpha=2) if nth else probs_YEGN
        chosen_YEGN.scatter_(1, left_YEGN.max(1, keepdim=True).indices, 1.0)
    return chosen_YEGN


def through_softmax(grad: Tensor, probs: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
    """The gradient of the logits of a softmax over `dim` from that of its probabilities, as autograd has it."""
    return torch._softmax_backward_data(grad, probs, dim, probs.dtype, grad_input=out)
