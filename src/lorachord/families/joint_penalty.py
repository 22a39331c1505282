"""Penalties that the layers of a model make together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self, final

from torch import Tensor

from lorachord.core.adapter import Adapter


class JointPenalty(Adapter):
    """An adapter whose penalty is computed for all layers in one go: fewer operations, and one exchange between ranks.

    Its methods write `penalties` in place of `penalty`.
    """

    @classmethod
    @abstractmethod
    def penalties(cls, layers: Sequence[Self]) -> Mapping[str, Tensor]:
        """The weighted penalties of several layers by name, each summed over the layers; empty where there is none."""

    @final
    def penalty(self) -> Mapping[str, Tensor]:
        return self.penalties([self])
