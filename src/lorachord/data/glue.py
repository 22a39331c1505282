"""GLUE, as plain data; see `suites.py`."""

from __future__ import annotations

from lorachord.data.task import Source, Task

ONE = ("sentence1",)
TWO = ("sentence1", "sentence2")


def _glue(name: str, *, first: str = "sentence1", second: str = "sentence2", dev: str = "validation") -> Source:
    columns = {"sentence1": first, "sentence2": second}
    return Source(path="hub:nyu-mll/glue", name=name, splits={"dev": dev}, columns=columns)


GLUE = (
    Task(
        name="glue_cola",
        kind="classification",
        source=_glue("cola", first="sentence"),
        text=ONE,
        labels=("unacceptable", "acceptable"),
        answers=("no", "yes"),
        prompt="Sentence: {first}\nIs this sentence grammatical English? Say {options}.\nAnswer:",
        metric="matthews",
    ),
    Task(
        name="glue_sst2",
        kind="classification",
        source=_glue("sst2", first="sentence"),
        text=ONE,
        labels=("negative", "positive"),
        prompt="Review: {first}\nDoes the reviewer sound {options}?\nAnswer:",
    ),
    Task(
        name="glue_mrpc",
        kind="pair",
        source=_glue("mrpc"),
        text=TWO,
        labels=("not_equivalent", "equivalent"),
        answers=("no", "yes"),
        prompt="First: {first}\nSecond: {second}\nDo both sentences say the same? Say {options}.\nAnswer:",
    ),
    Task(
        name="glue_rte",
        kind="pair",
        source=_glue("rte"),
        text=TWO,
        labels=("entailment", "not_entailment"),
        answers=("yes", "no"),
        prompt="Text: {first}\nClaim: {second}\nDoes the claim follow from the text? Say {options}.\nAnswer:",
    ),
    Task(
        name="glue_qnli",
        kind="pair",
        source=_glue("qnli", first="question", second="sentence"),
        text=TWO,
        labels=("entailment", "not_entailment"),
        answers=("yes", "no"),
        prompt="Question: {first}\nSentence: {second}\nDoes the sentence answer the question? Say {options}.\nAnswer:",
    ),
    Task(
        name="glue_stsb",
        kind="regression",
        source=_glue("stsb"),
        text=TWO,
        prompt="First: {first}\nSecond: {second}\nFrom 0 (unrelated) to 5 (the same), how alike are they?\nAnswer:",
    ),
    Task(
        name="glue_qqp",
        kind="pair",
        source=_glue("qqp", first="question1", second="question2"),
        text=TWO,
        labels=("not_duplicate", "duplicate"),
        answers=("no", "yes"),
        prompt="First: {first}\nSecond: {second}\nDo both questions ask the same? Say {options}.\nAnswer:",
    ),
    Task(
        name="glue_mnli",
        kind="pair",
        source=_glue("mnli", first="premise", second="hypothesis", dev="validation_matched"),
        text=TWO,
        labels=("entailment", "neutral", "contradiction"),
        answers=("yes", "maybe", "no"),
        prompt="Text: {first}\nClaim: {second}\nIs the claim true, given the text? Say {options}.\nAnswer:",
    ),
)
