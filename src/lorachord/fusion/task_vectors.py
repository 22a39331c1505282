"""Task vectors: what each finished adapter, or each finely tuned checkpoint, adds to a base model.

    tau_t = theta_t - theta_0

Ilharco et al., "Editing Models with Task Arithmetic" (arXiv 2212.04089). Those of low-rank adapters are kept as stacked
factors and never multiplied out; dense ones are made one layer at a time.

Shapes: T tasks; D inputs and O outputs of a layer; R rows of the stacked factors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lorachord.fusion.factors import LowRank, Update
from lorachord.messages import suggest


@dataclass(frozen=True)
class Stacked:
    """The task vectors of one linear layer, as factors one below the other.

    Attributes:
        down_RD, up_OR: the factors of all tasks; scales are in `up`.
        ranks: rows of each task; 0 where its adapter leaves the layer alone.
    """

    down_RD: Tensor
    up_OR: Tensor
    ranks: tuple[int, ...]

    @classmethod
    def of(cls, factors: Sequence[LowRank | None]) -> Stacked:
        """From each task's own; None where it has none here."""
        found = [pair for pair in factors if pair is not None]
        down_RD = torch.cat([pair.down_RD for pair in found])
        up_OR = torch.cat([pair.up_OR for pair in found], dim=1)
        return cls(down_RD, up_OR, tuple(0 if pair is None else pair.rank for pair in factors))

    @property
    def shape(self) -> tuple[int, int]:
        """(O, D)."""
        return len(self.up_OR), self.down_RD.shape[1]

    @property
    def owners(self) -> Tensor:
        """The task of each row."""
        return torch.arange(len(self.ranks)).repeat_interleave(torch.tensor(self.ranks)).to(self.down_RD.device)

    def factors(self, task: int) -> LowRank:
        """One task's own."""
        start = sum(self.ranks[:task])
        rows = slice(start, start + self.ranks[task])
        return LowRank(self.down_RD[rows], self.up_OR[:, rows])

    def delta(self, task: int) -> Tensor:
        """One task's dense update (O, D)."""
        return self.factors(task).dense()

    def combine(self, weights_T: Tensor) -> LowRank:
        """`sum_t w_t tau_t`, exact; tasks of weight 0 take no rank."""
        weight_R = weights_T.to(self.up_OR)[self.owners]
        kept_R = weight_R != 0
        return LowRank(self.down_RD[kept_R], (self.up_OR * weight_R)[:, kept_R])


@dataclass(frozen=True)
class Dense:
    """The task vectors of one parameter, as tensors that are read or computed when asked for.

    Attributes:
        read: the update of one task by its index; of a linear layer's weight, in the orientation (O, D).
        shape: of an update.
        num_tasks: T.
    """

    read: Callable[[int], Tensor]
    shape: tuple[int, ...]
    num_tasks: int

    def delta(self, task: int) -> Tensor:
        """One task's update."""
        return self.read(task)

    def combine(self, weights_T: Tensor) -> Tensor:
        """`sum_t w_t tau_t`, reading one task at a time."""
        total = torch.zeros(())
        for task, weight in enumerate(weights_T.tolist()):
            if weight:
                total = total + weight * self.read(task)
        return total.expand(self.shape)

    def held(self) -> Dense:
        """The same, in memory: T tensors."""
        return held(torch.stack([self.read(task) for task in range(self.num_tasks)]))


def held(deltas: Tensor) -> Dense:
    """Dense task vectors in memory, (T, ...)."""
    return Dense(deltas.__getitem__, tuple(deltas.shape[1:]), len(deltas))


Layer = Stacked | Dense


@dataclass(frozen=True)
class TaskVectors:
    """The task vectors of several tasks over one base.

    Attributes:
        base: a model of its own that shares the base's weights, frozen and in eval mode, with a head for each task
            where the adapters came with heads.
        tasks: their names.
        layers: of linear layers' weights, by the layer's name in `base`.
        others: of other parameters (biases, norms, embeddings), by their names: of full checkpoints alone.
    """

    base: nn.Module
    tasks: tuple[str, ...]
    layers: Mapping[str, Layer]
    others: Mapping[str, Dense]

    def delta(self, name: str, task: int) -> Tensor:
        """The dense update of one layer or parameter."""
        return (self.layers[name] if name in self.layers else self.others[name]).delta(task)

    def combine(self, weights: Mapping[str, Tensor] | Tensor) -> tuple[dict[str, Update], dict[str, Tensor]]:
        """`sum_t w_t tau_t` of the layers and of the others.

        Args:
            weights: (T,), or one such by name.
        """

        def of(name: str) -> Tensor:
            return weights if isinstance(weights, Tensor) else weights[name]

        layers: dict[str, Update] = {name: layer.combine(of(name)) for name, layer in self.layers.items()}
        return layers, {name: layer.combine(of(name)) for name, layer in self.others.items()}

    def without(self, names: Sequence[str]) -> TaskVectors:
        """The same with some layers left to the base.

        Args:
            names: layers or parameters, or blocks that they lie in (`encoder.layer.0`), by whole parts of their names.

        Raises:
            ValueError: a name that leaves nothing out, or nothing is left.
        """
        known = [*self.layers, *self.others]
        dropped = set()
        for name in names:
            pattern = re.compile(rf"(^|\.){re.escape(name)}(\.|$)")
            found = {full for full in known if pattern.search(full)}
            if not found:
                raise ValueError(f"protect names {name!r}, which no adapter changes. {suggest(name, known)}")
            dropped |= found
        if len(dropped) == len(known):
            raise ValueError("protect names every layer that the adapters change: nothing is left to fuse.")
        return replace(
            self,
            layers={name: layer for name, layer in self.layers.items() if name not in dropped},
            others={name: layer for name, layer in self.others.items() if name not in dropped},
        )
