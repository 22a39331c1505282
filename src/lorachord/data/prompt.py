"""The template of a decoder's prompt: `str.format` over `first`, `second` and `options`."""

from __future__ import annotations

from string import Formatter

import numpy as np

from lorachord.messages import suggest

MOST_DIGITS = 12
"""Significant digits of a number that somebody wrote; more are those of a fraction that was computed."""


def default_template(num_texts: int, with_options: bool) -> str:
    """The texts, the options if wanted, and "Answer:", a line each."""
    lines = ["{first}", "{second}"][:num_texts]
    if with_options:
        lines.append("Options: {options}")
    return "\n".join([*lines, "Answer:"])


def check_template(template: str, known: list[str]) -> None:
    """Whether a template can be filled with texts of these names.

    Raises:
        ValueError: it is malformed, uses another name, or formats a text as something else.
    """
    try:
        fields = [(name, layout, how) for _, name, layout, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"the prompt is no template ({error}); write {{{{ or }}}} for a literal brace.") from None
    for name, layout, conversion in fields:
        if layout or conversion:
            # A width would be as long as a row says, or as long as memory.
            raise ValueError(
                f"the prompt has a format that does not fit a text: {{{name}}} takes no width or conversion."
            )
        if name not in known:
            raise ValueError(f"the prompt uses {{{name}}}, which there is not. {suggest(name, known)}")
    try:
        template.format(**dict.fromkeys(known, ""))
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"the prompt has a format that does not fit a text: {error}.") from None


def written(number: float) -> str:
    """A number as its data have it: with a decimal at least, and without an exponent.

    Fractions that have no end are rounded to six significant digits, or to the units; numbers that were stored in 32
    bits have the digits that these hold.
    """
    exact = np.format_float_positional(number, trim="0")
    if len(exact.strip("-0.").replace(".", "")) <= MOST_DIGITS or number == round(number):
        return exact
    with np.errstate(over="ignore"):
        narrow = np.float32(number)
    # As Python's floats: beside one of numpy's, a float is narrowed.
    if float(narrow) == number:
        return np.format_float_positional(narrow, trim="0")
    whole = len(str(abs(int(number)))) if abs(number) >= 1 else 0
    if whole:
        return np.format_float_positional(round(number, max(1, 6 - whole)), trim="0")
    return np.format_float_positional(number, precision=6, fractional=False, trim="0")
