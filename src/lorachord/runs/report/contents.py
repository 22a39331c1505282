"""What a page is made of: sections of paragraphs, tables, listings and drawings, all of them plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lorachord.runs.drawing import Drawing


@dataclass(frozen=True)
class Words:
    """A paragraph.

    Attributes:
        text: as it is shown.
        leads: whether it is the page's first and largest sentence.
    """

    text: str
    leads: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: a line.
        rows: cells; the first row is the header, the first column names the rows.
        folded: shown on demand alone.
    """

    caption: str
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Listing:
    """Text whose lines and columns stay as they are, shown on demand.

    Attributes:
        caption: a line.
        text: of any length.
    """

    caption: str
    text: str


Block = Words | Table | Listing | Drawing


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: of the page.
        kind: what it is of, in a line.
        sections: in order.
    """

    title: str
    kind: str
    sections: Sequence[Section] = field(default_factory=tuple)

    @property
    def drawings(self) -> list[Drawing]:
        """All of them, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Drawing)]


def or_words(make: Callable[[], Sequence[Block]]) -> list[Block]:
    """Some blocks, or the sentence that says why there are none."""
    try:
        return list(make())
    except (ValueError, OSError) as error:
        return [Words(str(error))]
