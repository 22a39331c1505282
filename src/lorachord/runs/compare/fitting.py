"""Equal parameters: the options with which a method has as many as the reference."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise, product
from typing import Any

from lorachord.baselines import BASELINES, BaselineConfig
from lorachord.core.budget import count_parameters
from lorachord.core.config import LayerSpec
from lorachord.core.registry import get_method

NEAR = 0.02
"""A row within this share of the budget meets it."""
FREE = {
    "r1": (1, 32),
    "r2": (1, 32),
    "expert_rank": (1, 16),
    "num_ups": (1, 8),
    "num_loras": (2, 8),
    "num_experts": (2, 16),
}
"""Options beside the rank that parameters depend on, with the values that are tried where the rank does not do."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """
    Attributes:
        options: of the method, all that was given and all that was found.
        parameters: trainable ones of the adapter, without heads.
        share: these over the budget.
    """

    options: Mapping[str, Any]
    parameters: int
    share: float

    @property
    def is_near(self) -> bool:
        """Whether the budget is met."""
        return abs(self.share - 1) <= NEAR


def fitted(
    method: str, layers: Sequence[LayerSpec], budget: int, *, num_tasks: int, options: Mapping[str, Any]
) -> Fitted:
    """The options nearest to the method's defaults whose parameters are within 2 % of a budget.

    The rank is solved for. Where no one rank comes near enough, some transformer blocks get the next one. Where that
    does not help either, the numbers of experts or ups are varied, from their defaults outwards.

    Args:
        layers: that are adapted.
        budget: trainable parameters over all layers, routers counted.
        options: that are given; these stay.

    Raises:
        ValueError: nothing comes within 2 %; the nearest is named.
    """
    best: Fitted | None = None
    for candidate in _candidates(_Counter(method, layers, num_tasks), budget, options):
        if candidate.is_near:
            return candidate
        if best is None or abs(candidate.share - 1) < abs(best.share - 1):
            best = candidate
    if best is None:
        raise ValueError(f"{method} has more than {budget:,} parameters at its smallest rank, whatever its options.")
    raise ValueError(
        f"{method} meets no budget of {budget:,} parameters within {NEAR:.0%}. The nearest has {best.parameters:,} "
        f"({best.share:.3f} of it), with {_shown(best.options)}. Take another rank in the recipe, give the row options "
        "of its own, or compare with --budget own."
    )


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "its defaults"


class _Counter:
    """Counts a method's parameters under many options, layers of one size once."""

    def __init__(self, method: str, layers: Sequence[LayerSpec], num_tasks: int) -> None:
        self.method, self.layers, self.num_tasks = method, layers, num_tasks
        self.config = BaselineConfig if method in BASELINES else get_method(method).Config
        self.num_blocks = layers[0].num_layers
        self._known: dict[Any, int] = {}

    def total(self, options: Mapping[str, Any]) -> int:
        """Over all layers.

        Raises:
            ValueError: options that do not go together, or not with a layer.
        """
        config = self.config.from_dict(options)
        found = 0
        for layer in self.layers:
            own = config.at(layer).to_dict()
            key = (layer.d_in, layer.d_out, str(own))
            if key not in self._known:
                self._known[key] = count_parameters(self.method, [layer], num_tasks=self.num_tasks, options=own).total
            found += self._known[key]
        return found

    def fits(self, options: Mapping[str, Any], budget: int) -> Iterator[Mapping[str, Any]]:
        """The options with the ranks below and above a budget, and with both over the blocks."""
        if "r" not in {spec.name for spec in fields(self.config)} or "r" in options:
            yield options
            return
        width = min(min(layer.d_in, layer.d_out) for layer in self.layers)
        ranks = [r for r in range(1, width + 1) if self._goes({**options, "r": r})]
        above = bisect_right(ranks, budget, key=lambda r: self.total({**options, "r": r}))
        if above == 0:
            return
        low = ranks[above - 1]
        yield {**options, "r": low}
        if above == len(ranks):
            return
        high = ranks[above]
        yield {**options, "r": high}
        least, most = (self.total({**options, "r": r}) for r in (low, high))
        num = round((budget - least) / (most - least) * self.num_blocks)
        if 0 < num < self.num_blocks and high == low + 1 and self.method not in BASELINES:
            upto = [place * num // self.num_blocks for place in range(self.num_blocks + 1)]
            yield {**options, "r": [low + after - before for before, after in pairwise(upto)]}

    def _goes(self, options: Mapping[str, Any]) -> bool:
        try:
            self.config.from_dict(options)
        except ValueError:
            return False
        return True


def _candidates(counter: _Counter, budget: int, given: Mapping[str, Any]) -> Iterator[Fitted]:
    """Fits with the other options ever further from their defaults."""
    defaults: dict[str, Any] = {spec.name: spec.default for spec in fields(counter.config)}
    # Which layers are adapted, and the like, is not the method's own.
    own = {key: value for key, value in given.items() if key in defaults}
    free = {name: most for name, most in FREE.items() if name not in own and _is_whole(defaults.get(name))}

    def distance(values: Sequence[int]) -> float:
        return sum(abs(math.log(value / defaults[name])) for name, value in zip(free, values, strict=True))

    for values in sorted(product(*(range(least, most + 1) for least, most in free.values())), key=distance):
        options = {**own, **dict(zip(free, values, strict=True))}
        try:
            for chosen in counter.fits(options, budget):
                total = counter.total(chosen)
                yield Fitted(options={**given, **chosen}, parameters=total, share=total / budget)
        except ValueError:
            # Options that do not go together.
            continue


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
