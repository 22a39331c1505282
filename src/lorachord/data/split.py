"""Drawing rows by group, so that what belongs together lands on one side, in every task alike."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from random import Random

FRACTION = 0.1
"""The share of rows that is drawn for val."""


def place(group: str, seed: int) -> float:
    """Where a group lies in [0, 1), the same in every task and process: tasks that share a text agree on its side."""
    digest = blake2b(f"{seed}\n{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def draw(groups: Sequence[str], seed: int) -> set[int]:
    """The positions of about `FRACTION` of the rows, at least one, in whole groups, those of lowest `place` first.

    A group that would exceed the number wanted is passed over; if that is true of all, the smallest is drawn.

    Args:
        groups: each row's group.

    Raises:
        ValueError: fewer than two groups, so that one side would be empty.
    """
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    if len(members) < 2:
        raise ValueError(
            f"its {len(groups)} row(s) form {len(members)} group(s), and a held-out split needs a group of its own. "
            "Give more rows, another `group` column, or a split of that name."
        )
    wanted = max(1, round(FRACTION * len(groups)))
    drawn: set[int] = set()
    for group in sorted(members, key=lambda name: place(name, seed)):
        if len(drawn) + len(members[group]) <= wanted:
            drawn.update(members[group])
    smallest = min(members, key=lambda name: len(members[name]))
    return drawn or set(members[smallest])


def cut(num_rows: int, max_rows: int | None, seed: int) -> list[int]:
    """The positions of at most `max_rows` rows, a random choice that keeps their order."""
    if max_rows is None or max_rows >= num_rows:
        return list(range(num_rows))
    return sorted(Random(seed).sample(range(num_rows), max_rows))
