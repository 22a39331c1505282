"""PEFT's options of rank and scale by module: `rank_pattern`, `alpha_pattern` and `use_rslora`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from math import sqrt
from typing import Any

from peft.utils.other import get_pattern_key

from lorachord.core.config import MethodConfig
from lorachord.messages import suggest

OPTION = {"rank_pattern": "r", "alpha_pattern": "alpha"}
"""The option of a method that each pattern sets."""


def check_patterns(patterns: Mapping[str, Any], rslora: object, options: MethodConfig, method: str) -> None:
    """Whether patterns are mappings that the method's options can follow.

    Args:
        patterns: `rank_pattern` and `alpha_pattern`, each from modules' names or regular expressions, or None.
        rslora: whether the scale is `alpha / sqrt(r)`.
        method: its name, for errors.

    Raises:
        ValueError: a pattern is no mapping, names no regular expression, or sets an option that the method lacks or
            that must be another value.
    """
    known = {spec.name for spec in fields(options)}
    for name, pattern in patterns.items():
        if pattern is None:
            continue
        if not isinstance(pattern, Mapping):
            raise ValueError(f"{name} is {pattern!r}; it must map modules' names to values of {OPTION[name]}.")
        if pattern and OPTION[name] not in known:
            raise ValueError(f"{name} sets {OPTION[name]}, an option that {method} does not have.")
        for key, value in pattern.items():
            try:
                re.compile(key)
                replace(options, **{OPTION[name]: value})
                fits = not isinstance(value, (tuple, Mapping))
            except (re.error, RecursionError, OverflowError, TypeError, ValueError) as error:
                raise ValueError(f"{name}[{key!r}] = {value!r}: {error}") from None
            if not fits:
                raise ValueError(f"{name}[{key!r}] = {value!r}, but it must be one value.")
    if not isinstance(rslora, bool):
        raise ValueError(f"use_rslora is {rslora!r}; it must be true or false.")
    if rslora and not known >= set(OPTION.values()):
        raise ValueError(f"use_rslora makes the scale alpha / sqrt(r), and {method} has no scale alpha / r.")


def followed(options: MethodConfig, patterns: Mapping[str, Any], rslora: bool, module: str) -> MethodConfig:
    """The options of one module, by the first key of each pattern that matches its name or the end of it.

    Args:
        options: of the module's layer (`MethodConfig.at`).
        patterns, rslora: as in `check_patterns`.
    """
    for name, pattern in patterns.items():
        key = get_pattern_key(tuple(pattern or ()), module)
        if pattern and key in pattern:
            options = replace(options, **{OPTION[name]: pattern[key]})
    if rslora:
        # The methods divide by r.
        options = replace(options, alpha=options.alpha * sqrt(options.r))  # type: ignore[attr-defined,call-arg]
    return options


def check_matches(patterns: Mapping[str, Any], modules: Iterable[str]) -> None:
    """Whether each key of the patterns matches an adapted module.

    Raises:
        ValueError: one does not; the nearest module is named.
    """
    names = list(modules)
    for name, pattern in patterns.items():
        for key in pattern or ():
            if all(get_pattern_key((key,), module) != key for module in names):
                raise ValueError(f"{name} names {key!r}, which matches no adapted module. {suggest(key, names)}")
