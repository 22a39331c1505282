"""Routers: gates over experts for each token, and the losses that keep them in use and their logits small.

Shapes: B samples, L rows of one sample, N = B * L rows; D inputs; R rows of what is gated, S of what comes out; E
experts, K of them chosen per row; G groups of rank slots, each with gates of its own; Y routers with the same input.

Background. What a router does to a row is a dozen operations on a handful of numbers, so their number is what it costs:
as autograd's own they took as long as the factors' products. Here they are one autograd function, for all layers with
the same input (`core/neighbours.py`), and the logits come out of the product with A (`Adapter.router_weight`). All is
laid out as the products around it are, (N, Y, E, G): with rows last the loops are longer, but transposing to and fro
takes what that gains. Where there is one group there is no G: a CPU's softmax is at its best over what lies last
(measured: half of the time, and an eighth backward).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lorachord.core import init
from lorachord.core.context import Context
from lorachord.core.ranks import across_ranks
from lorachord.core.settings import MethodConfig, option


class Tally(NamedTuple):
    """What a router's losses are made of: sums over the rows that count.

    Choices; probabilities, through which gradients flow; and, for a z-loss, each group's logsumexp squared.
    """

    chosen_EG: Tensor
    probs_EG: Tensor
    squares_G: Tensor | None


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

    The balance loss (Switch, arXiv 2101.03961, eq. 4) is `E sum_e f_e P_e` for each group, meaned over groups: f_e the
    share of choices that fell on e, P_e the mean probability of e; it is 1 at balance. Gradients flow through P alone.
    A dense router's choice is its most probable expert. The z-loss is that of ST-MoE (arXiv 2202.08906, eq. 5). Both
    are means over the rows of all ranks, scaled so that the mean of the ranks' gradients is that of one process. They
    are made when they are asked for, of all layers in one go and with one collective (`losses_of`).

    Args:
        d_in: D.
        num_experts: E, at least 2.
        config: weights of the losses, and noise.
        top_k: K, from 2 to E (with 1, renormalised gates are constant and the router gets no gradient); None keeps all.
        groups: G.
        own_blocks: whether each expert gates a block of rows of its own, as where experts do not share A; with one
            group only.

    Attributes:
        recorded: what the losses of the last forward pass in training are made of.
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
        self.recorded: Tally | None = None
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
        rows_BM: of which rows, counted through the batch, to return each router's h as well, and of all rows its
            choices. As an operation of its own, sampling would make gradients for all other rows too.

    Returns:
        The gated; and with `rows_BM` each router's h of these rows (B, M, R), then each one's choices (N, K): top-k
        routers of one group alone have any.
    """
    first, num_routers = routers[0], len(routers)
    weights = (first.config.balance, first.config.z) if first.training and first.penalised else None
    options = num_routers, first.groups, first.own_blocks, first.top_k, weights
    results = _Route.apply(h_BLX, logits_BLX, *options, mask_of(ctx, logits_BLX), ctx.recording, rows_BM)
    (load_YEG, *tallies), results = results[:4], results[4:]
    mixed, *sampled = (results[n * num_routers : (n + 1) * num_routers] for n in range(3))
    if ctx.recording:
        # Marked as without a gradient, it still has one to the compiler.
        columns = ([None] * num_routers if sums is None else sums.unbind() for sums in (load_YEG.detach(), *tallies))
        for router, load_EG, chosen_EG, probs_EG, squares_G in zip(routers, *columns, strict=True):
            tally = Tally(load_EG if chosen_EG is None else chosen_EG, probs_EG, squares_G)
            router.last, router.recorded = load_EG, tally if weights else None
            router.total = load_EG if router.total is None else router.total.to(load_EG.device) + load_EG
    return mixed, *sampled


def losses_of(routers: Sequence[Router]) -> list[Tensor]:
    """Scalars that add up to the weighted losses of routers; one for those alike in all but their weights."""
    alike: dict[Any, list[Tally]] = {}
    for router in routers:
        if router.recorded is not None:
            chosen_EG = router.recorded.chosen_EG
            kind = router.config, router.top_k, chosen_EG.shape, chosen_EG.device
            alike.setdefault(kind, []).append(router.recorded)
    return [_losses(config, top_k or 1, tallies) for (config, top_k, *_), tallies in alike.items()]


