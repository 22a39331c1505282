from typing import Any

import pytest
from datasets import ClassLabel, Dataset

from lorachord.data.labels import infer_labels
from lorachord.data.memory import in_memory, opened_rows
from lorachord.data.task import Source, Task

MAIL = Task("mail", kind="classification", text="body", label="team")


def inferred(*splits: list[Any], task: Task = MAIL, **source: Any) -> Task:
    opened = {
        str(n): opened_rows([{"body": "x", "team": label} for label in labels], f"split {n}")
        for n, labels in enumerate(splits)
    }
    return infer_labels(task, opened, Source(path="memory", **source))


def test_labels_are_the_texts_of_all_splits_in_order() -> None:
    assert inferred(["b", "c", "b"], ["a"]).labels == ("a", "b", "c")
    assert inferred(["nan", "inf"]).labels == ("inf", "nan")


def test_labels_that_are_given_stay_and_other_kinds_need_none() -> None:
    named = Task("mail", kind="classification", text="body", label="team", labels=("z", "a"))
    assert inferred([1, 2], task=named) is named
    number = Task("mail", kind="regression", text="body", label="team")
    assert inferred([1, 2], task=number) is number


@pytest.mark.parametrize("label", [0, 1.0, True, "2", " 3", "-1", "4.5", "1e3"])
def test_a_number_is_neither_taken_for_a_name_nor_for_an_index(label: Any) -> None:
    with pytest.raises(ValueError, match=r"Row 1 \(from 0\) of split 0: the label .* index.*labels=\('...', '...'\)"):
        inferred(["b", label, "a"])


@pytest.mark.parametrize("label", [None, float("nan"), "", " "])
def test_a_missing_label_is_named_by_its_row(label: Any) -> None:
    with pytest.raises(ValueError, match=r"Row 2 \(from 0\) of split 1: the label is missing"):
        inferred(["a", "b"], ["a", "b", label])


def test_one_class_and_strange_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least two classes, and all its rows have the label 'a'.*column 'team'"):
        inferred(["a", "a"])
    with pytest.raises(ValueError, match=r"must be a text; it is \['a'\]"):
        inferred([["a"], "b"])


def test_columns_are_called_as_in_the_source() -> None:
    opened = {"train": opened_rows([{"of": {"team": name}} for name in "ba"], "train")}
    assert infer_labels(MAIL, opened, Source(path="x", columns={"team": "of.team"})).labels == ("a", "b")
    with pytest.raises(ValueError, match="label_keys how the classes are written"):
        inferred(["a", "b"], label_keys=("a", "b"))


def test_splits_of_different_classes_are_refused() -> None:
    made = [
        Dataset.from_list([{"body": "x", "team": 0}]).cast_column("team", ClassLabel(names=names))
        for names in (["a", "b"], ["b", "a"])
    ]
    one, other = (opened_rows(rows, "rows", MAIL) for rows in made)
    assert infer_labels(MAIL, {"train": one, "val": one}, in_memory(MAIL)).labels == ("a", "b")
    with pytest.raises(ValueError, match="its splits have different classes: a, b; b, a"):
        infer_labels(MAIL, {"train": one, "val": other}, in_memory(MAIL))
