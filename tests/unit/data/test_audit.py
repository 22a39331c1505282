"""The faults that no single row shows are counted by hand, and said."""

from typing import Any

import pytest

from lorachord.data import audit as audits
from lorachord.data import hashed
from lorachord.data.audit import Shared, audit
from lorachord.data.audit_words import warnings_of
from lorachord.data.sources import from_rows
from lorachord.data.task import Task


def row(text: str, label: Any = "no", second: str = "") -> dict[str, Any]:
    return {"a": text, "b": second, "label": label}


def task(name: str = "t", kind: str = "classification", **fields: Any) -> Task:
    labels = {"labels": ("no", "yes")} if kind == "classification" else {}
    return Task(name, kind=kind, text="a", **{**labels, **fields})


TRAIN = [row("one"), row("two", "yes"), row("three"), row("three"), row("four"), row("FOUR ", "yes"), row("five")]
DEV = [row("one"), row("Two"), row("six", "yes"), row("six", "yes"), row("seven"), row("eight")]
VAL = [row("eight", "yes"), row("nine"), row("one")]


def test_leaks_duplicates_and_contradictions_are_counted() -> None:
    found = audit([from_rows(task(), {"train": TRAIN, "val": VAL, "dev": DEV})]).tasks["t"]
    train, val, dev = found["train"], found["val"], found["dev"]
    assert (train.rows, train.compared, train.duplicates, train.contradictions, train.leaked) == (7, 7, 2, 2, 0)
    assert (dev.rows, dev.duplicates, dev.contradictions) == (6, 1, 0)
    # "one" and "two" are in train, "eight" in val; the last two with another label.
    assert (dev.leaked, dev.leaked_otherwise) == (3, 2)
    assert (val.leaked, val.leaked_otherwise) == (1, 0)
    assert train.classes == {"no": 5, "yes": 2}


def test_each_matter_is_said_once_in_words() -> None:
    words = warnings_of(audit([from_rows(task(), {"train": TRAIN, "val": VAL, "dev": DEV})]))
    assert len(words) == 3
    assert "t: 1 of 3 val rows are also in train, 3 of 6 dev rows are also in train or val (2 of them" in words[0]
    assert "with another label): a leak" in words[0]
    assert "t: 2 of 7 train rows have a text that occurs in the same split with another label" in words[1]
    assert "t: 2 of 7 train rows, 1 of 6 dev rows are duplicates" in words[2]


def test_nothing_is_said_of_clean_data() -> None:
    texts = [f"text {number}" for number in range(40)]
    rows = [row(text, ("no", "yes")[number % 2]) for number, text in enumerate(texts)]
    assert warnings_of(audit([from_rows(task(), {"train": rows[:30], "dev": rows[30:]})])) == []


def test_second_texts_and_options_belong_to_the_text() -> None:
    pairs = [row("one", second="x"), row("one", "yes", "y"), row("two", second="x"), row("three", "yes")]
    data = from_rows(Task("t", kind="pair", text=("a", "b"), labels=("no", "yes")), {"train": pairs, "dev": pairs[3:]})
    assert (audit([data]).tasks["t"]["train"].duplicates, audit([data]).tasks["t"]["dev"].leaked) == (0, 1)
    chosen = [{"a": "q", "choices": ["x", "y"], "label": 0}, {"a": "q", "choices": ["x", "z"], "label": 0}] * 2
    rows = {"train": chosen, "dev": chosen[:1], "val": [{"a": "q", "choices": ["v", "w"], "label": 1}]}
    found = audit([from_rows(Task("t", kind="multiple_choice", text="a"), rows)]).tasks["t"]
    assert (found["train"].duplicates, found["val"].leaked, found["dev"].leaked) == (2, 0, 1)


def test_several_written_answers_to_one_text_are_no_contradiction() -> None:
    rows = [row("q", "one answer"), row("q", "another"), row("p", "x"), row("o", "x")]
    found = audit([from_rows(task(kind="generation"), {"train": rows, "val": rows[2:3], "dev": rows[3:]})])
    assert found.tasks["t"]["train"].contradictions == 0
    assert found.tasks["t"]["train"].classes == {}


