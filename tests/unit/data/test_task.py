from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lorachord.data.task import KINDS, Source, Task, check_tasks
from tests.unit.data.helpers import task

EXAMPLE = {"first": "a {b}", "second": "c", "label": 1, "choices": ["left", "right"], "idx": 0}


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (3.0, "3.0"),
        (0.25, "0.25"),
        (-2.556, "-2.556"),
        (200000.125, "200000.125"),
        (1234567.89, "1234567.89"),
        (float(np.float32(3.8)), "3.8"),
        (10 / 3, "3.33333"),
        (1e-7, "0.0000001"),
        (1e16, "10000000000000000.0"),
        (200000 / 3, "66666.7"),
    ],
)
def test_a_number_is_written_with_the_digits_of_its_data(label: float, text: str) -> None:
    assert task("regression").target({**EXAMPLE, "label": label}) == text


def test_defaults_follow_the_kind() -> None:
    metrics = {kind: task(kind).metric for kind in KINDS}
    assert metrics == {
        "classification": "accuracy",
        "pair": "accuracy",
        "regression": "spearman",
        "multiple_choice": "accuracy",
        "generation": "rouge_l",
        "chat": "rouge_l",
    }
    assert [task(kind).num_outputs for kind in KINDS] == [2, 2, 1, 1, 0, 0]
    assert task(labels=("a", "b", "c")).num_outputs == 3
    assert task().answers == ("no", "yes")


def test_a_task_is_made_of_few_words() -> None:
    made = Task("mail", kind="classification", text="body")
    assert (made.name, made.text_columns, made.source, made.needs_labels) == ("mail", ("body",), None, True)
    # Of classes that are not known yet nothing can be made.
    with pytest.raises(ValueError, match=r"'mail': its classes are not known yet.*labels="):
        _ = made.num_outputs
    named = replace(made, labels=("no", "yes"))
    assert named == Task("mail", kind="classification", text=("body",), labels=("no", "yes"))
    assert named.render(EXAMPLE) == "a {b}\nOptions: no or yes\nAnswer:"
    with pytest.raises(ValueError, match="1 answers for 2 labels"):
        replace(Task("mail", kind="pair", text=("a", "b"), answers=("only",)), labels=("no", "yes"))


def test_the_default_prompts_hold_texts_and_options() -> None:
    assert task().render(EXAMPLE) == "a {b}\nOptions: no or yes\nAnswer:"
    assert task("pair").render(EXAMPLE) == "a {b}\nc\nOptions: no or yes\nAnswer:"
    assert task("regression", text=("x", "y")).render(EXAMPLE) == "a {b}\nc\nAnswer:"
    assert task("multiple_choice").render(EXAMPLE) == "a {b}\nAnswer:"


def test_a_prompt_shows_options_by_kind_and_is_stripped() -> None:
    three = task(labels=("x", "y", "z"), answers=("no", "maybe", "yes"), prompt="{options}? {first}\n")
    assert three.render(EXAMPLE) == "no, maybe or yes? a {b}"
    chosen = task("multiple_choice", prompt="{first}\n{options}")
    assert chosen.render(EXAMPLE) == "a {b}\n- left\n- right"


def test_options_and_targets_are_what_a_decoder_says() -> None:
    said = task(answers=("false", "true"))
    assert (said.options(EXAMPLE), said.target(EXAMPLE)) == (["false", "true"], "true")
    chosen = task("multiple_choice")
    assert (chosen.options(EXAMPLE), chosen.target(EXAMPLE)) == (["left", "right"], "right")
    number = task("regression")
    assert (number.options(EXAMPLE), number.target({**EXAMPLE, "label": 2.333})) == ([], "2.333")
    written = task("generation")
    assert (written.options(EXAMPLE), written.target({**EXAMPLE, "label": " words "})) == ([], "words")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name=""), "needs a name"),
        (dict(kind="clasification"), "no kind 'clasification'.*'classification'"),
        (dict(kind="pair", text=("sentence1",)), "tuple of 2 column.*'sentence1'"),
        (dict(text=("a", "b")), "tuple of 1 column"),
        (dict(text=["sentence1"]), r"tuple of 1 column.*got \['sentence1'\]"),
        (dict(kind="pair", text="sentence1"), "tuple of 2 column"),
        (dict(labels=("only",)), "at least two classes.*'only'"),
        (dict(labels=()), "at least two classes"),
        (dict(labels="ab"), "at least two classes"),
        (dict(labels=("a", "a")), "labels must differ"),
        (dict(answers=("yes",)), "1 answers for 2 labels"),
        (dict(answers=("yes", "yes")), "answers must differ"),
        (dict(kind="regression", labels=("a", "b")), "labels and answers are for classification"),
        (dict(metric="acuracy"), "no metric 'acuracy'.*'accuracy'"),
        (dict(metric="rouge_l"), "rouge_l does not score classification.*accuracy, f1, matthews"),
        (dict(prompt="{frist}"), r"uses \{frist\}.*'first'"),
        (dict(prompt="{second}"), r"uses \{second\}.*Known: first, options"),
        (dict(prompt="{}"), r"uses \{\}"),
        (dict(prompt="{first.__class__}"), "uses {first.__class__}"),
        (dict(prompt="{first"), "no template"),
        (dict(prompt="{first:d}"), "does not fit a text"),
        (dict(max_rows=0), "max_rows is 0"),
    ],
)
def test_what_does_not_fit_is_an_error_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**changes)


def test_a_generation_prompt_has_no_options() -> None:
    with pytest.raises(ValueError, match=r"uses \{options\}"):
        task("generation", prompt="{first} {options}")


def test_a_source_knows_its_splits() -> None:
    with pytest.raises(ValueError, match=r"no split 'devs'.*'dev'"):
        Source(path="x", splits={"devs": "dev"})
    with pytest.raises(ValueError, match=r"needs a path"):
        Source(path="")


def test_tasks_of_one_name_are_refused() -> None:
    check_tasks([task(name="a"), task(name="b")])
    with pytest.raises(ValueError, match=r"unique; repeated: a"):
        check_tasks([task(name="a"), task(name="b"), task(name="a")])
    with pytest.raises(ValueError, match=r"No task"):
        check_tasks([])
