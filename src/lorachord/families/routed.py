"""The base of methods with a token-level router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from torch import Tensor

from lorachord.core.context import Context, Mixing, PenaltyFrom
from lorachord.families.joint_penalty import JointPenalty
from lorachord.families.router import Router, RouterConfig, router_losses


class RoutedAdapter(JointPenalty):
    """An adapter whose core gates A's output by one router on the layer's raw input.

    A method makes `router` in `build`, beside its factors; None where there is nothing to choose between.
    """

    mixing = Mixing.INPUT
    rows_last = True
    router: Router | None

    def reset(self) -> None:
        super().reset()
        self.reset_router()

    def reset_router(self) -> None:
        """The router's start, for a method with a start of its own for the factors."""
        if self.router is not None:
            self.router.reset()

    def router_weight(self) -> Tensor | None:
        return None if self.router is None else self.router.weight

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        if self.router is None:
            return h_BLR
        assert x_BLX is not None
        return self.router.gate(h_BLR, x_BLX, ctx).mixed_BLS

    @classmethod
    def penalties(cls, layers: Sequence[Self]) -> Mapping[str, Tensor]:
        return router_losses([one.router for one in layers if one.router is not None])

    @property
    def penalty_from(self) -> PenaltyFrom:
        penalised = self.router is not None and self.router.penalised
        return PenaltyFrom.PASS if penalised else PenaltyFrom.NOTHING


def require_top_k(config: RouterConfig, top_k: int) -> None:
    """Raise a ValueError if a config with `num_experts` has fewer of them, in some layer, than a token is to use."""
    fewest = min(config.values_of("num_experts"))
    if top_k > fewest:
        name = type(config).__qualname__
        raise ValueError(f"{name}: top_k = {top_k}, but some layers have only {fewest} experts.")
