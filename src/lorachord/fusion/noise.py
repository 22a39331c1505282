"""Task vectors that have come over a noisy channel.

    tau_t + n_t in every tensor,   |tau_t|^2 / E|n_t|^2 = SNR

The channel of R-MTLLMF (arXiv 2411.18220). Construction, from the abstract's words: `gaussian` noise is white, so a
low-rank update becomes a dense one. `leading` noise has the same power in the leading singular directions of the update
itself, those that hold half of its energy: the update then keeps its rank. That often hurts more than white noise, but
it is no worst case: nothing is measured, and on some adapters it is the milder of the two.

Shapes: D inputs and O outputs of a layer, R and K ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lorachord.fusion.factors import LowRank, truncate
from lorachord.fusion.task_vectors import Dense, Layer, Stacked, TaskVectors
from lorachord.messages import suggest

KINDS = ("gaussian", "leading")
SHARE = 0.5
"""Of an update's energy, in the directions that `leading` noise takes."""


def check_kind(kind: str) -> None:
    """Raise a ValueError unless there is such noise."""
    if kind not in KINDS:
        raise ValueError(f"There is no noise {kind!r}. {suggest(kind, KINDS)}")


def with_noise(vectors: TaskVectors, decibels: float, kind: str = "gaussian", seed: int = 0) -> TaskVectors:
    """The task vectors with noise on every tensor.

    Args:
        decibels: the signal-to-noise ratio, 10 log10 SNR.
        kind: `gaussian` or `leading`; other parameters than linear layers' weights get the former in any case.
        seed: of the noise, which does not depend on the order in which tensors are read.

    Raises:
        ValueError: an unknown kind.
    """
    check_kind(kind)
    power = 10 ** (-decibels / 10)

    def noisy(name: str, layer: Layer) -> Layer:
        if kind == "leading" and isinstance(layer, Stacked):
            tasks = range(len(layer.ranks))
            return Stacked.of([_leading(layer.factors(t), power, _generator(seed, name, t)) for t in tasks])
        return Dense(_white(layer, power, seed, name), layer.shape, len(vectors.tasks))

    def white(name: str, layer: Dense) -> Dense:
        return Dense(_white(layer, power, seed, name), layer.shape, len(vectors.tasks))

    return replace(
        vectors,
        layers={name: noisy(name, layer) for name, layer in vectors.layers.items()},
        others={name: white(name, layer) for name, layer in vectors.others.items()},
    )


def _generator(seed: int, name: str, task: int) -> torch.Generator:
    mixed = seed
    for value in (*name.encode(), task):
        mixed = (mixed * 257 + value) % (2**61 - 1)
    return torch.Generator().manual_seed(mixed)


def _white(layer: Layer, power: float, seed: int, name: str) -> Callable[[int], Tensor]:
    def read(task: int) -> Tensor:
        delta = layer.delta(task)
        deviation = (power * delta.square().mean()).sqrt()
        return delta + deviation * torch.randn(delta.shape, generator=_generator(seed, name, task)).to(delta)

    return read


def _leading(update: LowRank, power: float, generator: torch.Generator) -> LowRank | None:
    """With Gaussian noise between its leading singular directions, whose power is exact."""
    if not update.rank:
        return None
    # Its factors hold the roots of the singular values, in descending order.
    even, _ = truncate(update, update.rank)
    energy_R = even.down_RD.square().sum(1).square()
    if not float(energy_R.sum()):
        return update
    size = 1 + int((energy_R.cumsum(0) < SHARE * energy_R.sum()).sum())
    left_OK = even.up_OR[:, :size] / even.up_OR[:, :size].norm(dim=0)
    right_KD = even.down_RD[:size] / even.down_RD[:size].norm(dim=1, keepdim=True)
    noise_KK = torch.randn(size, size, generator=generator).to(left_OK)
    noise_KK *= (power * energy_R.sum()).sqrt() / noise_KK.norm()
    # tau + n = U_K (S_K + N) V_K^T + the rest: the rows of `down` change, those of `up` stay.
    root_K = energy_R[:size] ** 0.25
    mixed_KD = even.down_RD[:size] + (noise_KK / root_K[:, None]) @ right_KD
    return LowRank(torch.cat([mixed_KD, even.down_RD[size:]]), even.up_OR)
