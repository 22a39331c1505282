from itertools import islice
from typing import Any

import pytest

from lorachord.data.files import read_rows
from lorachord.data.row_reader import RowReader
from lorachord.data.sources import from_rows, load_task
from lorachord.data.suites import SUITES, get_suite
from lorachord.data.task import Task
from tests.unit.data.helpers import real_data

EVERY = [task for suite in SUITES.values() for task in suite]
KEYED = {"choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "B"}
# A row of each hub dataset, laid out as it is published; the label's place is 1 in all of them.
HUB_ROWS: dict[str, dict[str, Any]] = {
    "glue_cola": {"sentence": "one", "label": 1, "idx": 0},
    "glue_sst2": {"sentence": "one", "label": 1, "idx": 0},
    "glue_mrpc": {"sentence1": "one", "sentence2": "two", "label": 1, "idx": 0},
    "glue_rte": {"sentence1": "one", "sentence2": "two", "label": 1, "idx": 0},
    "glue_qnli": {"question": "one", "sentence": "two", "label": 1, "idx": 0},
    "glue_stsb": {"sentence1": "one", "sentence2": "two", "label": 1.0, "idx": 0},
    "glue_qqp": {"question1": "one", "question2": "two", "label": 1, "idx": 0},
    "glue_mnli": {"premise": "one", "hypothesis": "two", "label": 1, "idx": 0},
    "cs_arc_easy": {"id": "q", "question": "one", **KEYED},
    "cs_arc_challenge": {"id": "q", "question": "one", **KEYED},
    "cs_openbookqa": {"id": "q", "question_stem": "one", **KEYED},
    "cs_piqa": {"goal": "one", "sol1": "x", "sol2": "y", "label": 1},
    "cs_siqa": {"context": "one", "question": "q", "answerA": "x", "answerB": "y", "answerC": "z", "label": "2"},
    "cs_hellaswag": {"activity_label": "one", "ctx": "c", "endings": ["x", "y", "z", "w"], "label": "1"},
    "cs_winogrande": {"sentence": "one", "option1": "x", "option2": "y", "answer": "2"},
    "cs_boolq": {"question": "one", "passage": "two", "answer": True},
    "cs_boolq_nopassage": {"question": "one", "passage": "two", "answer": True},
    "cs_csqa": {"id": "q", "question": "one", "question_concept": "c", **KEYED},
}


def test_the_tasks_are_those_of_the_data_directory() -> None:
    names = [task.name for task in get_suite("glue")]
    assert names == [f"glue_{name}" for name in ("cola", "sst2", "mrpc", "rte", "qnli", "stsb", "qqp", "mnli")]
    assert len(get_suite("commonsense")) == 10
    assert len(get_suite("superni")) == 15
    assert all(task.name.startswith("superni/task") for task in get_suite("superni"))
    assert len({task.name for task in EVERY}) == len(EVERY)


def test_only_some_in_the_order_asked_for() -> None:
    assert [task.name for task in get_suite("glue", ["glue_rte", "glue_cola"])] == ["glue_rte", "glue_cola"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gleu",), "no suite 'gleu'.*'glue'"),
        (("glue", ["cola"]), "'glue' has no task 'cola'.*'glue_cola'"),
        (("glue", ["glue_rte", "glue_rte"]), "repeated: glue_rte"),
        (("glue", []), "No task"),
    ],
)
def test_unknown_names_are_errors_with_the_nearest(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_suite(*arguments)


def test_the_boolean_questions_are_answered_in_words() -> None:
    known = {task.name: task for task in EVERY}
    boolq, cola, mnli = (known[name] for name in ("cs_boolq", "glue_cola", "glue_mnli"))
    assert boolq.answers == cola.answers == ("no", "yes")
    assert mnli.answers == ("yes", "maybe", "no")
    example = {"first": "is it so", "second": "It is so.", "label": 1}
    assert boolq.render(example) == "It is so.\nQuestion: is it so\nSay no or yes.\nAnswer:"
    assert boolq.target(example) == "yes"


@pytest.mark.parametrize("task", [task for task in EVERY if task.name in HUB_ROWS], ids=lambda task: task.name)
def test_the_hub_layout_is_understood(task: Task) -> None:
    reader = RowReader(task, task.source, "hub")
    example = reader.example(HUB_ROWS[task.name], 0)
    assert example["first"].startswith("one")
    assert example["second"] == ("two" if len(task.text) == 2 else "")
    assert example["label"] == 1
    if task.kind == "multiple_choice":
        assert example["choices"][:2] == ["x", "y"]
    assert reader.group(HUB_ROWS[task.name], 0)


def test_every_task_has_a_hub_row_here() -> None:
    assert set(HUB_ROWS) == {task.name for task in EVERY if not task.name.startswith("superni/")}
    task = get_suite("superni")[0]
    example = RowReader(task, task.source, "hub").example({"input": "Do it.", "output": ["a", "b"], "id": "x"}, 0)
    assert (task.render(example), example["label"]) == ("Do it.\nAnswer:", "a")


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_the_real_rows_are_understood(task: Task) -> None:
    path = real_data() / task.name
    rows = {split: list(islice(read_rows(path / f"{split}.parquet"), 200)) for split in ("train", "dev")}
    data = from_rows(task, rows)
    assert len(data.train) + len(data.val) == len(rows["train"])
    example = data.dev[0]
    assert task.prompt[0] == "{" or task.render(example).startswith(task.prompt.split("{")[0])
    assert example["first"] in task.render(example)
    assert task.target(example)


def test_a_real_task_keeps_its_protocol() -> None:
    data = load_task(get_suite("glue", ["glue_rte"])[0], data_dir=real_data())
    assert (len(data.train) + len(data.val), len(data.dev)) == (2488, 277)
    assert abs(len(data.val) - 248.8) < 1
    premises = ({row["first"] for row in split} for split in (data.train, data.val))
    assert not set.intersection(*premises)
