from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from lorachord.data.row_reader import Example, RowReader
from lorachord.data.task import Source, Task
from tests.unit.data.helpers import task

TEXT = {"sentence1": "one", "sentence2": "two"}


def read(of: Task, row: dict[str, Any], **source: Any) -> Example:
    return RowReader(of, Source(path="here", **source), "train of 'toy' (here)").example(row, 3)


@pytest.mark.parametrize(
    ("label", "index"), [(1, 1), ("yes", 1), ("no", 0), ("1", 1), (" 0 ", 0), (True, 1), (False, 0)]
)
def test_a_class_is_an_index_or_a_name(label: Any, index: int) -> None:
    found = read(task(), {**TEXT, "label": label})
    assert found == {"first": "one", "second": "", "label": index, "idx": 3}
    assert type(found["label"]) is int


def test_a_name_that_is_a_number_is_a_name() -> None:
    # Stars "1" to "3" are the indices 0 to 2.
    assert read(task(labels=("1", "2", "3")), {**TEXT, "label": "3"})["label"] == 2


@pytest.mark.parametrize("label", [1, 1.0, "1", "1.0", " 1 ", Decimal("1.0"), np.int64(1), np.float32(1), np.uint8(1)])
def test_a_whole_number_is_one_class_however_it_is_written(label: Any) -> None:
    assert read(task(), {**TEXT, "label": label})["label"] == 1
    # A name before an index: 1 is the first of these.
    assert read(task(labels=("1", "2", "0")), {**TEXT, "label": label})["label"] == 0
    assert read(task(labels=("2.0", "1.0")), {**TEXT, "label": label})["label"] == 1


@pytest.mark.parametrize("labels", [("true", "false"), ("True", "False"), ("yes", "no"), ("Y", "N"), ("1", "0")])
@pytest.mark.parametrize("truth", [True, np.True_, "true", "True", "TRUE"])
def test_a_truth_value_is_the_class_of_that_name(labels: tuple[str, str], truth: Any) -> None:
    false = {"true": "false", "True": "False", "TRUE": "FALSE"}[truth] if isinstance(truth, str) else ~np.True_
    for names in (labels, labels[::-1]):
        assert names[read(task(labels=names), {**TEXT, "label": truth})["label"]] == labels[0]
        assert names[read(task(labels=names), {**TEXT, "label": false})["label"]] == labels[1]


def test_a_truth_value_without_a_name_is_an_index_in_every_format() -> None:
    for truth, index in ((True, 1), ("True", 1), (np.False_, 0), ("false", 0)):
        assert read(task(labels=("neg", "pos")), {**TEXT, "label": truth})["label"] == index
    options = {**TEXT, "choices": ["true", "false"], "label": True}
    assert read(task("multiple_choice"), options)["label"] == 0


def test_a_number_among_options_is_an_index_and_a_text_may_be_an_option() -> None:
    row = {**TEXT, "choices": ["2", "1", "0"]}
    assert [read(task("multiple_choice"), {**row, "label": label})["label"] for label in (0, "0", 0.0)] == [0, 0, 0]
    assert read(task("multiple_choice"), {**TEXT, "choices": ["left", "right"], "label": "right"})["label"] == 1


@pytest.mark.parametrize("keys", [("1", "0"), ("1.0", "0.0"), ("true", "false"), ("True", "False")])
def test_keys_are_read_as_names_are(keys: tuple[str, str]) -> None:
    written = (True, "true", np.True_) if keys[0].isalpha() else (1, 1.0, "1", "1.0", np.int8(1))
    assert {read(task(), {**TEXT, "label": value}, label_keys=keys)["label"] for value in written} == {0}


def test_a_source_of_whole_numbers_may_shift_names_that_are_numbers() -> None:
    stars = task(labels=("1", "2", "3"))
    found = [read(stars, {**TEXT, "label": value}, label_keys=("0", "1", "2"))["label"] for value in (0, 1, 2.0)]
    assert found == [0, 1, 2]


@pytest.mark.parametrize(
    ("label", "number"), [(Decimal("2.50"), 2.5), (np.float32(0.5), 0.5), (2, 2.0), (2.5, 2.5), ("-1.5", -1.5)]
)
def test_a_number_may_be_written_in_many_ways(label: Any, number: float) -> None:
    found = read(task("regression"), {**TEXT, "label": label})["label"]
    assert found == number
    assert type(found) is float


def test_options_and_the_second_text_are_kept() -> None:
    row = {**TEXT, "label": 1, "choices": ["a", "b", "c"], "idx": 70, "unused": None}
    found = read(task("multiple_choice", text=("sentence1", "sentence2")), row)
    assert found == {"first": "one", "second": "two", "choices": ["a", "b", "c"], "label": 1, "idx": 70}


def test_an_index_of_another_type_is_not_taken_for_the_row_number() -> None:
    assert read(task(), {**TEXT, "label": 1, "idx": "a7"})["idx"] == 3


