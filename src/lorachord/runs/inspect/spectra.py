"""Singular values of updates: how many directions an update has, and how evenly it uses them.

MultiLoRA ("MultiLoRA: Democratizing LoRA for Better Multi-Task Learning", arXiv 2311.11501) claims that LoRA's updates
are dominated by their top singular vectors, and its own less so.

>>> from lorachord.fusion.factors import LowRank
>>> found = spectra({"all": {"layer": LowRank(torch.eye(2, 4), torch.eye(3, 2))}})
>>> found.values.tolist(), found.effective_rank.tolist(), found.top_share(1).tolist()
([[[1.0, 1.0]]], [[2.0]], [[0.5]])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from lorachord.fusion.factors import LowRank, svd
from lorachord.runs.inspect.figure import Array, Figure, Rows, by_kind, mean, number, short

DOMINATED = 0.5
"""A top value with a larger share of the energy outweighs all others together."""
EVERY = "all"
"""Whose update it is, where all tasks have the same one."""


@final
@dataclass(frozen=True)
class Spectra(Figure):
    """The singular values of U updates in L layers.

    Attributes:
        owners: whose updates these are, U names: tasks, or `all`.
        layers: L names.
        values: (U, L, R) in falling order, with zeros beyond a layer's rank; NaN where an update leaves a layer alone.
        ranks: the most directions that the factors allow, (U, L); 0 where there are none.
    """

    name = "spectra"
    title = "Singular values of the updates"
    meaning = (
        "The energy of a direction is its squared singular value. The effective rank is exp(entropy) of the energies' "
        "shares: 1 where one direction has all, R where R have the same. The stable rank is all energy over the top "
        f"one's. A top share above {DOMINATED} means that one direction outweighs all others together. MultiLoRA "
        "(arXiv 2311.11501) claims that LoRA's updates are so dominated, and its own less."
    )

    owners: tuple[str, ...]
    layers: tuple[str, ...]
    values: Array
    ranks: Array

    @property
    def shares(self) -> Array:
        """Each direction's share of the energy, (U, L, R); NaN where an update is zero."""
        return _shares(self.values**2)

    def top_share(self, k: int = 1) -> Array:
        """The share of the energy that the k largest singular values hold, (U, L)."""
        share: Array = self.shares[..., :k].sum(-1)
        return share

    @property
    def effective_rank(self) -> Array:
        """exp(-sum p log p) with p the shares of the energy, (U, L)."""
        return _exp_entropy(self.shares)

    @property
    def effective_rank_of_values(self) -> Array:
        """The same with p the shares of the singular values, not squared (Roy and Vetterli 2007), (U, L)."""
        return _exp_entropy(_shares(self.values))

    @property
    def stable_rank(self) -> Array:
        """The energy over that of the top value, (U, L)."""
        return 1 / self.top_share()

    @property
    def words(self) -> str:
        top = float(mean(self.top_share()))
        if np.isnan(top):
            return "The updates are zero: nothing was trained."
        dominated = "outweighs all others together" if top > DOMINATED else "does not outweigh the others"
        effective, most = float(mean(self.effective_rank)), float(self.ranks.max())
        return (
            f"In the mean over layers the top direction holds {top:.2f} of the energy: it {dominated}. The effective "
            f"rank is {effective:.1f} of at most {most:.0f}."
        )

    def rows(self) -> Rows:
        made = [["updates of", "layers", "", "top 1", "top 4", "effective", "stable", "of"]]
        columns = (self.top_share(), self.top_share(4), self.effective_rank, self.stable_rank, self.ranks)
        everywhere = list(range(len(self.layers)))
        chosen = [("all", kind, slice(None), places) for kind, places in by_kind(self.layers).items()]
        if len(self.owners) > 1:
            chosen += [(short(owner, 12), "all", slice(at, at + 1), everywhere) for at, owner in enumerate(self.owners)]
        for owner, kind, updates, places in chosen:
            values = [float(mean(column[updates][:, places])) for column in columns]
            cells = [number(value, 2 if at < 2 else 1) for at, value in enumerate(values)]
            made.append([owner, kind, str(len(places)), *cells[:4], cells[4].removesuffix(".0")])
        return made

    def summary(self) -> dict[str, Any]:
        def by_owner(values: Array) -> dict[str, float]:
            return dict(zip(self.owners, mean(values, axis=1).tolist(), strict=True))

        return {
            "top_share": by_owner(self.top_share()),
            "top_4_share": by_owner(self.top_share(4)),
            "effective_rank": by_owner(self.effective_rank),
            "effective_rank_of_values": by_owner(self.effective_rank_of_values),
            "stable_rank": by_owner(self.stable_rank),
            "most": int(self.ranks.max()),
            "layers": len(self.layers),
        }

    def arrays(self) -> dict[str, Array]:
        derived = {
            "top_share": self.top_share(),
            "effective_rank": self.effective_rank,
            "effective_rank_of_values": self.effective_rank_of_values,
            "stable_rank": self.stable_rank,
        }
        return {**super().arrays(), **derived}


