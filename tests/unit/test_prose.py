"""The front door in English: short sentences, few lines, numbers that read as numbers."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/choosing.md"])


def prose(page: str) -> list[str]:
    """The sentences of a page, without code, tables, headings and links' targets."""
    lines, fenced = [], False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and line and not line.startswith(("|", "#")):
            lines.append(re.sub(r"^\s*(- |\d+\. )", ". ", line))
    text = re.sub(r"\]\([^)]*\)", "]", " ".join(lines))
    return [part.strip(" .") for part in re.split(r"(?<=[.!?:])\s+", text) if len(part.split()) > 2]


@PAGES
def test_sentences_are_short(page: str) -> None:
    sizes = sorted(len(sentence.split()) for sentence in prose(page))
    assert len(sizes) > 10
    assert sum(sizes) / len(sizes) <= 18
    assert sizes[int(0.9 * (len(sizes) - 1))] <= 30, max(prose(page), key=lambda sentence: len(sentence.split()))


@PAGES
def test_numbers_have_a_digit_before_the_point(page: str) -> None:
    assert not [sentence for sentence in prose(page) if re.search(r"(?<![\w.])\.\d", sentence)]


def test_the_readme_has_at_most_120_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