def test_texts_that_tasks_share_are_counted_by_pair_and_across_splits() -> None:
    texts = {
        "a": (["x", "y", "z"], ["d"], ["v"]),
        "b": (["X", "y", "q"], ["z"], ["w"]),
        "c": (["k", "l", "m"], ["n"], ["o"]),
    }
    data = [
        from_rows(
            task(name),
            {
                split: [row(text, ("no", "yes")[at % 2]) for at, text in enumerate(own)]
                for split, own in zip(("train", "dev", "val"), parts, strict=True)
            },
        )
        for name, parts in texts.items()
    ]
    found = audit(data)
    assert found.shared == (Shared(tasks=("a", "b"), train=2, held_out=1),)
    train, across = warnings_of(found)[-2:]
    assert "tasks share texts in train (a and b 2)" in train
    assert "tasks share texts across splits (a and b 1)" in across
    assert found.alone("a").tasks.keys() == {"a"}


def test_lengths_are_measured_and_cuts_said() -> None:
    rows = [row("w " * size + str(size), ("no", "yes")[size % 2]) for size in range(1, 11)]
    data = from_rows(task(), {"train": rows, "val": rows[:1], "dev": rows[:1]})
    found = audit([data], count_tokens=lambda _, some: [len(each["first"].split()) for each in some], max_length=8)
    lengths = found.tasks["t"]["train"].lengths
    assert lengths is not None
    assert (lengths.measured, lengths.cut, lengths.longest, lengths.median) == (10, 3, 11, 6)
    assert lengths.lost == pytest.approx((1 + 2 + 3) / sum(range(2, 12)))
    [words] = [words for words in warnings_of(found) if "longer than" in words]
    assert "3 of 10 train rows are longer than max_length 8 and are cut, which loses 9% of the tokens" in words


def test_large_splits_are_looked_at_in_part_and_the_words_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed, "MOST_ROWS", 4)
    monkeypatch.setattr(audits, "MEASURED", 2)
    data = from_rows(task(), {"train": TRAIN, "val": VAL, "dev": DEV[4:5]})
    found = audit([data], count_tokens=lambda _, some: [9] * len(some), max_length=8)
    train = found.tasks["t"]["train"]
    assert (train.rows, train.compared, train.duplicates) == (7, 4, 1)
    assert train.classes == {"no": 5, "yes": 2}
    words = " ".join(warnings_of(found))
    assert "1 of the first 4 train rows are duplicates" in words
    assert "2 of 2 train rows looked at" in words


def test_classes_that_are_missing_or_drown_are_said() -> None:
    three = task(labels=("no", "yes", "perhaps"))
    rows = [row(f"text {number}") for number in range(97)] + [row(f"yes {number}", "yes") for number in range(3)]
    words = warnings_of(audit([from_rows(three, {"train": rows, "val": VAL[1:2], "dev": DEV[4:]})]))
    assert "no row of train has the class perhaps: it cannot be learned" in words[0]
    assert "few rows of train have the class yes (3): it is hardly learned" in words[1]
    assert "no row of dev has the class yes: nothing is measured of it" in words[2]
    assert "97.0% of train have the class no" in words[3]


def test_classes_that_differ_in_case_or_spaces_alone_are_asked_about() -> None:
    dirty = task(labels=("Delivery", "billing", "delivery "))
    rows = [row(f"text {number}", label) for number, label in enumerate(["Delivery", "billing", "delivery "] * 10)]
    words = warnings_of(audit([from_rows(dirty, {"train": rows, "val": rows[:3], "dev": rows[3:6]})]))
    assert any("the classes 'Delivery' and 'delivery ' differ in case or spaces alone" in each for each in words)


def test_numbers_of_one_text_may_differ() -> None:
    stars = Task("stars", kind="regression", text="text")
    rows = [{"text": "the same", "label": number} for number in range(6)]
    found = audit([from_rows(stars, {"train": rows, "val": rows[:2], "dev": rows[2:4]})])
    assert found.tasks["stars"]["train"].contradictions == 0