def test_a_source_may_call_columns_otherwise() -> None:
    row = {"q": {"stem": "why"}, "left": "a", "right": "b", "context": "so", "out": ["x", "y"], "key": "B"}
    chosen = task("multiple_choice")
    columns = {"sentence1": ("context", "q.stem"), "choices": ("left", "right"), "label": "key"}
    found = read(chosen, row, columns=columns, label_keys=("A", "B"))
    assert (found["first"], found["choices"], found["label"]) == ("so why", ["a", "b"], 1)
    written = task("generation", text=("sentence1", "sentence2"))
    found = read(written, row, columns={"sentence1": "", "sentence2": "context", "label": "out.1"})
    assert (found["first"], found["second"], found["label"]) == ("", "so", "y")


def test_label_keys_may_stand_in_each_row() -> None:
    row = {**TEXT, "options": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "label": "3"}
    columns = {"choices": "options.text"}
    assert read(task("multiple_choice"), row, columns=columns, label_keys="options.label")["label"] == 2


CHOICE = {**TEXT, "choices": ["a", "b"], "label": 0}


@pytest.mark.parametrize(
    ("of", "row", "message"),
    [
        (task(), {"sentence_1": "x", "label": 1}, "no column 'sentence1'.*'sentence_1'.*sentence_1, label"),
        (task(), TEXT, "no column 'label'.*sentence1, sentence2"),
        (task(), {"sentence1;label": "x;1"}, "no column 'sentence1'.*Did you mean.*separated by semicolons: save"),
        (task(), {"sentence1\tlabel": "x\t1"}, "no column 'sentence1'.*Did you mean.*separated by tabs: save"),
        (task(), {**TEXT, "sentence1": None, "label": 1}, "'sentence1' must hold text; it holds None"),
        (task(), {**TEXT, "label": 2}, "label 2 is outside 0 = no, 1 = yes"),
        (task(), {**TEXT, "label": "2"}, "label '2' is outside"),
        (task(), {**TEXT, "label": -1}, "label -1 is outside.*without labels"),
        (task(), {**TEXT, "label": "yess"}, "label 'yess' is neither.*0 = no, 1 = yes.*'yes'"),
        (task(), {**TEXT, "label": 1.5}, "label 1.5 is neither an index nor the name"),
        (task(), {**TEXT, "label": float("nan")}, "label nan is neither"),
        (task(labels=("nan", "x")), {**TEXT, "label": float("nan")}, "label nan is neither"),
        (task(labels=("1", "2", "3")), {**TEXT, "label": 0}, "label 0 is none of the names 1, 2, 3.*label_keys"),
        (task(labels=("1", "1.0")), {**TEXT, "label": "1.00"}, "label '1.00' is none of the names"),
        (task(labels=("a", "b", "c")), {**TEXT, "label": True}, "label True is neither"),
        (task(labels=("true", "maybe")), {**TEXT, "label": False}, "label False is neither"),
        (task(), {**TEXT, "label": "1e999"}, "label '1e999' is outside"),
        (task(), {**TEXT, "label": None}, "label None is neither"),
        (task("regression"), {**TEXT, "label": "high"}, "finite number; it is 'high'"),
        (task("regression"), {**TEXT, "label": "nan"}, "finite number; it is 'nan'"),
        (task("regression"), {**TEXT, "label": True}, "finite number; it is True"),
        (task("generation"), {**TEXT, "label": 3}, "must be a text; it is 3"),
        (task("multiple_choice"), {**CHOICE, "choices": ["a"]}, "at least two options.*'a'"),
        (task("multiple_choice"), {**CHOICE, "choices": "ab"}, "must hold a list of texts.*'ab'.*option1"),
        (task("multiple_choice"), {**CHOICE, "choices": ["a", None]}, "must hold a list of texts"),
        (task("multiple_choice"), {**CHOICE, "label": 2}, "label 2 is outside 0 = a, 1 = b"),
        (task("multiple_choice"), {**CHOICE, "label": "A"}, "label 'A' is neither"),
    ],
)
def test_faults_are_named_with_row_place_and_value(of: Task, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"Row 3 \(from 0\) of train of 'toy' \(here\): .*{message}"):
        read(of, row)


def test_a_label_outside_the_keys_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"label 'C' is none of the source's: A, B"):
        read(task(), {**TEXT, "label": "C"}, label_keys=("A", "B"))


def test_groups_ignore_case_spacing_and_the_order_of_options() -> None:
    def group(of: Task, row: dict[str, Any]) -> str:
        return RowReader(of, Source(path="here"), "").group(row, 0)

    assert group(task(), {"sentence1": "A  b"}) == group(task(), {"sentence1": "a b "})
    both = task(group=("sentence1", "sentence2"))
    assert group(both, TEXT) != group(both, {**TEXT, "sentence2": "three"})
    assert group(task(), TEXT) == group(task(), {**TEXT, "sentence2": "three"})
    chosen = replace(task("multiple_choice"), group="choices")
    assert group(chosen, {"choices": ["x", "y"]}) == group(chosen, {"choices": ["y", "x"]})


@pytest.mark.parametrize("missing", [None, "", " ", float("nan"), "nan"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_missing_label_names_the_option_that_skips_it(missing: Any, kind: str) -> None:
    if missing == "nan":
        with pytest.raises(ValueError, match="nan") as found:
            read(task(kind), {**TEXT, "label": missing})
        assert "skip_unlabelled" not in str(found.value)
    else:
        with pytest.raises(ValueError, match="skip_unlabelled: true"):
            read(task(kind), {**TEXT, "label": missing})
