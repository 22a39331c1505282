"""What leaves a run knows what it is: a stranger with transformers and PEFT gets the run's predictions."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from lorachord.data.files import read_rows
from lorachord.runs.train import train
from lorachord.runs.usage import TASK_FILE
from lorachord.runs.use import evaluate
from lorachord_cli import main
from tests.tiny_data import SUFFIXES, own, recipe

TASKS = {
    "encoder": ("colour", "size", "number", "choice"),
    "decoder": ("colour", "size", "number", "choice", "echo"),
}
PROMPT = 'Say "{options}" of `{first}`:\n{{}}'
PARTS: dict[str, dict[str, Any]] = {
    "encoder": {"method": {"name": "mtl_lora", "r": 2, "num_ups": 2}},
    "decoder": {"evaluation": {"max_new_tokens": 3, "max_rows": 12}},
}
ALONE = Path(__file__).with_name("run_readme_alone.py")


def fields(*names: str) -> list[dict[str, Any]]:
    """Tasks with names, answers and a prompt that are not the defaults."""
    made = own(*names)
    for task in made:
        if task["name"] == "colour":
            task |= {"labels": ["é: no", "yes"], "answers": ["no", "yes"], "prompt": PROMPT}
        elif task["name"] != "size":
            task["prefix"] = "up - "
    return made


@pytest.fixture(scope="module", params=TASKS)
def run(
    request: pytest.FixtureRequest,
    tiny_bert: Path,
    tiny_llama: Path,
    task_files: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    kind = request.param
    model = tiny_bert if kind == "encoder" else tiny_llama
    names = TASKS[kind]
    training = {"max_steps": 30, "learning_rate": 3e-2}
    made = recipe(model, kind=kind, tasks={"own": fields(*names)}, training=training, **PARTS[kind])
    path = train(made, tmp_path_factory.mktemp("runs") / kind, data_dir=task_files).path
    if kind == "decoder":
        stir(path)
    return path


def stir(run: Path) -> None:
    """Give a decoder, which learns nothing in a few steps, an adapter by which its answers differ."""
    file = run / "adapter" / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(7)
    values = load_file(file)
    moved = {
        name: value + torch.randn(value.shape, generator=generator)
        for name, value in values.items()
        if value.is_floating_point()
    }
    save_file(values | moved, file, metadata={"format": "pt"})
    evaluate(run, again=True)


def expected(run: Path, data: Path, task: str) -> tuple[list[list[Any]], list[Any]]:
    """The arguments of `predict`, and what the run predicted of them."""
    lines = (run / "predictions" / "dev" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {int(row["idx"]): row for row in read_rows(data / task / f"dev{SUFFIXES[task]}")}
    examples, answers = [], []
    for record in map(json.loads, lines):
        row, found = rows[record["idx"]], record["prediction"]
        examples.append([row["sentence1"]])
        if task == "size":
            examples[-1].append(row["sentence2"])
        if task == "choice":
            examples[-1].append(row["choices"])
            found = row["choices"][found]
        if task in ("colour", "size"):
            found = (["é: no", "yes"] if task == "colour" else ["no", "yes"])[found]
        answers.append(found)
    return examples, answers


def predicted(cases: list[tuple[Path, str, list[list[Any]]]], scratch: Path) -> list[list[Any]]:
    """By the code of the folders' READMEs, in a process of its own in another directory."""
    asked, answered = scratch / "cases.json", scratch / "answers.json"
    named = [{"folder": str(folder), "task": task, "examples": examples} for folder, task, examples in cases]
    asked.write_text(json.dumps(named), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ALONE), str(asked), str(answered)]
    ended = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found: list[list[Any]] = json.loads(answered.read_text(encoding="utf-8"))
    return found


def check(run: Path, folders: dict[str, Path], data: Path, scratch: Path) -> None:
    """The READMEs' code predicts what the run did, and not one thing for all."""
    known = {task: expected(run, data, task) for task in folders}
    found = predicted([(folder, task, known[task][0]) for task, folder in folders.items()], scratch)
    for task, answers in zip(folders, found, strict=True):
        right = known[task][1]
        assert len(right) >= 12
        assert answers == (pytest.approx(right, abs=1e-4) if task == "number" else right)
        if task in ("colour", "size"):
            assert len(set(right)) == 2


