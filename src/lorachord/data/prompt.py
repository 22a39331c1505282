"""The template of a decoder's prompt: `str.format` over `first`, `second` and `options`."""

from __future__ import annotations

from string import Formatter

from lorachord.messages import suggest


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
