"""Finished runs that learn more tasks, by the command line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lorachord as lc
from lorachord.runs.folder import RunFolder
from lorachord.runs.later import ways_of
from lorachord.runs.strict import dump_yaml
from lorachord.runs.train import train
from lorachord.runs.use import evaluate, export_run
from lorachord_cli import main
from tests.tiny_data import own, recipe

OLD, NEW = ("colour", "number"), ("size", "choice")
MTL = {"name": "mtl_lora", "r": 2, "num_ups": 2}


@pytest.fixture(scope="module")
def runs(tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(recipe(tiny_bert, *OLD, method=MTL), folder / "mtl_lora", data_dir=task_files)
    train(recipe(tiny_bert, *OLD), folder / "lora", data_dir=task_files)
    return folder


def tasks_file(folder: Path, data: Path, *names: str, **others: Any) -> Path:
    tasks = [{**fields, "source": {"path": str(data / fields["name"])}} for fields in own(*names)]
    path = folder / "new.yaml"
    path.write_text(dump_yaml({"tasks": {"own": tasks}, **others}), encoding="utf-8")
    return path


def records(run: Path, split: str, task: str) -> bytes:
    return (run / "predictions" / split / f"{task}.jsonl").read_bytes()


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter/adapter_model.safetensors")


def test_new_cores_leave_the_old_predictions_as_they_are(runs: Path, task_files: Path, tmp_path: Path) -> None:
    first, run = runs / "mtl_lora", tmp_path / "run"
    new = tasks_file(tmp_path, task_files, *NEW, training={"max_steps": 5, "weight_decay": 0.5})
    assert main(["train", str(first), "--add-task", str(new), "--out", str(run)]) == 0
    made = RunFolder.open(run)
    assert [task.name for task in made.recipe.tasks.chosen()] == [*OLD, *NEW]
    assert made.metrics["training"]["steps"] == 5
    assert list(made.metrics["training"]["rows"]) == list(NEW)
    for split in ("val", "dev"):
        for task in OLD:
            assert records(run, split, task) == records(first, split, task)
    # Anew, by the saved adapter.
    assert evaluate(run, "dev", again=True) == made.metrics["dev"]
    assert records(run, "dev", "colour") == records(first, "dev", "colour")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {key for line in lines for key in line if key.startswith("loss_")} == {f"loss_{task}" for task in NEW}
    before, after = adapter(first), adapter(run)
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)] if value.ndim else after[name], value), name


def test_such_a_run_is_used_as_any_other(runs: Path, task_files: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    new = tasks_file(tmp_path, task_files, "size")
    assert main(["train", str(runs / "mtl_lora"), "--add-task", str(new), "--out", str(run)]) == 0
    row = [{"sentence1": "big up", "sentence2": "up"}]
    assert lc.load(run).predict(row, task="size")
    old = lc.load(runs / "mtl_lora").predict(row, task="colour")
    assert lc.load(run).predict(row, task="colour") == old
    assert [path.name for path in export_run(run, tmp_path / "loras")] == [*OLD, "size"]
    # Its recipe repeats it.
    assert main(["train", str(run / "recipe.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert all(torch.equal(value, adapter(run)[name]) for name, value in adapter(tmp_path / "again").items())
    # And one task more.
    more = tasks_file(tmp_path, task_files, "choice")
    assert main(["train", str(run), "--add-task", str(more), "--out", str(tmp_path / "more")]) == 0
    for task in (*OLD, "size"):
        assert records(tmp_path / "more", "dev", task) == records(run, "dev", task)


@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_replay_goes_on_with_all_rows(method: str, runs: Path, task_files: Path, tmp_path: Path) -> None:
    first, run = runs / method, tmp_path / "run"
    arguments = ["train", str(first), "--add-task", str(tasks_file(tmp_path, task_files, *NEW)), "--how", "replay"]
    still = ["training.max_steps=1", "training.learning_rate=1e-12", "training.weight_decay=0.0"]
    assert main([*arguments, *(word for one in still for word in ("--set", one)), "--out", str(run)]) == 0
    made = RunFolder.open(run)
    assert list(made.metrics["training"]["rows"]) == [*OLD, *NEW]
    # Where it begins, the old tasks are as they were.
    for name, value in adapter(first).items():
        if "digest" not in name:
            torch.testing.assert_close(adapter(run)[name][: len(value)], value, rtol=0, atol=1e-9)
    assert made.metrics["dev"]["tasks"]["colour"] == RunFolder.open(first).metrics["dev"]["tasks"]["colour"]
    assert main([*arguments, "--out", str(tmp_path / "learned")]) == 0
    assert not torch.equal(*(adapter(path)[next(iter(adapter(first)))] for path in (first, tmp_path / "learned")))


@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_a_fused_adapter_answers_all_tasks(method: str, runs: Path, task_files: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", str(runs / method), "--add-task", str(tasks_file(tmp_path, task_files, *NEW))]
    assert main([*arguments, "--how", "fuse", "--out", str(run)]) == 0
    made = RunFolder.open(run)
    assert list(made.metrics["dev"]["tasks"]) == [*OLD, *NEW]
    # Only the new tasks are trained, each alone.
    assert sorted(made.metrics["training"]) == sorted(NEW)
    assert not (run / "colour").exists()
    assert evaluate(run, "dev", again=True) == made.metrics["dev"]
    assert lc.load(run).predict([{"sentence1": "red up"}], task="colour")
    assert [path.name for path in export_run(run, tmp_path / "loras")] == [*OLD, *NEW]


def test_a_fused_run_of_new_adapters_is_their_average(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    run = train(recipe(tiny_bert, *OLD, mode="fused"), tmp_path / "run", data_dir=task_files).path
    arguments = ["fuse", str(run / "colour"), str(run / "number"), "--method", "average", "--out"]
    assert main([*arguments, str(tmp_path / "fused")]) == 0
    found = json.loads((tmp_path / "fused/fusion.json").read_text())["scores"]
    assert evaluate(run)["tasks"]["colour"]["score"] == pytest.approx(found["fused"]["tasks"]["colour"]["score"])
    assert evaluate(run)["tasks"]["number"]["score"] == pytest.approx(found["fused"]["tasks"]["number"]["score"])


def test_generated_tasks_follow_those_of_the_same_lab(tiny_bert: Path, tmp_path: Path) -> None:
    lab = {"name": "lab-contradiction", "k": 0.0, "num_tasks": 4, "num_train": 40, "num_dev": 1000}
    parts: dict[str, Any] = {"model": {"heads": "shared"}, "method": MTL, "training": {"max_steps": 2}}
    made = recipe(tiny_bert, tasks={"own": [], "lab": lab}, **parts)
    names = [task.name for task in made.tasks.chosen()]
    first = train(recipe(tiny_bert, tasks={"own": [], "lab": lab, "only": names[:2]}, **parts), tmp_path / "first").path
    (tmp_path / "new.yaml").write_text(dump_yaml({"tasks": {"lab": lab, "only": names[2:]}}), encoding="utf-8")
    run = tmp_path / "run"
    assert main(["train", str(first), "--add-task", str(tmp_path / "new.yaml"), "--out", str(run)]) == 0
    for task in names[:2]:
        assert records(run, "dev", task) == records(first, "dev", task)
    (tmp_path / "new.yaml").write_text(
        dump_yaml({"tasks": {"lab": {**lab, "k": 1.0}, "only": names[2:]}}), encoding="utf-8"
    )
    assert main(["train", str(first), "--add-task", str(tmp_path / "new.yaml"), "--out", str(tmp_path / "other")]) == 2


@pytest.mark.parametrize(
    ("method", "names", "others", "flags", "message"),
    [
        ("lora", ["size"], {}, [], "lora has no parameters of one task.*\n  replay: .* costs .*\n  fuse: .* costs .*"),
        ("lora", ["size"], {}, ["--how", "core"], "lora has no parameters of one task.*\n  replay: "),
        ("mtl_lora", ["size"], {"training": 3}, [], "training must be a mapping"),
        ("mtl_lora", ["size"], {"training": {"max_step": 3}}, [], "training.max_step: there is no such key"),
        ("mtl_lora", ["colour"], {}, [], "the run has these tasks already: colour"),
        ("mtl_lora", [], {}, [], "new.yaml"),
        ("mtl_lora", ["size"], {"method": {"name": "lora"}}, [], "new.yaml has method; beside tasks only training"),
        ("mtl_lora", ["size"], {}, ["--set", "surgery.rule=ortho_lora"], "surgery works on factors, which are frozen"),
    ],
)
def test_what_cannot_follow_is_refused_before_training(
    method: str,
    names: list[str],
    others: dict[str, Any],
    flags: list[str],
    message: str,
    runs: Path,
    task_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = tasks_file(tmp_path, task_files, *names, **others)
    out = tmp_path / "run"
    assert main(["train", str(runs / method), "--add-task", str(new), "--out", str(out), *flags]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err, re.DOTALL)
    assert not out.exists()


def test_each_method_is_offered_what_it_can_do() -> None:
    expected = {
        "lora": ["replay", "fuse"],
        "mtl_lora": ["core", "replay", "fuse"],
        "allot": ["core", "fuse"],
        "hydralora": ["replay"],
        "thanora": ["fuse"],
        "mor1e": [],
    }
    assert {method: list(ways_of(method)) for method in expected} == expected


def test_files_and_runs_that_will_not_do_are_refused(
    runs: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, first = tasks_file(tmp_path, task_files, "size"), runs / "mtl_lora"
    none = tmp_path / "none.yaml"
    none.write_text("training: {epochs: 1}\n", encoding="utf-8")
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(task_files / "size", unlabelled / "size")
    for file in (unlabelled / "size").iterdir():
        file.write_text("sentence1,sentence2,idx\nbig up,up,1\nsmall up,up,2\n", encoding="utf-8")
    unfinished = Path(shutil.copytree(first, tmp_path / "unfinished"))
    (unfinished / "metrics.json").unlink()
    bare = tasks_file(tmp_path / "unlabelled", unlabelled, "size")
    for run, file, message in (
        (first, tmp_path / "gone.yaml", "there is no file"),
        (first, none, "names no tasks"),
        (first, bare, "label"),
        (unfinished, new, "is not finished"),
        (tmp_path / "nothing", new, "is no run folder"),
    ):
        assert main(["train", str(run), "--add-task", str(file), "--out", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main(["train", str(new), "--how", "replay", "--out", str(tmp_path / "run")]) == 2
    assert "--add-task" in capsys.readouterr().err


def test_more_rows_for_a_finished_run_are_a_key_of_the_recipe(
    tiny_bert: Path, task_files: Path, runs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe(tiny_bert, *OLD).to_yaml(), encoding="utf-8")
    more = Path(shutil.copytree(task_files, tmp_path / "more"))
    with (more / "colour/train.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"sentence1": "red down", "idx": 1000 + i, "label": 1}) + "\n" for i in range(40))
    arguments = ["train", str(path), "--set", f"start_from={runs / 'lora'}", "--data", str(more)]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    rows = [RunFolder.open(run).metrics["training"]["rows"]["colour"] for run in (runs / "lora", tmp_path / "run")]
    assert rows[1] > rows[0]
