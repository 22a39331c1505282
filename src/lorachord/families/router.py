"""A router: gates over experts for each token, and the losses that keep its experts in use and its logits small.

Shapes: B samples, L rows of one sample, N = B * L rows; D inputs; R rows of h, S of the result; E experts, K of them
chosen per row; G groups of rank slots, each with gates of its own.

The balance loss (Switch, arXiv 2101.03961, eq. 4) is `E sum_e f_e P_e` for each group, meaned over groups: f_e the
share of choices that fell on e, P_e the mean probability of e; it is 1 at balance. Gradients flow through P alone. A
dense router's choice is its most probable expert. The z-loss is that of ST-MoE (arXiv 2202.08906, eq. 5). Both are
means over the rows of all ranks, scaled so that the mean of the ranks' gradients is that of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import MethodConfig, option
from lorachord.core.context import Context
from lorachord.core.rows import mask_of
from lorachord.distributed import across_ranks
from lorachord.kernels.route import Routed, route


@dataclass(frozen=True, kw_only=True)
class RouterConfig(MethodConfig):
    """The options of every method with a router.

    Args:
        balance: weight of the Switch balance loss of each layer. Default 0.
        z: weight of the z-loss of each layer, the mean of logsumexp squared. Default 0.
        noise: standard deviation of the Gaussian noise that the logits get in training, from torch's global generator
            (which a checkpoint's recompute restores). Default 0.
    """

    balance: float = option(0.0, low=0)
    z: float = option(0.0, low=0)
    noise: float = option(0.0, low=0)


class Tally(NamedTuple):
    """Sums over the rows that count: choices; probabilities, with a gradient; logsumexp squared, for a z-loss."""

    chosen_EG: Tensor
    probs_EG: Tensor
    squares_G: Tensor | None


class Router(nn.Module):
    """Token-level gates `g = softmax(W x)` without a bias, dense or top-k renormalised.

    It starts Kaiming-uniform: with equal gates and zero `B` all experts would stay identical for ever.

    With several groups the rows of A fall into G blocks, and each has a router of its own. W stacks them experts first:
    rows e G to (e + 1) G are those of expert e.

    Args:
        d_in: D.
        num_experts: E, at least 2.
        config: weights of the losses, and noise.
        top_k: K, from 2 to E (with 1, renormalised gates are constant and the router gets no gradient); None keeps all.
        groups: G.
        own_blocks: whether each expert gates a block of rows of its own, as where experts do not share A; with one
            group only.

    Attributes:
        recorded: the tally of the last forward pass in training, if there is a loss.
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

    def gate(self, h_BLR: Tensor, logits_BLX: Tensor, ctx: Context, rows_BM: Tensor | None = None) -> Routed:
        """`g (x) h` (B, L, S), experts side by side, as `mixed_BLS`; and a sample of rows. Records load and tally.

        Args:
            h_BLR: the rows that all experts share, then S = E R; or their own blocks side by side, then S = R.
            logits_BLX: `W x`, (B, L, E G); in training they get the config's noise.
            ctx: of this pass; padding counts in no loss and no load.
            rows_BM: the rows to sample, see `route`. A dense router has no choices to sample.
        """
        found = route(
            h_BLR,
            self.noisy(logits_BLX),
            groups=self.groups,
            own_blocks=self.own_blocks,
            top_k=self.top_k,
            mask_BL=mask_of(ctx, logits_BLX),
            recording=ctx.recording,
            tallied=self.training and self.penalised,
            with_squares=self.config.z > 0,
            rows_BM=rows_BM,
        )
        if found.load_EG is not None:
            # Marked as without a gradient, it still has one to the compiler.
            load_EG = found.load_EG.detach()
            total = load_EG if self.total is None else self.total.to(load_EG.device) + load_EG
            tally = None
            if found.chosen_EG is not None and found.probs_EG is not None:
                tally = Tally(found.chosen_EG, found.probs_EG, found.squares_G)
            # A module's own way to set an attribute takes as long as an operation.
            vars(self).update(last=load_EG, total=total, recorded=tally)
        return found

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


def share(counts_EG: Tensor) -> Tensor:
    """Counts by expert as shares: (E,), or (G, E) of several groups."""
    return (counts_EG / counts_EG.sum(0).clamp_min(1)).t().squeeze(0)


def router_losses(routers: Sequence[Router]) -> dict[str, Tensor]:
    """The weighted losses of the last passes of several routers, `balance` and `z`; with one exchange between ranks.

    Routers that are alike in all but their weights are taken together.
    """
    alike: dict[Any, list[Tally]] = {}
    for router in routers:
        if router.recorded is not None:
            chosen_EG = router.recorded.chosen_EG
            key = router.config, router.top_k, chosen_EG.shape, chosen_EG.device
            alike.setdefault(key, []).append(router.recorded)
    terms: dict[str, list[Tensor]] = {}
    for (config, top_k, *_), tallies in alike.items():
        for name, loss in _losses(config, top_k or 1, tallies).items():
            terms.setdefault(name, []).append(loss)
    return {name: torch.stack([loss.to(losses[0].device) for loss in losses]).sum() for name, losses in terms.items()}


def _losses(config: RouterConfig, num_choices: int, tallies: Sequence[Tally]) -> dict[str, Tensor]:
    """Of Y routers."""
    chosen, probs, squares = zip(*tallies, strict=True)
    chosen_YEG, num_ranks = across_ranks(torch.stack(chosen))
    _, num_experts, groups = chosen_YEG.shape
    # A row chooses so often in every group, and a dense one's probabilities sum to 1: this counts rows.
    num_rows_Y11 = (chosen_YEG.sum((1, 2), keepdim=True) / (groups * num_choices)).clamp_min(1)
    losses = {}
    if config.balance:
        price_YEG = chosen_YEG / num_rows_Y11**2 * (config.balance * num_experts * num_ranks / (groups * num_choices))
        losses["balance"] = (price_YEG * torch.stack(probs)).sum()
    if config.z:
        losses["z"] = (torch.stack(squares) / num_rows_Y11.squeeze(2)).sum() * (config.z * num_ranks / groups)
    return losses
