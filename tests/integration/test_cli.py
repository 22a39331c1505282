"""The command line from a recipe file to plain models, and its words for bad input."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorachord.models.catalogue import CATALOGUE
from lorachord.runs.folder import RunFolder
from lorachord_cli import main
from tests.tiny_data import recipe


def write(path: Path, /, *arguments: Any, **parts: Any) -> Path:
    """A recipe's file."""
    path.write_text(recipe(*arguments, **parts).to_yaml(), encoding="utf-8")
    return path


def run(path: Path, model: Path, data: Path, /, *names: str, **parts: Any) -> Path:
    made = write(path.with_suffix(".yaml"), model, *names, **parts)
    assert main(["train", str(made), "--data", str(data), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def static(folder: Path, tiny_bert: Path, task_files: Path) -> Path:
    """One adapter and one head for two tasks."""
    return run(folder / "static", tiny_bert, task_files, "colour", "size", model={"heads": "shared"})


@pytest.fixture(scope="module")
def per_task(folder: Path, tiny_bert: Path, task_files: Path) -> Path:
    """One adapter, and a head for each of two tasks."""
    return run(folder / "per_task", tiny_bert, task_files, "colour", "number")


@pytest.fixture(scope="module")
def single(folder: Path, tiny_bert: Path, task_files: Path) -> Path:
    return run(folder / "single", tiny_bert, task_files, "colour", "size", mode="single", model={"heads": "shared"})


def saved(run_folder: Path, task: str) -> list[int | float]:
    lines = (run_folder / "predictions" / "dev" / f"{task}.jsonl").read_text().splitlines()
    return [json.loads(line)["prediction"] for line in lines]


def texts(data: Path, task: str) -> list[str]:
    assert task == "colour"
    return [json.loads(line)["sentence1"] for line in (data / task / "dev.jsonl").read_text().splitlines()]


def predicted(model: Any, source: Path, lines: list[str]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.no_grad():
        logits = model.eval()(**tokenizer(lines, padding=True, return_tensors="pt")).logits
    return [int(row.argmax()) for row in logits]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What stands on stderr, of arguments that end with status 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"lorachord {arguments[0]}: ")
    assert "Traceback" not in captured.err
    return captured.err


# Training and scoring


def test_train_prints_the_scores_and_where_the_run_is(
    tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tmp_path / "run", tiny_bert, task_files, "colour", "size", training={"max_steps": 2}, seed=4)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "dev, lora, joint, seed 4"
    assert printed[-1] == f"The run is in {out}."
    dev = RunFolder.open(out).metrics["dev"]
    assert f"{dev['mean']:.3f}" in next(line for line in printed if line.startswith("mean"))


def test_settings_of_the_command_line_are_in_the_runs_recipe(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    path, out = write(tmp_path / "r.yaml", tiny_bert, "colour", "size"), tmp_path / "run"
    arguments = ["train", str(path), "--data", str(task_files), "--out", str(out), "--set", "training.max_steps=1"]
    assert main([*arguments, "--set", "tasks.only=[size]", "--set", "method={name: peft_lora, r: 3}"]) == 0
    found = RunFolder.open(out)
    assert found.metrics["training"]["steps"] == 1
    assert list(found.metrics["dev"]["tasks"]) == ["size"]
    assert found.recipe.method == {"name": "peft_lora", "r": 3}


def test_without_out_a_run_is_called_after_its_recipe(
    tiny_bert: Path, task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "first.yaml", tiny_bert, "colour", training={"max_steps": 1})
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(path), "--data", str(task_files)]) == 0
    assert RunFolder.open(tmp_path / "runs" / "first").finished


def test_a_run_is_replaced_only_by_force_and_left_as_it_is_by_resume(
    tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tmp_path / "run", tiny_bert, task_files, "colour", training={"max_steps": 1})
    again = ["train", str(tmp_path / "run.yaml"), "--data", str(task_files), "--out", str(out)]
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "holds a finished run: name a new folder" in refused(capsys, *again)
    assert main([*again, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    assert "training.max_steps: the run has 1, the recipe 2" in refused(
        capsys, *again, "--resume", "--set", "training.max_steps=2"
    )
    assert main([*again, "--force", "--set", "training.max_steps=2"]) == 0
    assert RunFolder.open(out).metrics["training"]["steps"] == 2


def test_evaluate_prints_what_metrics_hold(static: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(static), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == RunFolder.open(static).metrics["dev"]
    assert main(["evaluate", str(static), "--split", "val"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "colour", "size", "mean", "worst"]


def test_evaluate_reads_data_that_have_moved(
    static: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "does not exist" in refused(capsys, "evaluate", static, "--again", "--data", tmp_path / "gone")
    assert main(["evaluate", str(static), "--again", "--json", "--data", str(task_files)]) == 0
    assert json.loads(capsys.readouterr().out) == RunFolder.open(static).metrics["dev"]


# Exporting and merging


def test_a_static_adapter_with_one_head_is_exported_once_and_predicts_the_same(
    static: Path, tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lora"
    assert main(["export", str(static), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"A plain LoRA is in {out}.\n"
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, out)
    assert predicted(model, tiny_bert, texts(task_files, "colour")) == saved(static, "colour")


def test_a_static_adapter_with_one_head_is_merged_without_a_task(
    static: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert main(["merge", str(static), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"The merged model is in {out}.\n"
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert predicted(model, out, texts(task_files, "colour")) == saved(static, "colour")


def test_heads_per_task_are_exported_one_folder_each(
    per_task: Path, tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "loras"
    assert main(["export", str(per_task), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["colour", "number"]
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, out / "colour")
    assert predicted(model, tiny_bert, texts(task_files, "colour")) == saved(per_task, "colour")


def test_heads_per_task_are_merged_for_a_task_that_is_named(
    per_task: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert "so say which by --task NAME: colour, number" in refused(capsys, "merge", per_task, "--out", out)
    assert "Did you mean 'colour'" in refused(capsys, "merge", per_task, "--out", out, "--task", "color")
    assert not out.exists()
    assert main(["merge", str(per_task), "--out", str(out), "--task", "colour"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.num_labels == 2
    assert predicted(model, out, texts(task_files, "colour")) == saved(per_task, "colour")


def test_a_per_task_method_is_exported_and_merged_by_task(
    tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"name": "mtl_lora", "r": 2, "num_ups": 2}
    made = run(tmp_path / "run", tiny_bert, task_files, "colour", "size", method=method, model={"heads": "shared"})
    assert main(["export", str(made), "--out", str(tmp_path / "loras")]) == 0
    assert sorted(path.name for path in (tmp_path / "loras").iterdir()) == ["colour", "size"]
    message = refused(capsys, "merge", made, "--out", tmp_path / "merged")
    assert "so say which by --task NAME: colour, size" in message
    assert not (tmp_path / "merged").exists()
    assert main(["merge", str(made), "--out", str(tmp_path / "merged"), "--task", "colour"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert predicted(model, tmp_path / "merged", texts(task_files, "colour")) == saved(made, "colour")


def test_an_input_routed_method_is_refused_in_words(
    tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, out = {"name": "hydralora", "r": 2}, tmp_path / "out"
    training = {"max_steps": 1}
    made = run(tmp_path / "run", tiny_bert, task_files, "colour", "number", method=method, training=training)
    for arguments in (["export", made], ["merge", made, "--task", "colour"]):
        assert "hydralora routes by its input" in refused(capsys, *arguments, "--out", out)
        assert not out.exists()


def test_a_single_run_is_exported_for_each_task_and_merged_task_by_task(
    single: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(single), "--out", str(tmp_path / "loras")]) == 0
    assert sorted(path.name for path in (tmp_path / "loras").iterdir()) == ["colour", "size"]
    assert (tmp_path / "loras" / "size" / "adapter_config.json").is_file()
    assert "holds a run for each task; name one of them" in refused(
        capsys, "merge", single, "--out", tmp_path / "merged"
    )
    assert main(["merge", str(single / "colour"), "--out", str(tmp_path / "merged")]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert predicted(model, tmp_path / "merged", texts(task_files, "colour")) == saved(single / "colour", "colour")


def test_a_decoder_is_merged_into_a_plain_language_model(tiny_llama: Path, task_files: Path, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"training": {"max_steps": 3}, "evaluation": {"max_rows": 2}}
    made = run(tmp_path / "run", tiny_llama, task_files, "colour", kind="decoder", **parts)
    out = tmp_path / "merged"
    assert main(["merge", str(made), "--out", str(out)]) == 0
    model, plain = (AutoModelForCausalLM.from_pretrained(path) for path in (out, tiny_llama))
    ids = torch.tensor([[3, 4, 5]])
    assert not torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(out)("red up")["input_ids"] == [3, 9]


@pytest.mark.parametrize("command", ["export", "merge"])
def test_nothing_is_written_where_something_is(
    static: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("keep")
    for out in (tmp_path, tmp_path / "notes.txt"):
        assert "exists and is not empty: name a new folder" in refused(capsys, command, static, "--out", out)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("notes.txt", "keep")]


# Bad input


@pytest.mark.parametrize("command", [["evaluate"], ["export", "--out", "x"], ["merge", "--out", "x"]])
def test_a_folder_that_holds_no_run_is_refused(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is no run folder, which would hold a recipe.yaml" in refused(capsys, command[0], tmp_path, *command[1:])
    assert not any(tmp_path.iterdir())


def test_a_bad_recipe_is_told_by_path_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: {name: m, kind: encodr}\ntasks: {suite: glue}\ntrainig: {}\n", encoding="utf-8")
    message = refused(capsys, "train", path, "--out", tmp_path / "run")
    assert f"{path}:\n" in message
    assert "model.kind: must be 'encoder' or 'decoder'; found 'encodr'" in message
    assert "trainig: there is no such key. Did you mean 'training'?" in message
    assert "path=value" in refused(capsys, "train", path, "--set", "seed")
    assert "There is no recipe" in refused(capsys, "train", tmp_path / "gone.yaml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["evaluate"], ["merge", "run"], ["evaluate", "run", "--split", "deev"]], ids=str
)
def test_arguments_that_do_not_parse_end_with_status_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: lorachord" in capsys.readouterr().err


# Lists


def test_models_lists_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["name", "kind", "licence"]
    assert [line.split()[:2] for line in lines[1:]] == [[name, model.kind] for name, model in CATALOGUE.items()]


def test_the_command_line_is_a_program_of_its_own() -> None:
    command = [sys.executable, "-m", "lorachord_cli", "methods", "mtl_lora"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"^mtl_lora: Each task .*2410\.09437", ended.stdout, re.DOTALL)