def _losses(config: RouterConfig, num_choices: int, tallies: Sequence[Tally]) -> Tensor:
    chosen, probs, squares = zip(*tallies, strict=True)
    chosen_YEG, num_ranks = across_ranks(torch.stack(chosen))
    _, num_experts, groups = chosen_YEG.shape
    # A row chooses so often in every group, and a dense one's probabilities sum to 1: this counts rows.
    num_rows_Y11 = (chosen_YEG.sum((1, 2), keepdim=True) / (groups * num_choices)).clamp_min(1)
    price_YEG = chosen_YEG / num_rows_Y11**2 * (config.balance * num_experts * num_ranks / (groups * num_choices))
    loss = (price_YEG * torch.stack(probs)).sum()
    if config.z:
        loss = loss + (torch.stack(squares) / num_rows_Y11.squeeze(2)).sum() * (config.z * num_ranks / groups)
    return loss


def mask_of(ctx: Context, rows_BLX: Tensor) -> Tensor | None:
    """True for the rows that count; None where all do, and where a layer does not see the rows that the mask is of."""
    mask_BL = ctx.token_mask_BL
    return mask_BL if mask_BL is not None and mask_BL.numel() == rows_BLX.shape[:-1].numel() else None


def share(counts_EG: Tensor) -> Tensor:
    """Counts by expert as shares: (E,), or (G, E) of several groups."""
    return (counts_EG / counts_EG.sum(0).clamp_min(1)).t().squeeze(0)


