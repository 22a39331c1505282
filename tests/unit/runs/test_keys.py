"""The page of every key: generated, whole, and up to date."""

from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from lorachord.data.metrics import METRICS
from lorachord.runs.keys import SECTIONS, arguments, recipe_keys
from lorachord.runs.recipe import recipe_from

PAGE = Path(__file__).parents[3] / "docs" / "recipe_keys.md"


def test_the_page_is_the_generated_text() -> None:
    assert PAGE.read_text(encoding="utf-8") == recipe_keys(), "python -m lorachord.runs.keys > docs/recipe_keys.md"


@pytest.mark.parametrize("title", SECTIONS)
def test_every_field_is_described_in_its_class(title: str) -> None:
    kind = SECTIONS[title]
    assert arguments(kind).keys() == {spec.name for spec in fields(kind)}
    assert all(arguments(kind).values())


def test_every_part_of_a_recipe_has_its_section() -> None:
    plain = recipe_from({"model": {"name": "m", "kind": "encoder"}, "tasks": {"suite": "glue"}}).to_dict()
    parts = {name for name, value in plain.items() if isinstance(value, dict)} - {"method"}
    assert parts <= SECTIONS.keys()
    assert {f"## {title}" for title in SECTIONS} <= set(recipe_keys().splitlines())


def test_a_row_says_the_key_its_values_its_default_and_what_it_means() -> None:
    lines = recipe_keys().splitlines()
    assert "| `accumulation` | integer | `1` | how many batches these are split into. Default 1. |" in lines
    [kind] = [line for line in lines if line.startswith("| `kind` | `encoder`")]
    assert kind.startswith("| `kind` | `encoder` or `decoder` |  | ")


def test_every_metric_is_listed_with_its_kinds() -> None:
    lines = recipe_keys().splitlines()
    for name, metric in METRICS.items():
        assert f"| `{name}` | {', '.join(metric.kinds)} |" in lines


def test_an_entry_may_name_several_and_go_on_for_lines() -> None:
    @dataclass
    class Documented:
        """
        Args:
            one, two: of both,
                and more: here.
            three: last.

        Raises:
            ValueError: not listed.
        """

    assert arguments(Documented) == {
        "one": "of both, and more: here.",
        "two": "of both, and more: here.",
        "three": "last.",
    }
