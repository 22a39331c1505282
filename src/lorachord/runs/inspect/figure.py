"""What every figure of an inspection is: named arrays, with their threshold and their meaning in words."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = list[list[str]]


class Figure(ABC):
    """One thing to see. Each figure is one frozen dataclass, whose fields are arrays and names of their axes.

    Attributes:
        name: of its file and its key.
        title: a line.
        meaning: what a high and a low value say, the threshold between them, and the source of the claim.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]

    @property
    @abstractmethod
    def words(self) -> str:
        """Its own numbers beside the threshold, in a sentence or two."""

    @abstractmethod
    def rows(self) -> Rows:
        """A table for a terminal, of at most 80 columns; the first row is the header."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Its main numbers as plain data; NaN where there is none."""

    def arrays(self) -> dict[str, Array]:
        """Its fields by name, as numpy saves them."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


def mean(values: Array, axis: int | tuple[int, ...] | None = None) -> Any:
    """The mean over what is there: NaN does not count, and nothing has the mean NaN."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice", category=RuntimeWarning)
        return np.nanmean(values, axis=axis)


def by_kind(layers: Sequence[str]) -> dict[str, list[int]]:
    """The places of layers that have the same name in different blocks, by that name."""
    found: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        inside = re.split(r"\.\d+\.", layer)[-1]
        found.setdefault(short(inside), []).append(place)
    return found


def short(name: str, width: int = 24) -> str:
    """A name, or its end where it is longer than a column."""
    return name if len(name) <= width else f"..{name[2 - width :]}"


def number(value: float, digits: int = 2) -> str:
    """For a table."""
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
