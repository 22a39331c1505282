"""Updates in a model for a while: adapters that add them, put around its linear layers and taken off again.

Shapes: D inputs and O outputs of a layer; R rows of the stacked factors; T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lorachord.core.adapter import Adapter
from lorachord.core.config import LayerSpec, MethodConfig
from lorachord.core.context import NO_CONTEXT, Context, Mixing
from lorachord.core.forward import Frozen
from lorachord.fusion.factors import LowRank, Update
from lorachord.fusion.task_vectors import Dense, Layer, Stacked
from lorachord.tuner.layer import LorachordLinear
from lorachord.tuner.state import SharedState

NAME = "fusion"


class Combination(Adapter):
    """`sum_t lambda_t tau_t` in one layer: the task vectors frozen, the coefficients (T,) a parameter.

    Args:
        layer: where it sits.
        coefficients: the lambda_t, which several layers may share.
    """

    mixing = Mixing.STATIC
    method = NAME

    def __init__(self, layer: LayerSpec, coefficients: nn.Parameter) -> None:
        super().__init__(layer, MethodConfig())
        self.coefficients = coefficients

    def build(self) -> None:
        """Nothing: the factors are given."""

    def reset(self) -> None:
        """Nothing: the factors are given."""

    @property
    def scale(self) -> float:
        return 1.0


@final
class StackedCombination(Combination):
    """Of stacked factors: `y = W0 x + B diag(lambda) A x`, with lambda_t over the rows of task t.

    The gradient of lambda comes out of `A x` and `B^T g`, which are at hand; nothing dense is made.
    """

    def __init__(self, layer: LayerSpec, vectors: Stacked, coefficients: nn.Parameter) -> None:
        super().__init__(layer, coefficients)
        self.register_buffer("stacked_down", vectors.down_RD)
        self.register_buffer("stacked_up", vectors.up_OR)
        self.register_buffer("owners", vectors.owners)

    def down_weight(self) -> Tensor:
        return self.get_buffer("stacked_down")

    def up_weight(self) -> Tensor:
        return self.get_buffer("stacked_up")

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        return h_BLR * self.coefficients[self.get_buffer("owners")].to(h_BLR.dtype)


@final
class DenseCombination(Combination):
    """Of dense task vectors, all held: (T, O, D)."""

    def __init__(self, layer: LayerSpec, deltas_TOD: Tensor, coefficients: nn.Parameter) -> None:
        super().__init__(layer, coefficients)
        self.register_buffer("deltas", deltas_TOD)

    def forward(self, x: Tensor, frozen: Frozen, ctx: Context = NO_CONTEXT, *, alone: bool = False) -> Tensor:
        delta_OD = torch.einsum("t,tod->od", self.coefficients, self.get_buffer("deltas"))
        out = frozen(x)
        return out + F.linear(x, delta_OD.to(x.dtype)).to(out.dtype)


class Plus(nn.Module):
    """A parametrization: a parameter that is no linear layer's weight, plus `sum_t lambda_t tau_t`."""

    def __init__(self, deltas: Tensor, coefficients: nn.Parameter) -> None:
        super().__init__()
        self.register_buffer("deltas", deltas)
        self.coefficients = coefficients

    def forward(self, parameter: Tensor) -> Tensor:
        """The sum, in the parameter's dtype."""
        update: Tensor = torch.tensordot(self.coefficients, self.get_buffer("deltas"), dims=1)
        return (parameter + update).to(parameter.dtype)


def layer_spec(name: str, layer: Layer) -> LayerSpec:
    """The spec of a layer of task vectors; blocks do not matter here."""
    d_out, d_in = layer.shape
    return LayerSpec(name, 0, 1, d_in, d_out)


def combination(name: str, layer: Layer, coefficients: nn.Parameter) -> Combination:
    """The adapter of one layer's task vectors; dense ones are now held in memory."""
    spec = layer_spec(name, layer)
    if isinstance(layer, Stacked):
        return StackedCombination(spec, layer, coefficients)
    deltas_TOD = torch.stack([layer.delta(task) for task in range(layer.num_tasks)])
    return DenseCombination(spec, deltas_TOD, coefficients)


def fixed(name: str, update: Update) -> Combination:
    """The adapter that adds one update."""
    device = update.up_OR.device if isinstance(update, LowRank) else update.device
    one = nn.Parameter(torch.ones(1, device=device))
    layer: Layer = Stacked.of([update]) if isinstance(update, LowRank) else Dense(lambda _: update, update.shape, 1)
    return combination(name, layer, one)


def owners(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """The modules that have this parameter, tied ones too, each with what it is called there."""
    parameter = model.get_parameter(name)
    named = model.named_parameters(remove_duplicate=False)
    paths = [path.rpartition(".") for path, other in named if other is parameter]
    return [(model.get_submodule(path), own) for path, _, own in paths]


@contextmanager
def inside(model: nn.Module, adapters: Mapping[str, Adapter], others: Mapping[str, Plus]) -> Iterator[nn.Module]:
    """Within this block the model has these updates; its own weights are not written.

    Args:
        model: see `skeleton`.
        adapters: by the layer's name.
        others: by the parameter's name.
    """
    shared, originals, places = SharedState(), {}, {}
    try:
        for name, plus in others.items():
            places[name] = owners(model, name)
            for module, own in places[name]:
                parametrize.register_parametrization(module, own, plus, unsafe=True)
        for name, adapter in adapters.items():
            originals[name] = model.get_submodule(name)
            layer = LorachordLinear(originals[name], shared, NAME)
            layer.update_layer(NAME, adapter)
            model.set_submodule(name, layer)
        yield model
    finally:
        for name, original in originals.items():
            model.set_submodule(name, original)
        for module, own in chain.from_iterable(places.values()):
            parametrize.remove_parametrizations(module, own, leave_parametrized=False)


@contextmanager
def with_updates(model: nn.Module, layers: Mapping[str, Update], others: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """`inside` for updates that do not change."""
    empty = [name for name, update in layers.items() if isinstance(update, LowRank) and not update.rank]
    adapters = {name: fixed(name, update).eval() for name, update in layers.items() if name not in empty}
    plus = {name: Plus(delta[None], nn.Parameter(torch.ones(1, device=delta.device))) for name, delta in others.items()}
    with inside(model, adapters, plus), torch.no_grad():
        yield model