class _Route(torch.autograd.Function):
    """The loads (Y, E, G) and the parts of a tally, or None of each; of each router `g (x) h`, with g the gates of the
    logits; h of the sampled rows; and the choices.
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
        num_experts = logits_BLX.shape[-1] // (groups * num_routers)
        by_group = (groups,) if groups > 1 else ()
        logits_NYEG = logits_BLX.to(wide).reshape(-1, num_routers, num_experts, *by_group)
        probs_NYEG = gates_NYEG = torch.softmax(logits_NYEG, dim=2)
        mask_N111 = None if mask_BL is None else mask_BL.reshape(-1, 1, 1, *(1 for _ in by_group)).to(wide)

        def over_rows(values: Tensor) -> Tensor:
            # No matrix product: under autocast it would count in half precision.
            return (values if mask_N111 is None else values * mask_N111).sum(0)

        chosen_NYEG = gates_NYEG
        if top_k is not None or (weights and weights[0]):
            choices_NYKG = probs_NYEG.topk(top_k or 1, dim=2).indices
            chosen_NYEG = torch.zeros_like(probs_NYEG).scatter_(2, choices_NYKG, 1.0)
        if top_k is not None:
            gates_NYEG = probs_NYEG * chosen_NYEG
            gates_NYEG.div_(gates_NYEG.sum(2, keepdim=True))

        load_YEG = lse_NY1G = chosen_YEG = probs_YEG = squares_YG = None
        if weights and weights[1]:
            lse_NY1G = logits_NYEG.logsumexp(2, keepdim=True)
        ctx.tallied = recording and weights is not None
        if recording:
            load_YEG = over_rows(gates_NYEG if top_k is None else chosen_NYEG)
        if ctx.tallied:
            # A top-k router's load is its choices.
            chosen_YEG = over_rows(chosen_NYEG) if top_k is None else None
            probs_YEG = over_rows(probs_NYEG)
            squares_YG = None if lse_NY1G is None else over_rows(lse_NY1G.square()).flatten(1)
        # X is E where each expert gates a block of its own, else 1; a group has P rows.
        h_NYXGP = h_BLX.reshape(len(gates_NYEG), num_routers, num_experts if own_blocks else 1, groups, -1)
        ctx.save_for_backward(h_NYXGP, gates_NYEG, probs_NYEG if weights else None, lse_NY1G, mask_N111, rows_BM)
        ctx.shapes, ctx.dtype = (h_BLX.shape, logits_BLX.shape), logits_BLX.dtype
        mixed_NYEGP = gates_NYEG.to(h_BLX.dtype).view(-1, num_routers, num_experts, groups, 1) * h_NYXGP
        mixed = (mixed_NEGP.view(*h_BLX.shape[:2], -1) for mixed_NEGP in mixed_NYEGP.flatten(2).unbind(1))
        sampled: tuple[Tensor, ...] = ()
        choices: tuple[Tensor, ...] = ()
        if rows_BM is not None:
            sampled_NX = h_BLX.reshape(len(gates_NYEG), -1).index_select(0, rows_BM.flatten())
            sampled = sampled_NX.view(*rows_BM.shape, num_routers, -1).unbind(2)
            choices = choices_NYKG.unbind(1)
        shape = num_routers, num_experts, groups
        sums = [None if sums is None else sums.view(shape) for sums in (load_YEG, chosen_YEG, probs_YEG)]
        ctx.mark_non_differentiable(*(part for part in sums[:2] if part is not None), *choices)
        return *sums, squares_YG, *mixed, *sampled, *choices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h_NYXGP, gates_NYEG, probs_NYEG, lse_NY1G, mask_N111, rows_BM = ctx.saved_tensors
        (_, _, grad_probs_YEG, grad_squares_YG), grads = grads[:4], grads[4:]
        num_routers = gates_NYEG.shape[1]
        grad_BLYS = grads[0] if num_routers == 1 else torch.stack(grads[:num_routers], dim=2)
        grad_NYEGP = grad_BLYS.reshape(*gates_NYEG.shape[:3], h_NYXGP.shape[3], -1)
        grad_h_NYXGP = grad_NYEGP * gates_NYEG.to(grad_NYEGP.dtype).view(*grad_NYEGP.shape[:4], 1)
        if h_NYXGP.shape[2] == 1:
            grad_h_NYXGP = grad_h_NYXGP.sum(2)
        slope_NYEGP = grad_NYEGP * h_NYXGP
        # Of blocks of one row there is nothing to sum.
        slope_NYEG = slope_NYEGP.squeeze(4) if h_NYXGP.shape[4] == 1 else slope_NYEGP.sum(4)
        # Renormalised top-k gates are a softmax too, over the chosen logits alone.
        grad_NYEG = through_softmax(slope_NYEG.to(gates_NYEG.dtype).view(gates_NYEG.shape), gates_NYEG, dim=2)
        if ctx.tallied:
            price_NYEG = grad_probs_YEG.view(probs_NYEG.shape[1:]).expand_as(probs_NYEG)
            cost_NYEG = through_softmax(price_NYEG, probs_NYEG, dim=2)
            if lse_NY1G is not None:
                cost_NYEG.addcmul_(probs_NYEG, lse_NY1G * (2 * grad_squares_YG).view(lse_NY1G.shape[1:]))
            grad_NYEG.add_(cost_NYEG if mask_N111 is None else cost_NYEG * mask_N111)
        h_shape, logits_shape = ctx.shapes
        grad_h, grad_logits = grad_h_NYXGP.reshape(h_shape), grad_NYEG.to(ctx.dtype).view(logits_shape)
        if rows_BM is not None:
            samples = [grad_BMR.flatten(0, 1) for grad_BMR in grads[num_routers : 2 * num_routers]]
            samples_NX = samples[0] if num_routers == 1 else torch.cat(samples, dim=1)
            grad_h.view(len(gates_NYEG), -1).index_add_(0, rows_BM.flatten(), samples_NX)
        return grad_h, grad_logits, None, None, None, None, None, None, None, None


def through_softmax(grad: Tensor, probs: Tensor, dim: int) -> Tensor:
    """The gradient of the logits of a softmax over `dim` from that of its probabilities, as autograd has it."""
    return torch._softmax_backward_data(grad, probs, dim, probs.dtype)
