"""Bad input to a run is refused before anything is trained, in words, and costs nothing that was there."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorachord.runs.train import train
from lorachord_cli import main
from tests.tiny_data import OWN, own, recipe, rows, task_of, write_data, write_rows

Rows = list[dict[str, Any]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse(model: Path, data: Path, out: Path, message: str, /, *names: str, **parts: Any) -> None:
    """The run is refused in a new folder, which is not made, and over an old run, which is left as it is."""
    __tracebackhide__ = True
    with pytest.raises(ValueError, match=message):
        train(recipe(model, *names, **parts), out / "new", data_dir=data)
    assert not (out / "new").exists()

    old = out / "old"
    if not old.exists():
        old.mkdir(parents=True)
        for name in ("recipe.yaml", "environment.json", "metrics.json", "log.jsonl"):
            (old / name).write_text("{}")
    before = contents(old)
    with pytest.raises(ValueError, match=message):
        train(recipe(model, *names, **parts), old, data_dir=data, force=True)
    assert contents(old) == before


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., Path]:
    """Data of two tasks, of which one has other rows of a split."""

    def write(change: Callable[[Rows], Rows], task: str = "colour", split: str = "train") -> Path:
        data = write_data(tmp_path / "data", "colour", "size", "choice")
        made = rows(task_of(own(task)[0]), 24, seed=1)
        suffix = ".jsonl" if task != "choice" else ".parquet"
        write_rows(data / task / f"{split}{suffix}", change(made))
        if task == "size":
            (data / task / f"{split}.csv").unlink()
        return data

    return write


# Data


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_missing_column_is_named_with_those_that_exist(
    tiny_bert: Path, broken: Callable[..., Path], tmp_path: Path, split: str
) -> None:
    data = broken(lambda made: [{"sentence": row.pop("sentence1"), **row} for row in made], split=split)
    message = rf"{split} of task 'colour'.*no column 'sentence1'\. Did you mean 'sentence' or .*Columns: sentence, sent"
    refuse(tiny_bert, data, tmp_path, message, "colour", "size")


def test_a_label_column_that_is_missing_is_named(tiny_bert: Path, broken: Callable[..., Path], tmp_path: Path) -> None:
    data = broken(lambda made: [{"labels": row.pop("label"), **row} for row in made], "size")
    refuse(tiny_bert, data, tmp_path, r"task 'size'.*no column 'label'\. Did you mean 'labels'", "colour", "size")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (2, "label 2 is outside 0 = no, 1 = yes"),
        (-1, "label -1 is outside.*-1 often marks rows without labels"),
        ("maybe", "label 'maybe' is neither an index nor the name of 0 = no, 1 = yes"),
        (None, "label None is neither"),
        (0.5, r"label 0\.5 is neither"),
    ],
)
def test_a_label_outside_the_map_is_named_with_its_row(
    tiny_bert: Path, broken: Callable[..., Path], tmp_path: Path, label: object, message: str
) -> None:
    data = broken(lambda made: [*made[:3], {**made[3], "label": label}, *made[4:]])
    refuse(tiny_bert, data, tmp_path, rf"Row 3 \(from 0\) of train of task 'colour'.*{message}", "colour", "size")


@pytest.mark.parametrize("split", ["train", "val", "dev"])
def test_an_empty_split_is_named(tiny_bert: Path, broken: Callable[..., Path], tmp_path: Path, split: str) -> None:
    data = broken(lambda made: [], split=split)
    refuse(tiny_bert, data, tmp_path, rf"{split} of task 'colour' .* is empty; give it rows", "colour", "size")


def test_one_class_only_is_nothing_to_learn(tiny_bert: Path, broken: Callable[..., Path], tmp_path: Path) -> None:
    data = broken(lambda made: [{**row, "label": 1} for row in made])
    refuse(tiny_bert, data, tmp_path, "all 22 rows have the one class 'yes'.*nothing to learn", "colour", "size")


@pytest.mark.parametrize("options", [["up"], []])
def test_a_list_of_fewer_than_two_options_is_no_choice(
    tiny_bert: Path, broken: Callable[..., Path], tmp_path: Path, options: list[str]
) -> None:
    data = broken(lambda made: [*made[:5], {**made[5], "choices": options, "label": 0}, *made[6:]], "choice")
    refuse(tiny_bert, data, tmp_path, "Row 5 .*task 'choice'.*at least two options", "colour", "choice")


def test_a_csv_that_is_no_utf8_is_named_with_the_byte(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "size")
    path = data / "size" / "train.csv"
    path.write_bytes(path.read_bytes() + "été,up,90,1\n".encode("latin1"))
    refuse(tiny_bert, data, tmp_path, r"train\.csv is not UTF-8: byte \d+ is 0xe9\. Save it as UTF-8", "size")


def test_a_task_without_its_folder_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", "colour")
    refuse(tiny_bert, data, tmp_path, r"has no 'colours'\. Did you mean 'colour'", tasks={"own": [colour("colours")]})
    refuse(tiny_bert, tmp_path / "dta", tmp_path, r"has no 'dta'\. Did you mean 'data'", "colour")
    (data / "colour" / "dev.jsonl").rename(data / "colour" / "eval.jsonl")
    refuse(tiny_bert, data, tmp_path, r"has no 'dev' or 'validation' for our split 'dev'", "colour")


def colour(name: str) -> dict[str, Any]:
    return {"name": name, "source": {"path": name}, "group": "idx", **OWN["colour"]}


# Recipes whose parts do not fit each other


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"method": {"name": "mtl_lor"}}, r"method: there is no method 'mtl_lor'\. Did you mean 'mtl_lora'"),
        ({"method": {"name": "peft_lor"}}, r"method: there is no method 'peft_lor'\. Did you mean 'peft_lora'"),
        ({"method": {"name": "lora", "rank": 8}}, "method: lora has no option 'rank'"),
        (
            {"method": {"name": "peft_lora", "alpa": 8}},
            r"method: peft_lora has no option 'alpa'\. Did you mean 'alpha'",
        ),
        ({"method": {"name": "lora", "r": 0}}, "method: .*r = 0, but it must be an integer, at least 1"),
        ({"method": {"name": "lora", "r": "8"}}, "method: .*r = '8', but it must be an integer"),
        ({"tasks": {"weights": {"colr": 2}}}, r"tasks\.weights names 'colr', which is no task.*Did you mean 'colour'"),
        (
            {"model": {"heads": "shared"}},
            r"One shared head needs tasks of one width.*colour 2, number 1\. Use per_task",
        ),
        (
            {"mixture": {"every_task": True}, "training": {"batch_size": 1}},
            r"batch_size is 1, too small for every one of 2 tasks\. Raise it to at least 2",
        ),
        (
            {"mixture": {"every_task": True}, "training": {"batch_size": 4, "accumulation": 4}},
            "too small for every one of 2 tasks",
        ),
        ({"mixture": {"every_task": True, "batches": "one_task"}}, "A batch of one task cannot hold every task"),
        ({"surgery": {"rule": "ortho_lra"}}, r"surgery: There is no rule 'ortho_lra'\. Did you mean 'ortho_lora'"),
        ({"surgery": {"rule": "ortho_lora", "ordr": 1}}, r"surgery: ortho_lora: .*unexpected keyword argument 'ordr'"),
        ({"surgery": {"rule": "ortho_lora", "granularity": "layer"}}, r"surgery: There is no granularity 'layer'"),
        ({"surgery": {"granularity": "factor"}}, r"surgery needs a rule"),
        ({"surgery": {"rule": "sum"}, "mixture": {"batches": "one_task"}}, r"nothing to do in batches of one task"),
        ({"surgery": {"rule": "sum"}, "method": {"name": "peft_lora"}}, r"peft_lora hands out no gradients of tasks"),
        ({"model": {"gguf_file": "x.gguf", "kind": "decoder"}}, r"is no complete model\. Missing: x\.gguf"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    tiny_bert: Path, task_files: Path, tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    refuse(tiny_bert, task_files, tmp_path, message, "colour", "number", **parts)


def test_an_encoder_is_given_no_task_of_writing(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    message = "An encoder writes no text: leave out echo, or take a decoder"
    refuse(tiny_bert, task_files, tmp_path, message, "colour", "echo")


def test_weights_of_a_task_that_only_leaves_out_are_refused(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    parts = {"tasks": {"only": ["colour"], "weights": {"number": 2}}}
    refuse(tiny_bert, task_files, tmp_path, "weights names 'number', which is no task", "colour", "number", **parts)


def test_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tasks: Task names must be unique; repeated: colour\. Remove or rename"):
        recipe(Path("m"), "colour", "size", "colour")


# Models


def test_a_model_folder_that_is_not_there_is_named(task_files: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "gone", task_files, tmp_path, "looks like a folder, but there is none: .*gone", "colour")


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_model_folder_is_told_by_what_it_lacks(
    tiny_bert: Path, task_files: Path, tmp_path: Path, lacking: str
) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    (model / lacking).unlink()
    refuse(model, task_files, tmp_path, f"model is no complete model. Missing: .*{lacking}.* There is: ", "colour")


def test_a_truncated_checkpoint_is_no_complete_model(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refuse(model, task_files, tmp_path, r"Missing: a whole model\.safetensors", "colour")


# Folders


@pytest.mark.parametrize("flags", [{}, {"force": True}, {"resume": True}], ids=str)
def test_a_folder_that_holds_something_else_is_left_alone(
    tiny_bert: Path, task_files: Path, tmp_path: Path, flags: dict[str, bool]
) -> None:
    (tmp_path / "thesis.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds something that is no run; name a new folder"):
        train(recipe(tiny_bert, "colour"), tmp_path, data_dir=task_files, **flags)
    assert contents(tmp_path) == {"thesis.txt": b"keep"}


def test_a_run_is_not_overwritten_nor_resumed_by_another(
    tiny_bert: Path, tiny_llama: Path, task_files: Path, tmp_path: Path
) -> None:
    out, training = tmp_path / "run", {"max_steps": 1}
    train(recipe(tiny_bert, "colour", training=training), out, data_dir=task_files)
    before = contents(out)
    with pytest.raises(ValueError, match="holds a finished run"):
        train(recipe(tiny_bert, "colour", training=training), out, data_dir=task_files)
    other = recipe(tiny_llama, "colour", kind="decoder", training={"max_steps": 1, "learning_rate": 1e-4})
    for finished in (True, False):
        with pytest.raises(ValueError, match=r"(?s)model\.name: the run has .*bert.*llama.*training\.learning_rate"):
            train(other, out, data_dir=task_files, resume=True)
        assert contents(out) == before
        if finished:
            (out / "metrics.json").unlink()
            del before["metrics.json"]


def test_the_command_line_says_it_without_a_traceback(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, data = tmp_path / "r.yaml", write_data(tmp_path / "data", "colour")
    path.write_text(recipe(tiny_bert, "colour").to_yaml(), encoding="utf-8")
    write_rows(data / "colour" / "dev.jsonl", [{"sentence1": "red", "label": 3, "idx": 0}])
    assert main(["train", str(path), "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lorachord train: Row 0 (from 0) of dev of task 'colour'")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


# What shows only when the model is there


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"method": {"name": "lora", "target_modules": ["q_prj"]}}, "q_prj"),
        ({"method": {"name": "lora", "tasks": ["colour"]}}, "tasks"),
        ({"model": {"kind": "decoder"}}, "is a bert, no causal language model, so it is no decoder"),
        ({"training": {"report_to": ["tensorbord"]}}, "tensorbord"),
        ({"model": {"max_length": 1000}}, "max_length"),
    ],
    ids=str,
)
def test_what_the_model_cannot_take_is_refused_and_costs_nothing(
    tiny_bert: Path, task_files: Path, tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    refuse(tiny_bert, task_files, tmp_path, message, "colour", **parts)


def test_a_model_that_the_hub_does_not_give_is_refused(
    task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe(Path("no-such-owner/no-such-model"), "colour").to_yaml(), encoding="utf-8")
    assert main(["train", str(path), "--data", str(task_files), "--out", str(tmp_path / "run")]) == 2
    assert "no-such-owner/no-such-model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
