"""The methods by name. A method registers itself with `@register`, inside this package or outside it."""

from __future__ import annotations

from typing import TypeVar

from lorachord.core.adapter import Adapter
from lorachord.core.config import MethodConfig
from lorachord.messages import suggest

_METHODS: dict[str, type[Adapter]] = {}

AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])


def register(cls: AdapterClass) -> AdapterClass:
    """Class decorator: make a method known under its `method` name.

    Raises:
        TypeError: a class attribute is missing, or `Config` is no dataclass of its own.
        ValueError: another class has the name.
    """
    for name in ("method", "paper", "mixing", "parameters_formula", "Config"):
        if getattr(cls, name, None) is None:
            raise TypeError(f"{cls.__name__} must set the class attribute {name!r}.")
    if not issubclass(cls.Config, MethodConfig) or "__dataclass_fields__" not in vars(cls.Config):
        raise TypeError(f"{cls.__name__}.Config must be a @dataclass(frozen=True, kw_only=True) on MethodConfig.")
    known = _METHODS.get(cls.method)
    # The same class again is a module that was reloaded.
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"The method name {cls.method!r} is taken by {known.__module__}.{known.__qualname__}.")
    _METHODS[cls.method] = cls
    return cls


def get_method(name: str) -> type[Adapter]:
    """The class registered as `name`.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in _METHODS:
        raise ValueError(
            f"There is no method {name!r}. {suggest(name, _METHODS)} "
            "If it lives outside lorachord, import the module that defines it first."
        )
    return _METHODS[name]


def all_methods() -> dict[str, type[Adapter]]:
    """Every registered method, in order of registration."""
    return dict(_METHODS)
