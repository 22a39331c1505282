"""Where an adapter sits, and the configuration of a method: frozen dataclasses whose fields carry their own checks.

A field may hold one value, or, where it is declared `per_layer`, a tuple of values that is spread evenly over the
transformer blocks: `(2, 4, 6, 8)` on 32 blocks gives 2 to the first eight, 4 to the next eight, and so on. Where it is
declared `per_module`, it may be a mapping from modules' names to values; a module that it does not name has the
default. Its annotation is that of one value, which is what a layer sees after `at`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from lorachord.messages import suggest


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Where an adapter sits: one linear layer of the base model.

    Attributes:
        name: the module's name in the base model.
        index: the transformer block that it belongs to, from 0.
        num_layers: how many blocks there are.
        d_in, d_out: features of its input and output.
    """

    name: str
    index: int
    num_layers: int
    d_in: int
    d_out: int


def option(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    per_layer: bool = False,
    per_module: bool = False,
    items: type | None = None,
    names_model: bool = False,
) -> Any:
    """A checked field of a method's config.

    Args:
        default: the default value; the type of its first value is the type that the field accepts.
        low, high: inclusive bounds.
        above, below: exclusive bounds.
        choices: the strings that are allowed.
        per_layer: whether a tuple with one value per group of blocks is accepted.
        per_module: whether a mapping from modules' names to values is accepted.
        items: the type of the items of a field whose one value is a tuple; bounds and choices are then theirs.
        names_model: whether the value is the name of a model: `base`, a folder, or a name on the hub.
    """
    kind = items or type(default[0] if isinstance(default, tuple) else default)
    bounds = {"at least": low, "at most": high, "above": above, "below": below}
    rules = {name: bound for name, bound in bounds.items() if bound is not None}
    checks = {"kind": kind, "is_list": items is not None, "rules": rules, "choices": choices}
    accepts = {"per_layer": per_layer, "per_module": per_module, "names_model": names_model}
    return field(default=default, metadata={**checks, **accepts})


LARGEST = 1e12
"""No option is larger: float32 must hold its products, and 64 bits a whole number."""


def _has_kind(value: Any, kind: type) -> bool:
    if kind in (float, int):
        number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        # False of a NaN.
        return number and -LARGEST <= value <= LARGEST
    return isinstance(value, kind)


_COMPARE: dict[str, Callable[[Any, float], bool]] = {
    "at least": lambda value, bound: value >= bound,
    "at most": lambda value, bound: value <= bound,
    "above": lambda value, bound: value > bound,
    "below": lambda value, bound: value < bound,
}
_KIND_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def _with(new: type, old: type, value: Any) -> Any:
    """A value, or a mapping of values, with sequences of the new type in place of the old."""
    if isinstance(value, Mapping):
        return {key: _with(new, old, single) for key, single in value.items()}
    return new(value) if isinstance(value, old) else value


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked options: every field is an `option`."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            self._check(spec.name, getattr(self, spec.name), spec.metadata)

    def _check(self, name: str, value: Any, checks: Mapping[str, Any]) -> None:
        if checks["per_module"] and isinstance(value, Mapping):
            for module, single in value.items():
                self._check(f"{name}[{module!r}]", single, {**checks, "per_module": False})
            return
        kind, rules, choices, is_list = (checks[key] for key in ("kind", "rules", "choices", "is_list"))
        several = isinstance(value, tuple) and (is_list or (checks["per_layer"] and value))
        for single in value if several else (value,):
            fits = _has_kind(single, kind) and all(_COMPARE[rule](single, bound) for rule, bound in rules.items())
            if fits and (choices is None or single in choices) and (several or not is_list):
                continue
            expected = f"one of {', '.join(choices)}" if choices else _KIND_NAMES[kind]
            expected += "".join(f", {rule} {bound:g}" for rule, bound in rules.items())
            expected = f"a list of which each is {expected}" if is_list else expected
            expected += ", or a list with one such value per group of layers" if checks["per_layer"] else ""
            expected += ", or a mapping of such values by the names of modules" if checks["per_module"] else ""
            raise ValueError(f"{type(self).__qualname__}: {name} = {value!r}, but it must be {expected}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain data (lists become tuples). Unknown keys are errors that name the nearest known one."""
        known = {spec.name for spec in fields(cls)}
        for key in values:
            if key not in known:
                raise ValueError(f"{cls.__qualname__} has no option {key!r}. {suggest(key, known)}")
        return cls(**{key: _with(tuple, list, value) for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold; `from_dict` takes it back."""
        return {key: _with(list, tuple, value) for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Settings):
    """What every method can be told.

    Args:
        dropout: probability of dropping an entry of the input of `A`, in training. Default 0.
    """

    dropout: float = option(0.0, low=0, below=1)

    def values_of(self, name: str) -> tuple[Any, ...]:
        """The values of one field over the layers: its tuple, or its one value as a tuple."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,)

    @property
    def modules(self) -> set[str]:
        """The modules that some field has a value of their own for."""
        values = (getattr(self, spec.name) for spec in fields(self))
        return {module for value in values if isinstance(value, Mapping) for module in value}

    def at(self, layer: LayerSpec) -> Self:
        """The config of one layer: every per-layer tuple and every mapping replaced by that layer's value."""
        chosen = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, Mapping):
                chosen[spec.name] = value.get(layer.name, spec.default)
            elif spec.metadata["per_layer"]:
                values = self.values_of(spec.name)
                chosen[spec.name] = values[layer.index * len(values) // layer.num_layers]
        return replace(self, **chosen)


@dataclass(frozen=True, kw_only=True)
class RankConfig(MethodConfig):
    """What every method with one rank and the scale `alpha / r` can be told.

    Args:
        r: rank of one factor pair. Default 8; per layer.
        alpha: numerator of the scale `s = alpha / r`. Default 16; per layer.
    """

    r: int = option(8, low=1, per_layer=True)
    alpha: float = option(16.0, above=0, per_layer=True)
