"""YAML as recipes have it: plain data, bounded, without repeated keys, and numbers by YAML 1.2."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

MAX_LETTERS, MAX_DEPTH, MAX_VALUES = 2_000_000, 50, 100_000
"""Of a text; of lists and mappings inside each other; of values, with aliases written out."""
INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
DIGITS = list("-+0123456789")


class Loader(yaml.SafeLoader):
    """Plain data only; a repeated key is an error, 1e-3 is a number, 010 is ten and 1:30 a text."""

    def __init__(self, stream: str) -> None:
        if len(stream) > MAX_LETTERS:
            raise ValueError(f"the text has {len(stream)} letters; {MAX_LETTERS} are the most.")
        super().__init__(stream)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse depths that would end in a stack overflow."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"lists or mappings are more than {MAX_DEPTH} deep inside each other.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_data(self) -> Any:
        """The data, after their size with all aliases written out."""
        node: Any = self.get_single_node()
        if node is None:
            return None
        _size(node, {})
        return self.construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            line = node.start_mark.line + 1
            raise ValueError(f"repeated key {', '.join(repeated)} in the mapping at line {line}: keep one.")
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """By YAML 1.2: 010 is ten, 0o10 eight."""
        text = str(self.construct_scalar(node)).replace("_", "")
        base = {"0o": 8, "0x": 16}.get(text.lstrip("+-")[:2], 10)
        return int(text, base)


class Dumper(yaml.SafeDumper):
    """Writes a text that the loader would take for a number in quotes."""


def _size(node: Any, known: dict[int, int | None]) -> int:
    """Values below a node.

    Raises:
        ValueError: too many, or a node inside itself.
    """
    found = known.get(id(node), 0)
    if found is None:
        raise ValueError(f"an alias at line {node.start_mark.line + 1} stands inside of what it names.")
    if not found:
        known[id(node)] = None
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inner for part in pair] if isinstance(node, yaml.MappingNode) else inner
        found = 1 + sum(_size(part, known) for part in parts)
        if found > MAX_VALUES:
            raise ValueError(f"with its aliases written out it has more than {MAX_VALUES} values.")
        known[id(node)] = found
    return found


def _drop(kind: Any) -> None:
    """Forget the numbers of YAML 1.1."""
    kind.yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in listed if tag not in (INT, FLOAT)]
        for letter, listed in kind.yaml_implicit_resolvers.items()
    }


_drop(Loader)
for each in (Loader, Dumper):
    each.add_implicit_resolver(INT, re.compile(r"^([-+]?\d[\d_]*|0o[0-7_]+|0x[0-9a-fA-F_]+)$"), DIGITS)
    number = r"^[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)([eE][-+]?\d+)?$"
    each.add_implicit_resolver(FLOAT, re.compile(number), [*DIGITS, "."])
    special = r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    each.add_implicit_resolver(FLOAT, re.compile(special), list("-+."))
Loader.add_constructor(INT, Loader.whole_number)
