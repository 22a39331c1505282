"""Pages about the methods, read from their docstrings and configs.

A method's class docstring begins with one sentence, followed by the sections of `SECTIONS`: a heading, and an indented
block below it. `docs/methods.md` is made with `python -m lorachord.method_pages > docs/methods.md`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import cleandoc
from textwrap import fill, indent
from typing import Any

import lorachord.methods
from lorachord.baselines import BASELINES, DOCSTRINGS, FORMULAS, BaselineConfig
from lorachord.core.adapter import Adapter
from lorachord.core.config import MethodConfig
from lorachord.core.context import Mixing
from lorachord.core.registry import all_methods
from lorachord.messages import suggest, table

SECTIONS = ["Equation", "Paper", "Start", "Defaults", "Take it when", "Leave it when"]
SECTIONS += ["Differs from the authors' code", "Parameters"]
"""Every method of this package has them. `Where`, `Background` and `Shapes` may be there as well."""

HIDDEN = ("Defaults", "Shapes")
"""Left out of a page: its options have the defaults, and shapes are the legend of the class's code."""

LONGEST_SENTENCE = 15
"""In words."""

MERGES = {Mixing.STATIC: "yes", Mixing.TASK: "once per task", Mixing.INPUT: "no"}
LOOKS_AT = {Mixing.STATIC: "nothing", Mixing.TASK: "the task", Mixing.INPUT: "the input"}
CONSEQUENCES = {
    Mixing.STATIC: "The update is the same for all inputs, so the adapter merges and exports as one LoRA.",
    Mixing.TASK: "The update depends on a sample's task, so the adapter merges and exports once per task.",
    Mixing.INPUT: "The update depends on the input, so the adapter neither merges nor exports exactly.",
}
SYMBOLS = """W0 is the frozen weight of a layer, x its input, drop() dropout, and s a scale. A projects down to the
rank, B projects up again. T is the number of tasks, t a sample's task. d_in and d_out are the layer's features."""


@dataclass(frozen=True)
class Option:
    """One option of a method's config, with its default as text and its description without it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class MethodPage:
    """The facts about one method.

    Attributes:
        name: on the command line and in saved files.
        sentence: the first of the docstring.
        sections: the blocks of the docstring by heading, in their order, but for `HIDDEN` ones.
        options: the method's own first.
        mixing: the things that its core looks at.
        formula: trainable parameters of one layer.
    """

    name: str
    sentence: str
    sections: Mapping[str, str]
    options: tuple[Option, ...]
    mixing: Mixing
    formula: str


def split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """The first paragraph in one line, and the blocks below headings; text without a heading has `About`."""
    text, heading, blocks = cleandoc(docstring), "About", dict[str, list[str]]()
    first, _, rest = ("", "", text) if re.match(r"\S.*:\n", text) else text.partition("\n\n")
    for line in rest.splitlines():
        if found := re.fullmatch(r"(\S.*):", line):
            heading = found[1]
            continue
        if line and not line[0].isspace():
            heading = "About"
        blocks.setdefault(heading, []).append(line)
    texts = {heading: cleandoc("\n".join(["", *lines])) for heading, lines in blocks.items()}
    return " ".join(first.split()), {heading: text for heading, text in texts.items() if text}


def items(block: str) -> dict[str, str]:
    """The entries `name: text` of a block, whose further lines are indented."""
    entries = (" ".join(entry.split()) for entry in re.split(r"\n(?=\S)", block) if entry)
    return {name: text for name, _, text in (entry.partition(": ") for entry in entries)}


def is_ours(cls: type[Adapter]) -> bool:
    """Whether a method is of this package."""
    return cls.__module__.startswith("lorachord.")


def read_page(cls: type[Adapter]) -> MethodPage:
    """The page of a method. A method from outside this package may lack any section.

    Raises:
        ValueError: the docstring of a method of this package lacks a section, or has no short first sentence.
    """
    sentence, sections = split_docstring(cls.__doc__ or "")
    if is_ours(cls):
        _check(cls.__qualname__, sentence, sections)
    shown = {heading: block for heading, block in sections.items() if heading not in HIDDEN}
    options, formula = _options(cls.Config), cls.parameters_formula
    return MethodPage(cls.method, sentence or cls.paper, shown, options, cls.mixing, formula)


def _check(name: str, sentence: str, sections: Mapping[str, str]) -> None:
    for heading in SECTIONS:
        if heading not in sections:
            raise ValueError(
                f"The docstring of {name} lacks the section '{heading}:'. It has: {', '.join(sections) or 'none'}. A "
                "section is a heading, and an indented block below it."
            )
    if not sentence.endswith(".") or len(sentence.split()) > LONGEST_SENTENCE:
        raise ValueError(
            f"The docstring of {name} begins with {sentence!r}: write one sentence of at most {LONGEST_SENTENCE} "
            "words, and an empty line below it."
        )


def baseline_page(name: str) -> MethodPage:
    """The page of a baseline of PEFT's."""
    sentence, sections = split_docstring(DOCSTRINGS[name])
    shown = {heading: block for heading, block in sections.items() if heading not in HIDDEN}
    return MethodPage(name, sentence, shown, _options(BaselineConfig), Mixing.STATIC, FORMULAS[name])


