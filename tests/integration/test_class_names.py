"""Labels that a recipe leaves out, or has in a file."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import read_recipe, recipe_from
from lorachord.runs.strict import dump_yaml
from lorachord_cli import main
from tests.tiny_data import own, rows, task_of, tree, write_rows

NAMES = ("No", "yes")


def task(**changes: Any) -> dict[str, Any]:
    [fields] = own("colour")
    return {key: value for key, value in {**fields, "labels": None, **changes}.items() if value is not None}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows whose labels are texts, beside a recipe; the working directory is another."""
    folder = tmp_path / "project"
    for split, seed in (("train", 0), ("dev", 1)):
        made = [{**row, "label": NAMES[row["label"]]} for row in rows(task_of(own("colour")[0]), 40, seed)]
        write_rows(folder / "data" / "colour" / f"{split}.jsonl", made)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def write(folder: Path, model: Path, *tasks: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(tree(model, tasks={"own": list(tasks)}, training={"max_steps": 1})), encoding="utf-8")
    return path


def test_labels_that_are_left_out_are_those_of_all_splits_in_order(project: Path, tiny_bert: Path) -> None:
    # Of a class that train does not have.
    with (project / "data" / "colour" / "dev.jsonl").open("a") as file:
        file.write('{"sentence1": "red", "label": "Maybe", "idx": 99}\n')
    path = write(project, tiny_bert, task(source={"path": "data/colour"}))
    [found] = read_recipe(path).tasks.own
    assert found.labels == found.answers == ("Maybe", "No", "yes")


def test_a_run_writes_down_the_labels_that_it_found_and_is_repeated_by_them(project: Path, tiny_bert: Path) -> None:
    path = write(project, tiny_bert, task(source={"path": "data/colour"}))
    assert main(["train", str(path), "--out", "run"]) == 0
    written = (Path("run") / "recipe.yaml").read_text()
    assert "labels:\n    - 'No'\n    - 'yes'\n" in written
    shutil.rmtree(project)
    assert RunFolder.open("run").recipe.tasks.own[0].labels == NAMES
    assert main(["evaluate", "run"]) == 0


def test_the_data_of_the_command_line_are_those_that_are_read(project: Path, tiny_bert: Path) -> None:
    path = write(project, tiny_bert, task())
    assert main(["train", str(path), "--out", "run", "--data", "../project/data"]) == 0
    assert RunFolder.open("run").recipe.tasks.own[0].labels == NAMES
    assert main(["train", str(path), "--out", "run", "--data", "../project/data", "--resume"]) == 0


def test_labels_may_be_a_file_beside_the_recipe(project: Path, tiny_bert: Path) -> None:
    (project / "names.txt").write_text("yes\n\n  No \n", encoding="utf-8")
    path = write(project, tiny_bert, task(labels="names.txt"))
    assert read_recipe(path).tasks.own[0].labels == ("yes", "No")
    (project / "names.txt").unlink()
    with pytest.raises(ValueError, match=rf"no file of labels {project / 'names.txt'}\. It would have a name a line"):
        read_recipe(path)


def test_answers_that_are_given_stay(project: Path, tiny_bert: Path) -> None:
    fields = task(source={"path": "data/colour"}, answers=["down", "up"])
    [found] = read_recipe(write(project, tiny_bert, fields)).tasks.own
    assert (found.labels, found.answers) == (NAMES, ("down", "up"))
    fields["answers"] = ["a", "b", "c"]
    with pytest.raises(ValueError, match="there are 3 answers for 2 labels"):
        read_recipe(write(project, tiny_bert, fields))


def test_what_else_is_wrong_is_told_before_rows_are_read(project: Path, tiny_bert: Path) -> None:
    path = write(project, tiny_bert, task(source={"path": "data/gone"}, lable="x"))
    with pytest.raises(ValueError, match=r"tasks\.own\.0\.lable: there is no such key"):
        read_recipe(path)
    with pytest.raises(ValueError, match=rf"{project / 'data' / 'gone'} does not exist"):
        read_recipe(write(project, tiny_bert, task(source={"path": "data/gone"})))


@pytest.mark.parametrize("labels", [(0, 1), ("0", "1"), (None, "yes"), ("", "yes"), (True, False)])
def test_what_may_be_an_index_is_no_name(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    for split in ("train", "dev"):
        made = [{"sentence1": f"text {i}", "label": labels[i % 2]} for i in range(8)]
        write_rows(tmp_path / f"{split}.jsonl", made)
    fields = task(source={"path": str(tmp_path)})
    with pytest.raises(
        ValueError, match=r"of task 'colour'.*(its index.*a name a line|label is missing|must be a text)"
    ):
        recipe_from(tree(Path("m"), tasks={"own": [fields]}))


def test_one_class_is_none(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        write_rows(tmp_path / f"{split}.jsonl", [{"sentence1": f"text {i}", "label": "yes"} for i in range(8)])
    with pytest.raises(ValueError, match="needs at least two classes, and all its rows have the label 'yes'"):
        recipe_from(tree(Path("m"), tasks={"own": [task(source={"path": str(tmp_path)})]}))


def test_keys_of_the_source_need_names_of_their_own(project: Path, tiny_bert: Path) -> None:
    path = write(project, tiny_bert, task(source={"path": "data/colour", "label_keys": ["No", "yes"]}))
    with pytest.raises(ValueError, match="label_keys how the classes are written"):
        read_recipe(path)
