"""The class that a label means, whichever format wrote it: a sheet of text, JSON, parquet, a data frame.

`1`, `1.0`, `"1"` and numpy's 1 are one number, and `true`, `"True"` and numpy's True one truth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,4})?\s*")
WORDS = ({"true": True, "false": False}, {"yes": True, "no": False, "y": True, "n": False, "1": True, "0": False})
"""Names that a truth value has, the surest first."""


def plain(value: Any) -> Any:
    """A value of numpy as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def number(value: Any) -> Decimal | None:
    """The finite number that a value is or writes; None if it is none. A truth value is none."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal, str)):
        return None
    if isinstance(value, str) and not NUMBER.fullmatch(value):
        return None
    found = Decimal(str(value).strip())
    return found if found.is_finite() else None


def truth(value: Any) -> bool | None:
    """The truth value that a value is, or writes as "true" or "false"; None if it is none."""
    value = plain(value)
    if isinstance(value, str):
        return WORDS[0].get(value.strip().casefold())
    return value if isinstance(value, bool) else None


def named(value: Any, names: Sequence[str]) -> int | None:
    """The position of the class whose name a label is; None if it is none, or could be several.

    A text is a name letter for letter; a number also as another spelling of it; a truth value also as yes or no.
    """
    own, found = truth(value), number(value)
    if own is None and found is None and not isinstance(value, str):
        return None
    if str(value) in names:
        return list(names).index(str(value))
    if own is not None:
        return _of_truth(own, names)
    same = [index for index, name in enumerate(names) if found is not None and number(name) == found]
    return same[0] if len(same) == 1 else None


def index(value: Any, names: Sequence[str]) -> Decimal | None:
    """The index that a label is among classes of other names: any whole number, 0 for false and 1 for true.

    None if it is none, or where truth values have names of their own or are too few for the classes.
    """
    own, found = truth(value), number(value)
    if own is not None:
        means = any(name.casefold() in words for name in names for words in WORDS)
        return Decimal(int(own)) if len(names) == 2 and not means else None
    return found if found is not None and found == found.to_integral_value() else None


def _of_truth(value: bool, names: Sequence[str]) -> int | None:
    for words in WORDS:
        same = [index for index, name in enumerate(names) if words.get(name.strip().casefold()) is value]
        if same:
            return same[0] if len(same) == 1 else None
    return None