def method_page(name: str) -> MethodPage:
    """The page of a method or baseline.

    Raises:
        ValueError: there is none of that name; the message has the nearest.
    """
    methods = all_methods()
    if name not in methods and name not in BASELINES:
        raise ValueError(f"There is no method {name!r}. {suggest(name, [*methods, *BASELINES])}")
    return read_page(methods[name]) if name in methods else baseline_page(name)


def all_pages(*, outside: bool = True) -> list[MethodPage]:
    """The pages of all methods, those that merge first, and then of the baselines.

    Args:
        outside: whether methods from outside this package are among them. Default true.
    """
    pages = [read_page(cls) for cls in all_methods().values() if outside or is_ours(cls)]
    return sorted(pages, key=lambda page: list(Mixing).index(page.mixing)) + [baseline_page(name) for name in BASELINES]


def _options(config: type[MethodConfig]) -> tuple[Option, ...]:
    meanings: dict[str, str] = {}
    for cls in config.__mro__:
        meanings = {**items(split_docstring(cls.__doc__ or "")[1].get("Args", "")), **meanings}
    specs = {spec.name: spec for spec in fields(config)}
    own_first = sorted(specs, key=lambda name: -[name in vars(cls) for cls in config.__mro__[::-1]].index(True))
    options = []
    for name in own_first:
        meaning = re.sub(r"\s*\bDefault:? .*?\.(?=\s|$)", "", meanings.get(name, "")).rstrip(".")
        ends = [f"{meaning}."] if meaning else []
        ends += ["*Per layer.*"] if specs[name].metadata["per_layer"] else []
        options.append(Option(name, default_text(specs[name].default), " ".join(ends)))
    return tuple(options)


def default_text(value: Any) -> str:
    """A default as pages and docstrings have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else "none" if value == () else str(value)


def summary() -> str:
    """One line a method: its name, whether it needs tasks and merges, and its sentence."""
    rows = [["name", "tasks", "merges", "in one sentence"]]
    for page in all_pages():
        rows.append([page.name, "needed" if page.mixing is Mixing.TASK else "-", MERGES[page.mixing], page.sentence])
    return table(rows)


def as_text(page: MethodPage, width: int = 96) -> str:
    """The page of one method for a terminal with lines of so many characters."""
    options = {f"{option.name} = {option.default}": option.meaning.replace("*", "") for option in page.options}
    parts = [f"{page.name}: {page.sentence}", CONSEQUENCES[page.mixing]]
    for heading, block in page.sections.items():
        text = filled(block, width - 2)
        if heading in ("Equation", "Parameters"):
            text = block if heading == "Equation" else _columns(items(block), width - 2)
        parts.append(f"{heading}:\n{indent(text, '  ')}")
    parts.append(f"Trained parameters of one layer:\n  {page.formula}")
    parts.append(f"Options and defaults:\n{indent(_columns(options, width - 2), '  ')}")
    return "\n\n".join([*parts, f"Symbols:\n{indent(filled(SYMBOLS, width - 2), '  ')}"])


def _columns(rows: Mapping[str, str], width: int) -> str:
    column = max(len(name) for name in rows) + 2
    lines = (
        fill(name.ljust(column) + text, width, subsequent_indent=" " * column, break_on_hyphens=False)
        for name, text in rows.items()
    )
    return "\n".join(lines)


def as_markdown(pages: Sequence[MethodPage]) -> str:
    """All pages in one document, `docs/methods.md`."""
    introduction = cleandoc(lorachord.methods.__doc__ or "").partition("\n\n>>>")[0]
    contents = ["| method | in one sentence | core looks at | merges, exports |", "|---|---|---|---|"]
    for page in pages:
        facts = f"{page.sentence} | {LOOKS_AT[page.mixing]} | {MERGES[page.mixing]}"
        contents.append(f"| [`{page.name}`](#{page.name}) | {facts} |")
    note = "<!-- Made from the docstrings: python -m lorachord.method_pages > docs/methods.md -->"
    layers = "An option marked *per layer* takes one value, or a list that is spread evenly over the blocks."
    core = "Every method is `y = W0 x + s * B' core(A' drop(x); x, ctx)`: two factors, and a core between them."
    head = ["# Methods", note, introduction, "\n".join(contents), core, filled(SYMBOLS, 120), layers]
    return "\n\n".join([*head, *(part for page in pages for part in _markdown(page))]) + "\n"


def _markdown(page: MethodPage) -> list[str]:
    parts = [f"## {page.name}", page.sentence, CONSEQUENCES[page.mixing]]
    for heading, block in page.sections.items():
        if heading == "Equation":
            parts.append(f"```\n{block}\n```")
        elif heading == "Parameters":
            lines = [fill(f"- `{name}`: {text}", 120, subsequent_indent="  ") for name, text in items(block).items()]
            parts += [f"**{heading}**, of which `{page.formula}` are trained in one layer:", "\n".join(lines)]
        else:
            parts.append(filled(f"**{heading}:** {block}", 120))
    rows = ["| option | default | meaning |", "|---|---|---|"]
    rows += [f"| `{option.name}` | {option.default} | {option.meaning} |" for option in page.options]
    return [*parts, "\n".join(rows)]


def filled(text: str, width: int) -> str:
    """Paragraphs with lines of at most `width` characters."""
    return "\n\n".join(fill(" ".join(part.split()), width, break_on_hyphens=False) for part in text.split("\n\n"))


if __name__ == "__main__":
    print(as_markdown(all_pages(outside=False)), end="")