def test_the_lines_of_an_exports_readme_predict_as_the_run(run: Path, task_files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run), "--out", str(out)]) == 0
    # Weights or heads by task have a folder each; what serves all tasks is one.
    folders = {task: out / task if run.name == "encoder" else out for task in TASKS[run.name]}
    check(run, folders, task_files, tmp_path)


def test_the_lines_of_a_merged_models_readme_predict_as_the_run(run: Path, task_files: Path, tmp_path: Path) -> None:
    folders = {}
    for task in TASKS[run.name]:
        folders[task] = tmp_path / (task if run.name == "encoder" else "all")
        if not folders[task].exists():
            asked = ["--task", task] if run.name == "encoder" else []
            assert main(["merge", str(run), "--out", str(folders[task]), *asked]) == 0
    check(run, folders, task_files, tmp_path)


def test_what_left_says_its_tasks_labels_lengths_and_prompts(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "lora"), "--task", "colour"]) == 0
    assert main(["merge", str(run), "--out", str(tmp_path / "model"), "--task", "colour"]) == 0
    for folder in (tmp_path / "lora" / "colour", tmp_path / "model"):
        told = json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
        assert (told["kind"], told["max_length"]) == (run.name, 32)
        [task] = told["tasks"]
        assert task["id2label"] == {"0": "é: no", "1": "yes"}
        assert task["label2id"] == {"é: no": 0, "yes": 1}
        assert (task["prompt"], task["answers"]) == (PROMPT, ["no", "yes"])
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.id2label == {0: "é: no", 1: "yes"}
    assert config.label2id == {"é: no": 0, "yes": 1}


def test_a_merged_encoder_says_what_its_answers_are(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    made = recipe(tiny_bert, "size", "number", training={"max_steps": 1})
    run = train(made, tmp_path / "run", data_dir=task_files).path
    types = {}
    for task in ("size", "number"):
        assert main(["merge", str(run), "--out", str(tmp_path / task), "--task", task]) == 0
        config = AutoConfig.from_pretrained(tmp_path / task)
        types[task] = (config.problem_type, config.num_labels)
    assert types == {"size": ("single_label_classification", 2), "number": ("regression", 1)}


def test_tasks_with_other_labels_leave_the_config_of_one_model_alone(
    tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    parts = {"model": {"heads": "shared"}, "training": {"max_steps": 1}}
    run = train(
        recipe(tiny_bert, tasks={"own": fields("colour", "size")}, **parts), tmp_path / "run", data_dir=task_files
    )
    assert main(["merge", str(run.path), "--out", str(tmp_path / "all")]) == 0
    assert AutoConfig.from_pretrained(tmp_path / "all").id2label == {0: "LABEL_0", 1: "LABEL_1"}
    told = json.loads((tmp_path / "all" / TASK_FILE).read_text(encoding="utf-8"))
    assert [task["id2label"]["0"] for task in told["tasks"]] == ["é: no", "no"]


def test_long_texts_are_cut_as_in_the_run(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    cases = []
    for length in (1, 32):
        made = recipe(tiny_bert, "number", model={"max_length": length}, training={"max_steps": 2})
        run = train(made, tmp_path / f"run_{length}", data_dir=task_files).path
        assert main(["export", str(run), "--out", str(tmp_path / f"out_{length}")]) == 0
        cases.append((tmp_path / f"out_{length}" / "number", "number", [["one up"], ["one two two"]]))
    cut, whole = predicted(cases, tmp_path)
    assert cut[0] == cut[1]
    assert whole[0] != whole[1]


def test_the_metadata_of_an_exports_card_stay(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--out", str(tmp_path / "out"), "--task", "colour"]) == 0
    text = (tmp_path / "out" / "colour" / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    assert "library_name: peft" in text.split("---\n")[1]
