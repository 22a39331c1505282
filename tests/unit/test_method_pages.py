import pydoc
import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import lorachord as lc
from lorachord.baselines import BASELINES, DOCSTRINGS, BaselineConfig
from lorachord.core.tasks import TaskNames
from lorachord.method_pages import (
    SECTIONS,
    all_pages,
    as_markdown,
    as_text,
    default_text,
    items,
    method_page,
    read_page,
    split_docstring,
    summary,
)

ROOT = Path(__file__).parents[2]
OURS = {name: cls for name, cls in lc.all_methods().items() if cls.__module__.startswith("lorachord.")}
NAMES = [*OURS, *BASELINES]


def docstring_of(name: str) -> str:
    return DOCSTRINGS[name] if name in BASELINES else OURS[name].__doc__ or ""


def config_of(name: str) -> type[lc.MethodConfig]:
    return BaselineConfig if name in BASELINES else OURS[name].Config


def made(docstring: str | None, module: str = "lorachord.methods.made") -> type[lc.Adapter]:
    """A class that is not registered."""

    @dataclass(frozen=True, kw_only=True)
    class Config(lc.RankConfig):
        """
        Args:
            start: the gain at the start. Default 0.5; per layer.
        """

        start: float = lc.option(0.5, per_layer=True)
        silent: bool = lc.option(True)

    facts = dict(method="made", paper="a paper", mixing=lc.Mixing.STATIC, parameters_formula="0", Config=Config)
    return type("Made", (lc.Adapter,), {"__doc__": docstring, "__module__": module, **facts})


def test_the_document_is_that_of_the_code() -> None:
    expected = as_markdown(all_pages(outside=False))
    found = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert found == expected, "python -m lorachord.method_pages > docs/methods.md"


@pytest.mark.parametrize("name", NAMES)
def test_every_docstring_has_one_short_sentence_and_all_sections(name: str) -> None:
    sentence, sections = split_docstring(docstring_of(name))
    assert set(SECTIONS) <= sections.keys() <= {*SECTIONS, "Where", "Background", "Shapes"}
    assert sentence == docstring_of(name).splitlines()[0]
    assert re.fullmatch(r"[^.]+\.", sentence)
    assert len(sentence.split()) <= 15


@pytest.mark.parametrize("name", OURS)
def test_help_shows_equation_paper_and_advice(name: str) -> None:
    shown = pydoc.render_doc(OURS[name], renderer=pydoc.plaintext)
    for heading in SECTIONS:
        assert f"{heading}:" in shown
        for line in split_docstring(docstring_of(name))[1][heading].splitlines():
            assert line in shown


@pytest.mark.parametrize("name", NAMES)
def test_every_paper_has_authors_a_title_and_an_identifier(name: str) -> None:
    paper = " ".join(split_docstring(docstring_of(name))[1]["Paper"].split())
    # A method without a paper says so.
    assert paper.startswith("None: ") or re.search(r'[A-Z]\w+ et al\., "[^"]+" \(arXiv \d{4}\.\d{5}\)', paper)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_those_of_the_config(name: str) -> None:
    told = " ".join(split_docstring(docstring_of(name))[1]["Defaults"].split())
    options = method_page(name).options
    assert {option.name for option in options} == {spec.name for spec in fields(config_of(name))}
    assert sorted(re.split(r", (?=[a-z])", told.removesuffix("."))) == sorted(
        f"{option.name} {option.default}" for option in options
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described_with_its_default(name: str) -> None:
    config = config_of(name)
    for spec in fields(config):
        owner = next(cls for cls in config.__mro__ if spec.name in vars(cls).get("__annotations__", {}))
        meaning = items(split_docstring(owner.__doc__ or "")[1]["Args"])[spec.name]
        told = re.search(r"Default (.+?)(;|\.(\s|$))", meaning)
        if spec.metadata["choices"]:
            assert f"`{spec.default}`" in meaning
            assert "(default)" in meaning
        elif spec.default != () and "(default)" not in meaning:
            assert told, meaning
            assert told[1] == default_text(spec.default)
        assert next(option for option in method_page(name).options if option.name == spec.name).meaning


@pytest.mark.parametrize("name", OURS)
def test_the_parameters_are_those_of_the_adapter(name: str) -> None:
    cls = OURS[name]
    options = {"choose": "all"} if name == "allot" else {}
    tasks = TaskNames(("a", "b"))
    adapter = cls(lc.LayerSpec("layer", 0, 1, d_in=40, d_out=48), cls.Config(**options), tasks)
    there = {key for key, _ in [*adapter.named_parameters(), *adapter.named_buffers()]} - {"task_digest"}
    told = items(split_docstring(docstring_of(name))[1]["Parameters"])
    assert {entry.split(" (")[0] for entry in told} == there


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_docstring_that_lacks_a_section_is_refused_by_its_name(heading: str) -> None:
    whole = "Makes a test.\n\n" + "\n\n".join(f"    {section}:\n        Here." for section in SECTIONS)
    assert read_page(made(whole)).sentence == "Makes a test."
    with pytest.raises(ValueError, match=re.escape(f"Made lacks the section '{heading}:'")):
        read_page(made(whole.replace(f"{heading}:", "Other:")))


@pytest.mark.parametrize("sentence", ["No full stop", " ".join(["word"] * 15) + " word."])
def test_a_docstring_without_a_short_first_sentence_is_refused(sentence: str) -> None:
    whole = f"{sentence}\n\n" + "\n\n".join(f"    {section}:\n        Here." for section in SECTIONS)
    with pytest.raises(ValueError, match=f"begins with '{sentence}'"):
        read_page(made(whole))


def test_a_method_from_outside_shows_what_it_has() -> None:
    page = read_page(made("A gain.\n\n    Free text.\n\n    Equation:\n        y = x\n\n        z = y\n", "elsewhere"))
    assert page.sections == {"About": "Free text.", "Equation": "y = x\n\nz = y"}
    text = as_text(page)
    assert text.startswith("made: A gain.\n")
    assert "Equation:\n  y = x\n\n  z = y\n" in text
    assert re.search(r"start = 0\.5 +the gain at the start\. Per layer\.", text)
    assert "silent = true" in text
    assert as_text(read_page(made(None, "elsewhere"))).startswith("made: a paper\n")
    assert "## made\n\nA gain." in as_markdown([page])


def test_a_page_has_the_equation_the_title_and_the_options_in_narrow_lines() -> None:
    text = as_text(method_page("mtl_lora"))
    assert "(sum_i softmax(w_t / tau)_i B_i) Lambda_t A drop(x)" in text
    assert '"MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning"' in text
    assert re.search(r"num_ups = 3 +n, the number of up-projections\. Per layer\.", text)
    assert max(map(len, text.splitlines())) <= 100


def test_the_summary_has_one_line_a_method() -> None:
    lines = summary().splitlines()
    assert [line.split()[0] for line in lines[1:]] == [page.name for page in all_pages()]
    assert set(NAMES) <= {line.split()[0] for line in lines[1:]}
    line = next(line for line in lines if line.startswith("allot "))
    assert line.split(maxsplit=5)[1:5] == ["needed", "once", "per", "task"]
    assert line.endswith("Modules whose tasks conflict get a core for each task; the others stay plain LoRA.")
