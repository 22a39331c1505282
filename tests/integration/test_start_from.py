"""A run that goes on from another's adapter."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorachord.runs.folder import RunFolder
from lorachord.runs.model import load_plain, new_adapter
from lorachord.runs.recipe import Recipe, read_recipe
from lorachord.runs.starting import saved_adapter
from lorachord.runs.train import train
from lorachord_cli import main
from tests.tiny_data import own, recipe

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 2},
    "peft_lora": {"name": "peft_lora", "r": 2},
    "mtl_lora": {"name": "mtl_lora", "r": 2, "num_ups": 2},
    "mor1e": {"name": "mor1e", "r1": 2, "r2": 3},
    "thanora": {"name": "thanora", "r": 6},
}
STILL = {"training": {"max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0}}
TASKS = ("colour", "number")


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def predictions(run: Path) -> dict[str, list[Any]]:
    folder = run / "predictions" / "dev"
    return {
        path.stem: [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
        for path in folder.iterdir()
    }


def going_on(model: Path, first: Path, *names: str, **parts: Any) -> Recipe:
    return recipe(model, *(names or TASKS), start_from=str(first), **parts)


@pytest.fixture(scope="module")
def first(tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(tiny_bert, *TASKS), tmp_path_factory.mktemp("runs") / "first", data_dir=task_files).path


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_does_not_move_is_the_run_that_it_started_from(
    method: str, tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    one = train(recipe(tiny_bert, *TASKS, method=METHODS[method]), tmp_path / "one", data_dir=task_files).path
    made = going_on(tiny_bert, one, method=METHODS[method], seed=5, **STILL)
    two = train(made, tmp_path / "two", data_dir=task_files).path
    before, after = adapter(one), adapter(two)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-9)
    torch.testing.assert_close(predictions(two)["number"], predictions(one)["number"])
    assert predictions(two)["colour"] == predictions(one)["colour"]


def test_heads_in_the_answers_units_go_on(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"balance": {"name": "popart"}}
    one = train(recipe(tiny_bert, *TASKS, **parts), tmp_path / "one", data_dir=task_files).path
    two = train(going_on(tiny_bert, one, **parts, **STILL), tmp_path / "two", data_dir=task_files).path
    found, expected = (torch.tensor(predictions(run)["number"]) for run in (two, one))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_all_that_trains_in_a_new_run_trains_in_one_that_goes_on(tiny_bert: Path, first: Path) -> None:
    made = going_on(tiny_bert, first)
    models = []
    for start in (new_adapter, None):
        base, _ = load_plain(made, made.tasks.chosen())
        models.append(start(made, base, made.tasks.chosen()) if start else saved_adapter(made, base))
    new, saved = ({name for name, p in model.named_parameters() if p.requires_grad} for model in models)
    assert new == saved


def test_it_learns_on(tiny_bert: Path, task_files: Path, first: Path, tmp_path: Path) -> None:
    run = train(going_on(tiny_bert, first), tmp_path / "run", data_dir=task_files).path

    def losses(folder: Path) -> list[float]:
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [entry["loss"] for entry in entries if "loss" in entry]

    assert losses(run)[0] < losses(first)[0]
    assert any(not torch.equal(value, adapter(first)[name]) for name, value in adapter(run).items())


def test_a_decoder_goes_on(tiny_llama: Path, task_files: Path, tmp_path: Path) -> None:
    one = train(recipe(tiny_llama, "colour", kind="decoder"), tmp_path / "one", data_dir=task_files).path
    two = train(going_on(tiny_llama, one, "colour", kind="decoder", **STILL), tmp_path / "two", data_dir=task_files)
    assert all(torch.allclose(value, adapter(one)[name]) for name, value in adapter(two.path).items())


def test_each_task_alone_goes_on_from_its_own_run(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    one = train(recipe(tiny_bert, *TASKS, mode="single"), tmp_path / "one", data_dir=task_files).path
    two = train(going_on(tiny_bert, one, mode="single", **STILL), tmp_path / "two", data_dir=task_files).path
    for task in TASKS:
        assert RunFolder.open(two / task).recipe.start_from == str(one / task)
        assert all(torch.allclose(value, adapter(one / task)[key]) for key, value in adapter(two / task).items())


def test_the_path_starts_from_the_recipes_folder(
    tiny_bert: Path, task_files: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    shutil.copytree(first, tmp_path / "recipes" / "first")
    path = tmp_path / "recipes" / "r.yaml"
    path.write_text(recipe(tiny_bert, *TASKS, **STILL).to_yaml(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    arguments = ["train", str(path), "--set", "start_from=first", "--data", str(task_files), "--out", "run"]
    assert main(arguments) == 0
    assert read_recipe("run/recipe.yaml").start_from == str(tmp_path / "recipes" / "first")


# What is refused, before the data are looked at


@pytest.mark.parametrize(
    ("names", "parts", "message"),
    [
        (TASKS, {"method": {"name": "lora", "r": 3}}, r"method: .*'r': 2.* there, .*'r': 3.* here"),
        (TASKS, {"method": {"name": "mtl_lora", "r": 2}}, "method.name: lora there, mtl_lora here"),
        (("colour",), {}, "tasks: colour, number there, colour here"),
        (("number", "colour"), {}, "tasks: colour, number there, number, colour here"),
        (TASKS, {"mode": "single"}, "mode: joint there, single here"),
    ],
)
def test_another_method_other_tasks_or_another_mode_are_refused(
    tiny_bert: Path, first: Path, tmp_path: Path, names: tuple[str, ...], parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"(?s)start_from: the adapter of .*first cannot go on here.*{message}"):
        train(going_on(tiny_bert, first, *names, **parts), tmp_path / "run", data_dir="nowhere")
    assert not (tmp_path / "run").exists()


def test_another_base_is_refused(tiny_bert: Path, first: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_bert, tmp_path / "other"))
    with pytest.raises(ValueError, match=rf"model\.name: {tiny_bert} there, {other} here"):
        train(going_on(other, first), tmp_path / "run", data_dir="nowhere")


def test_other_labels_are_refused(tiny_bert: Path, first: Path, tmp_path: Path) -> None:
    fields = own(*TASKS)
    fields[0]["labels"] = ["yes", "no"]
    with pytest.raises(ValueError, match="kinds and labels: "):
        train(going_on(tiny_bert, first, tasks={"own": fields}), tmp_path / "run", data_dir="nowhere")


def test_a_spelt_out_default_is_no_other_method(tiny_bert: Path, task_files: Path, first: Path, tmp_path: Path) -> None:
    made = going_on(tiny_bert, first, method={"name": "lora", "r": 2, "alpha": 16.0, "dropout": 0.0}, **STILL)
    assert train(made, tmp_path / "run", data_dir=task_files).finished


def test_a_run_that_is_not_there_or_not_finished_is_refused(tiny_bert: Path, first: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"start_from: {tmp_path / 'gone'} is no run folder"):
        train(going_on(tiny_bert, tmp_path / "gone"), tmp_path / "run", data_dir="nowhere")
    unfinished = Path(shutil.copytree(first, tmp_path / "unfinished"))
    (unfinished / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"start_from: The run in .*unfinished is not finished"):
        train(going_on(tiny_bert, unfinished), tmp_path / "run", data_dir="nowhere")


@pytest.mark.parametrize("flags", [{"force": True}, {}], ids=str)
def test_a_run_does_not_go_on_from_its_own_folder(
    tiny_bert: Path, first: Path, tmp_path: Path, flags: dict[str, bool]
) -> None:
    run = Path(shutil.copytree(first, tmp_path / "run"))
    before = adapter(run)
    with pytest.raises(ValueError, match=r"holds a finished run|is this run's own folder"):
        train(going_on(tiny_bert, run), run, data_dir="nowhere", **flags)
    assert all(torch.equal(value, before[name]) for name, value in adapter(run).items())