def spectra(updates: Mapping[str, Mapping[str, LowRank]]) -> Spectra:
    """The singular values of updates, computed between the QR factors of their factors.

    Args:
        updates: by owner and layer.
    """
    layers = tuple(dict.fromkeys(layer for own in updates.values() for layer in own))
    found = {(owner, layer): pair for owner, own in updates.items() for layer, pair in own.items()}
    most = max(min(pair.rank, len(pair.up_OR), pair.down_RD.shape[1]) for pair in found.values())
    values = np.full((len(updates), len(layers), most), np.nan)
    ranks = np.zeros((len(updates), len(layers)), dtype=np.int64)
    for (owner, layer), pair in found.items():
        at = list(updates).index(owner), layers.index(layer)
        with torch.no_grad():
            own = svd(pair)[1].cpu().numpy()
        # Rounding leaves values where there are no directions.
        own = np.where(own > own.max(initial=0) * 1e-7, own, 0)
        values[at] = 0
        values[at][: len(own)] = own
        ranks[at] = len(own)
    return Spectra(tuple(updates), layers, values, ranks)


def _shares(values: Array) -> Array:
    total = values.sum(-1, keepdims=True)
    return values / np.where(total > 0, total, np.nan)


def _exp_entropy(shares: Array) -> Array:
    entropy: Array = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)
    return np.exp(entropy)


@final
@dataclass(frozen=True)
class Beside(Figure):
    """The spectra of two adapters in the L layers that both change, averaged over their updates.

    Attributes:
        names: of the two.
        layers: L names.
        top_share: (2, L).
        effective_rank: (2, L).
    """

    name = "beside"
    title = "Singular values, beside another adapter"
    meaning = (
        "A smaller top share and a larger effective rank mean that the energy is spread more evenly. Compare adapters "
        "of equal parameters, trained alike. MultiLoRA (arXiv 2311.11501) claims to be the more even one. One pair "
        "of runs has no interval: other seeds give other numbers."
    )

    names: tuple[str, str]
    layers: tuple[str, ...]
    top_share: Array
    effective_rank: Array

    @property
    def words(self) -> str:
        (top, other_top), (rank, other_rank) = mean(self.top_share, axis=1), mean(self.effective_rank, axis=1)
        more_even = int((self.top_share[0] < self.top_share[1]).sum())
        return (
            f"The top direction holds {top:.2f} of the energy in {self.names[0]}, and {other_top:.2f} in "
            f"{self.names[1]}. The effective ranks are {rank:.1f} and {other_rank:.1f}. In {more_even} of "
            f"{len(self.layers)} layers the first is the more even one."
        )

    def rows(self) -> Rows:
        made = [["layers", "", "top 1", "other", "effective", "other"]]
        for kind, places in by_kind(self.layers).items():
            top, effective = (mean(values[:, places], axis=1) for values in (self.top_share, self.effective_rank))
            cells = [*(number(value) for value in top), *(number(value, 1) for value in effective)]
            made.append([kind, str(len(places)), *cells])
        return made

    def summary(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "top_share": mean(self.top_share, axis=1).tolist(),
            "effective_rank": mean(self.effective_rank, axis=1).tolist(),
            "layers": len(self.layers),
        }


def beside(own: Spectra, other: Spectra, names: tuple[str, str]) -> Beside:
    """Two spectra in the layers that both have.

    Raises:
        ValueError: they have none in common.
    """
    layers = tuple(layer for layer in own.layers if layer in other.layers)
    if not layers:
        raise ValueError(
            f"{names[0]} and {names[1]} change no layer in common ({own.layers[0]}, {other.layers[0]}, ...): their "
            "spectra cannot stand beside each other."
        )
    both = [(each, [each.layers.index(layer) for layer in layers]) for each in (own, other)]
    top = np.stack([mean(each.top_share()[:, places], axis=0) for each, places in both])
    effective = np.stack([mean(each.effective_rank[:, places], axis=0) for each, places in both])
    return Beside(names, layers, top, effective)
