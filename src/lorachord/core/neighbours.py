"""Layers with the same input, such as query, key and value: what their adapters make of it, made in one go.

Which layers these are is learnt from one pass and used from the next on. The first of them to be called then makes what
all need, with the weights of all, and the others find it here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Members = tuple[nn.Module, ...]
Member = TypeVar("Member", bound=nn.Module)
Made = TypeVar("Made")


class Groups:
    """What is known of the adapters of one name: those after whom others read the same input, and these others.

    Args:
        adapters: all of this name.

    Attributes:
        by_first: the adapters of a group by the first of them, which is one of them. Replaced, never changed.
    """

    def __init__(self, adapters: Sequence[Any] = ()) -> None:
        self.adapters = adapters
        self.by_first: dict[nn.Module, Members] = {}

    def learn(self, members: Sequence[nn.Module]) -> None:
        """From the next pass on these are a group."""
        self.by_first = {**self.by_first, members[0]: tuple(members)}

    def forget(self, first: nn.Module) -> None:
        """From the next pass on this adapter is by itself."""
        self.by_first = {**self.by_first, first: (first,)}

    def core_weights(self) -> dict[nn.Module, Tensor]:
        """What the cores share, made in one go (`Adapter.core_weights`) of weights that are at hand, by adapter.

        An adapter whose gradients are collected per task makes its own, and so does one that is offloaded.
        """
        at_hand: dict[Any, list[Any]] = {}
        for one in self.adapters:
            if one.probes is None and one.up.numel() and not one.up.is_meta:
                at_hand.setdefault((one.config, one.up.device), []).append(one)
        made: dict[nn.Module, Tensor] = {}
        for some in at_hand.values():
            weights = type(some[0]).core_weights(some)
            if weights is not None:
                made.update(zip(some, weights, strict=True))
        return made


class Same:
    """Tells whether a tensor is the very one that was noted, and unchanged since."""

    def __init__(self) -> None:
        self._noted: tuple[Tensor, int, bool] | None = None

    def note(self, x: Tensor | None) -> None:
        """Note x, and no longer another."""
        # A tensor of inference mode does not tell whether it has changed.
        self._noted = None if x is None or x.is_inference() else (x, x._version, torch.is_grad_enabled())

    def __call__(self, x: Tensor) -> bool:
        if self._noted is None:
            return False
        noted, version, with_graph = self._noted
        return noted is x and version == x._version and with_graph == torch.is_grad_enabled()


class Neighbours:
    """What adapters have made for each other in one pass, or in a part of it that is checkpointed.

    It goes by the groups that were known when the pass began, also in a recompute, which so does as the pass did.

    Args:
        groups: what is known of these adapters, and what is learnt.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups, self._known = groups, groups.by_first
        self._same = Same()
        self._run: list[nn.Module] = []
        self._made: dict[nn.Module, Any] = {}
        self._once: dict[Any, Any] = {}

    def apart(self) -> Neighbours:
        """The same for a part of the pass."""
        part = Neighbours(self._groups)
        part._known = self._known
        return part

    def found(self, adapter: nn.Module, x: Tensor) -> Any:
        """What a neighbour has made for this adapter of this very x; None if nothing. To be asked once a call."""
        if self._same(x):
            self._run.append(adapter)
            if self._run[0] not in self._known:
                self._groups.learn(self._run)
            return self._made.pop(adapter, None)
        if self._made:
            # Somebody was made something and did not come for it.
            self._groups.forget(self._run[0])
            self._made = {}
        self._same.note(x)
        self._run = [adapter]
        return None

    def group(self, adapter: Member) -> list[Member]:
        """The adapters for whom this one is to make something, itself first: it may be alone."""
        members = self._known.get(adapter, (adapter,))
        return [*members] if all(_alike(adapter, other) for other in members) else [adapter]  # type: ignore[list-item]

    def keep(self, made: dict[nn.Module, Any]) -> None:
        """What was just made for the others."""
        self._made = made

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What all layers of this pass need alike, made by the first that asks for it."""
        if key not in self._once:
            self._once[key] = make()
        made: Made = self._once[key]
        return made

    def end(self) -> None:
        """Let go of all: the graph of a pass must not hold on to itself."""
        self._same.note(None)
        self._run, self._made, self._once = [], {}, {}


def _alike(adapter: Any, other: Any) -> bool:
    """Whether another adapter does the same, and has its weights at hand: not sharded, offloaded or not loaded.

    Gradients per task are collected by each for itself.
    """
    return other is adapter or (
        type(other) is type(adapter)
        and (other.config, other.training) == (adapter.config, adapter.training)
        and adapter.probes is None
        and other.probes is None
        and all(
            type(theirs) is type(own)
            and (theirs.device, theirs.dtype, theirs.dim()) == (own.device, own.dtype, own.dim())
            and theirs.numel() > 0
            for own, theirs in zip(adapter.parameters(), other.parameters(), strict=True)
        )
    )
