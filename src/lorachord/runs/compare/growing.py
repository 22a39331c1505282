"""A comparison that grows: rows, seeds and claims that are added when it has begun.

Finished trials are kept. Claims may be added, never dropped, since all intervals are corrected for their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorachord.runs.folder import differences

Tree = Mapping[str, Any]
"""A plan as plain data; see `Plan.to_dict`."""


def in_the_way(saved: Tree, wanted: Tree) -> list[str]:
    """A line for each part of a wanted plan that differs from the saved one other than by an addition."""
    old, new = _by_name(saved), _by_name(wanted)
    for key in ("rows", "parameters", "claims"):
        new[key] = {name: value for name, value in new[key].items() if name in old[key]}
    new["seeds"] = new["seeds"][: len(old["seeds"])]
    return differences(old, new)


def _by_name(plan: Tree) -> dict[str, Any]:
    return {
        **plan,
        "rows": {row["name"]: row for row in plan["rows"]},
        "claims": {f"{first}:{second}": True for first, second in plan["claims"]},
    }
