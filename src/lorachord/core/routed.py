"""What the methods with a token-level router have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Self

from lorachord.core.adapter import Adapter
from lorachord.core.context import Context, Mixing
from lorachord.core.router_losses import losses_of
from lorachord.core.routing import Router, RouterConfig, mix


class RoutedAdapter(Adapter):
    """An adapter whose core gates what comes out of A by one router on the layer's raw input.

    A method makes `router` in `build`, beside its factors; None where there is nothing to choose between.
    """

    mixing = Mixing.INPUT
    neighbourly = True
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
        return self.cores([self], h_BLR, x_BLX, ctx)[0]

    @property
    def goes_in_groups(self) -> bool:
        return self.router is not None

    def cores(self, group: Sequence[Self], h_BLX: Tensor, x_BLX: Tensor | None, ctx: Context) -> Sequence[Tensor]:
        routers = [one.router for one in group if one.router is not None]
        if not routers:
            return [h_BLX]
        assert x_BLX is not None
        return mix(routers, h_BLX, routers[0].noisy(x_BLX), ctx)[0]

    def penalty(self) -> Tensor | None:
        return None if self.router is None else self.router.penalty()

    @classmethod
    def penalties(cls, adapters: Sequence[Self]) -> list[Tensor]:
        return losses_of([one.router for one in adapters if one.router is not None])

    @property
    def records_penalty(self) -> bool:
        return self.router is not None and self.router.penalised


def require_top_k(config: RouterConfig, top_k: int) -> None:
    """Raise a ValueError if a config with `num_experts` has fewer of them, in some layer, than a token is to use."""
    fewest = min(config.values_of("num_experts"))
    if top_k > fewest:
        name = type(config).__qualname__
        raise ValueError(f"{name}: top_k = {top_k}, but some layers have only {fewest} experts.")
