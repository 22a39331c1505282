"""Recipes and run folders mean the same in every working directory."""

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import read_recipe, recipe_from
from lorachord.runs.strict import dump_yaml
from lorachord.runs.train import train
from lorachord_cli import main
from tests.tiny_data import tree, write_data

TASKS = ("colour", "number")


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def own(tasks: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    return [{**task, "source": {"path": path.format(task["name"])}} for task in tasks]


@pytest.fixture
def project(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, its model and its data beside it; the working directory is another."""
    folder = tmp_path / "my project"
    write_data(folder / "data", *TASKS)
    shutil.copytree(tiny_bert, folder / "models" / "bert")
    recipe = tree(Path("models/bert"), *TASKS, training={"max_steps": 2})
    recipe["tasks"]["own"] = own(recipe["tasks"]["own"], "data/{}")
    (folder / "recipe.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    # What would be read if paths started from the working directory.
    (elsewhere / "models" / "bert").mkdir(parents=True)
    (elsewhere / "data" / "colour").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    return folder


def test_paths_start_from_the_recipes_folder(project: Path) -> None:
    recipe = read_recipe(project / "recipe.yaml")
    assert recipe.model.name == str(project / "models" / "bert")
    assert [task.source.path for task in recipe.tasks.own] == [str(project / "data" / task) for task in TASKS]
    assert recipe_from(recipe.to_dict(), folder="/") == recipe


def test_settings_of_the_command_line_are_part_of_the_recipe(project: Path) -> None:
    recipe = read_recipe(project / "recipe.yaml", ["model.name=./other", "method={name: thanora, calibration: found}"])
    assert recipe.model.name == str(project / "other")
    assert recipe.method["calibration"] == str(project / "found")


def test_an_encoder_of_prompts_is_a_model_like_any_other(project: Path) -> None:
    for name, found in (("base", "base"), ("models/bert", str(project / "models" / "bert")), ("minilm", "minilm")):
        recipe = read_recipe(project / "recipe.yaml", [f"method={{name: mor1e, encoder: {name}}}"])
        assert recipe.method["encoder"] == found
    recipe = read_recipe(project / "recipe.yaml", ["method={name: mor1e, encoder: owner/name}"])
    assert recipe.method["encoder"] == "hub:owner/name"


def readme_command(run: Path, program: str) -> list[str]:
    lines = (run / "README.md").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith(f"lorachord {program} ")]
    return shlex.split(line)[1:]


@pytest.mark.parametrize("data", [[], ["--data", "../my project/data"]], ids=["sources", "data"])
@pytest.mark.parametrize("mode", ["joint", "single"])
def test_the_commands_of_a_runs_readme_work_in_any_directory(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: list[str], mode: str
) -> None:
    assert main(["train", "../my project/recipe.yaml", "--out", "run", "--set", f"mode={mode}", *data]) == 0
    run = Path("run").absolute()
    third = tmp_path / "third"
    third.mkdir()
    monkeypatch.chdir(third)
    assert main(readme_command(run, "train")) == 0
    for task in TASKS if mode == "single" else ("",):
        first, again = adapter(run / task), adapter(third / "AGAIN" / task)
        assert first.keys() == again.keys()
        assert all(torch.equal(first[name], again[name]) for name in first)
    assert RunFolder.open("AGAIN").recipe == RunFolder.open(run).recipe
    for program, made in (("evaluate", "AGAIN/README.md"), ("export", "LORA/colour"), ("merge", "MODEL/config.json")):
        assert main(readme_command(third / "AGAIN", program)) == 0
        assert (third / made).exists()


def test_a_run_of_a_recipe_in_memory_is_opened_from_anywhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    recipe = recipe_from(tree(Path("models/bert"), "colour", training={"max_steps": 1}))
    run = train(recipe, tmp_path / "run", data_dir="data").path
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(run), "--again"]) == 0


@pytest.mark.parametrize(
    ("setting", "tried"),
    [("model.name=models/gone", "models/gone"), ("model.name=./gone", "gone"), ("model.name=~/gone", "gone")],
)
def test_a_model_that_is_not_there_is_named_by_its_absolute_path(
    project: Path, setting: str, tried: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(project))
    assert main(["train", str(project / "recipe.yaml"), "--set", setting]) == 2
    message = capsys.readouterr().err
    assert f"there is none: {project / tried}." in message
    assert "asking the Hugging Face hub" not in message


def test_data_that_are_not_there_are_named_by_their_absolute_path(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project / "data" / "number")
    assert main(["train", str(project / "recipe.yaml")]) == 2
    message = capsys.readouterr().err
    assert f"{project / 'data' / 'number'} does not exist" in message
    assert "asking the Hugging Face hub" not in message


def test_a_calibration_that_is_not_there_is_refused_before_the_data_are_read(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project / "data")
    arguments = ["train", str(project / "recipe.yaml"), "--set", "method={name: thanora, calibration: gone}"]
    assert main(arguments) == 2
    assert f"method: {project / 'gone'} holds no calibration" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["owner/model", "minilm"])
def test_a_folder_of_the_working_directory_is_not_taken_for_a_model_of_that_name(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).mkdir(parents=True)
    assert main(["train", str(project / "recipe.yaml"), "--set", f"model.name={name}"]) == 2
    assert f"the working directory has {Path(name).absolute()}" in capsys.readouterr().err


def test_a_calibration_is_found_from_anywhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = "method={name: thanora, r: 6}"
    assert main(["train", str(project / "recipe.yaml"), "--out", str(project / "first"), "--set", method]) == 0
    named = "method={name: thanora, r: 6, calibration: first/calibration}"
    assert main(["train", str(project / "recipe.yaml"), "--out", "second", "--set", named]) == 0
    second = Path("second").absolute()
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(second / "recipe.yaml"), "--out", "third"]) == 0
    assert all(torch.equal(value, adapter(second)[name]) for name, value in adapter(tmp_path / "third").items())
