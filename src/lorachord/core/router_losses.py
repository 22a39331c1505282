"""The losses that keep a router's experts in use and its logits small, made of what its passes have recorded.

Shapes: E experts; G groups of rank slots, each with gates of its own; Y routers with the same input.

The balance loss (Switch, arXiv 2101.03961, eq. 4) is `E sum_e f_e P_e` for each group, meaned over groups: f_e the
share of choices that fell on e, P_e the mean probability of e; it is 1 at balance. Gradients flow through P alone. A
dense router's choice is its most probable expert. The z-loss is that of ST-MoE (arXiv 2202.08906, eq. 5). Both are
means over the rows of all ranks, scaled so that the mean of the ranks' gradients is that of one process. They are made
when they are asked for, of all layers in one go and with one collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lorachord.core.ranks import across_ranks

if TYPE_CHECKING:
    from lorachord.core.routing import Router, RouterConfig


class Tally(NamedTuple):
    """What the losses of routers with the same input are made of: sums over the rows that count.

    Choices; probabilities, through which gradients flow; and, for a z-loss, each group's logsumexp squared.
    """

    chosen_YEG: Tensor
    probs_YEG: Tensor
    squares_YG: Tensor | None

    def of(self, nth: list[int]) -> Tally:
        """That of some of the routers; itself if these are all."""
        if nth == [*range(len(self.chosen_YEG))]:
            return self
        return Tally(*(None if part is None else part[nth] for part in self))  # type: ignore[arg-type]


def losses_of(routers: Sequence[Router]) -> list[Tensor]:
    """Scalars that add up to the weighted losses of routers; one for those alike in all but their weights."""
    alike: dict[Any, dict[int, tuple[Tally, list[int]]]] = {}
    for router in routers:
        if router.recorded is not None:
            tally, nth = router.recorded
            shape, device = tally.chosen_YEG.shape[1:], tally.chosen_YEG.device
            tallies = alike.setdefault((router.config, router.top_k, shape, device), {})
            tallies.setdefault(id(tally), (tally, []))[1].append(nth)
    return [
        _losses(config, top_k or 1, [tally.of(nth) for tally, nth in tallies.values()])
        for (config, top_k, *_), tallies in alike.items()
    ]


def _losses(config: RouterConfig, num_choices: int, tallies: Sequence[Tally]) -> Tensor:
    chosen, probs, squares = zip(*tallies, strict=True)
    chosen_YEG, num_ranks = across_ranks(torch.cat(chosen))
    _, num_experts, groups = chosen_YEG.shape
    # A row chooses so often in every group, and a dense one's probabilities sum to 1: this counts rows.
    num_rows_Y11 = (chosen_YEG.sum((1, 2), keepdim=True) / (groups * num_choices)).clamp_min(1)
    price_YEG = chosen_YEG / num_rows_Y11**2 * (config.balance * num_experts * num_ranks / (groups * num_choices))
    loss = (price_YEG * torch.cat(probs)).sum()
    if config.z:
        loss = loss + (torch.cat(squares) / num_rows_Y11.squeeze(2)).sum() * (config.z * num_ranks / groups)
    return loss
