"""A task's name before its texts: the cheapest way to tell a model its task."""

from pathlib import Path

import pytest

from lorachord.data.sources import load_split
from lorachord.runs.tasksets import load_data
from tests.tiny_data import recipe


def test_each_text_begins_with_its_tasks_name(tiny_bert: Path, task_files: Path) -> None:
    plain = recipe(tiny_bert, "colour", "size")
    named = recipe(tiny_bert, "colour", "size", tasks={"name_in_text": True})
    before = load_data(plain, plain.tasks.chosen(), task_files)
    after = load_data(named, named.tasks.chosen(), task_files)
    for name, old, new in zip(("colour", "size"), before.data, after.data, strict=True):
        for split in ("train", "val", "dev"):
            rows = getattr(old, split).to_list()
            # The rows of each split are the same ones.
            expected = [row | {"first": f"{name}: {row['first']}"} for row in rows]
            assert rows
            assert getattr(new, split).to_list() == expected


def test_a_decoders_prompt_has_the_name_as_well(tiny_llama: Path, task_files: Path) -> None:
    named = recipe(tiny_llama, "echo", kind="decoder", tasks={"name_in_text": True})
    [task] = named.tasks.chosen()
    row = load_split(task, "dev", data_dir=task_files)[0]
    assert task.render(row).startswith("echo: up") or task.render(row).startswith("echo: down")


@pytest.mark.parametrize("name_in_text", [False, True])
def test_generated_tasks_too(tiny_bert: Path, name_in_text: bool) -> None:
    lab = {"lab": {"name": "lab-contradiction", "num_tasks": 2, "num_train": 40, "num_dev": 1000}}
    made = recipe(tiny_bert, tasks={"own": [], "name_in_text": name_in_text, **lab})
    data = load_data(made, made.tasks.chosen(), None)
    assert [row["first"].startswith("lab_contradiction_1: ") for row in data.data[1].dev] == [name_in_text] * 1000
