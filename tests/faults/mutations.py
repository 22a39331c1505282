"""Harm: small changes to plain data, to bytes and to tensors, drawn from a seeded generator."""

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 10**6, 10**30, -(10**30), 0.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), "", " ", "x", "x" * 600, "../x", "/", "/x", "~", "a\0b", "a\nb", "é", "\ud800", "010", "1:30",
    "nan", "inf", "1e999", "{first:>999999999}", "{first.__class__}", "{}", "{", "hub:x/y", "null", [], [[]], [None],
    ["x", "x"], {}, {"": {}}, {"x": [1, {"y": None}]}, [0] * 50,
)  # fmt: skip


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    found = [] if not path else [path]
    for key in keys:
        found += _places(tree[key], (*path, key))
    return found


def harmed_tree(draw: random.Random, tree: Any, times: int = 2) -> Any:
    """A copy of plain data with a few values replaced, left out, wrapped, renamed, repeated or taken from elsewhere."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, times)):
        places = _places(tree)
        if not places:
            return draw.choice(ODD)
        path = draw.choice(places)
        owner = tree
        for key in path[:-1]:
            owner = owner[key]
        last, kind = path[-1], draw.randrange(8)
        if kind == 0:
            del owner[last]
        elif kind == 1:
            owner[last] = [owner[last]]
        elif kind == 2 and isinstance(owner, dict):
            owner[f"{last}{draw.choice(['s', ' ', 'x', '_'])}"] = owner.pop(last)
        elif kind == 3 and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[last]))
        elif kind == 4 and isinstance(owner[last], (int, float)) and not isinstance(owner[last], bool):
            owner[last] = owner[last] * draw.choice([-1, 0, 2, 0.5, 1000, 1e300])
        elif kind == 5:
            other = tree
            for key in draw.choice(places):
                if isinstance(other, (dict, list)) and (key in other if isinstance(other, dict) else key < len(other)):
                    other = other[key]
            owner[last] = copy.deepcopy(other)
        else:
            owner[last] = copy.deepcopy(draw.choice(ODD))
    return tree


def harmed_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bytes cut off, turned, left out, repeated or put in."""
    place = draw.randrange(len(data) + 1)
    some = draw.randint(1, 64)
    kind = draw.randrange(8)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[place + some :]
    if kind == 2:
        return data[:place] + draw.randbytes(some) + data[place:]
    if kind == 3:
        return data[:place] + data[place : place + some] * draw.randint(2, 5) + data[place + some :]
    if kind == 4:
        return data[:place] + b"\0" * some + data[place + some :]
    if kind == 5:
        return (
            data[:place]
            + draw.choice([b"\xff", b"\xef\xbb\xbf", b'"', b"\r", b"\n", b"{", b"[", b",", b"&a ", b"*a"])
            + data[place:]
        )
    if kind == 6:
        return draw.choice([b"", b"\0", b"null", b"[]", b"{}", b"NaN", b"\xff\xfe", draw.randbytes(some)])
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def harmed_tensors(draw: random.Random, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor left out, renamed, added, of another shape or dtype, or not finite."""
    made = {name: tensor.clone() for name, tensor in tensors.items()}
    name = draw.choice(sorted(made))
    value = made[name]

    def spoil(bad: float) -> Tensor:
        spoilt = value.float().flatten().clone() if value.numel() else torch.zeros(1)
        spoilt[draw.randrange(len(spoilt))] = bad
        return spoilt.reshape(value.shape) if value.numel() else spoilt

    changes: list[Callable[[], object]] = [
        lambda: made.pop(name),
        lambda: made.update({f"{name}x": made.pop(name)}),
        lambda: made.update({f"{name}x": value.clone()}),
        lambda: made.update({name: value.flatten()}),
        lambda: made.update({name: value.unsqueeze(0).clone()}),
        lambda: made.update({name: value[:0].clone() if value.dim() else value.expand(3).clone()}),
        lambda: made.update({name: value.to(draw.choice([torch.int8, torch.bool, torch.float64, torch.bfloat16]))}),
        lambda: made.update({name: value.to(torch.complex64)}),
        lambda: made.update({name: spoil(draw.choice([float("nan"), float("inf"), -float("inf")]))}),
        lambda: made.update({name: made[draw.choice(sorted(made))].clone()}),
    ]
    draw.choice(changes)()
    return made
