"""`lorachord check` foretells what a run then does, and says what is wrong before anything is trained."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lorachord.baselines import BASELINES
from lorachord.core.registry import all_methods
from lorachord.runs.forecast import Forecast, as_text, forecast, parameters_of, speed_by_shape, step_memory
from lorachord.runs.forecast import summary as summaries
from lorachord.runs.recipe import Recipe
from lorachord.runs.train import train
from lorachord_cli import main
from tests.tiny_data import own, recipe, rows, task_of, write_data, write_rows

ENCODER = ("colour", "size", "number")


def row(text: str, label: Any) -> dict[str, Any]:
    return {"sentence1": text, "label": label, "idx": len(text)}


def written(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """A data folder whose `colour` has these rows."""
    for split, made in splits.items():
        write_rows(folder / "colour" / f"{split}.jsonl", made)
    return folder


def many(number: int) -> list[dict[str, Any]]:
    """Different texts of both classes."""
    return [row(f"{('red', 'blue')[at % 2]} {'up ' * at}", at % 2) for at in range(number)]


def foretold(made: Recipe, data: Path, **how: Any) -> Forecast:
    return forecast(made, data, **{"timed": False, **how})


# What a run then does


@pytest.mark.parametrize(
    "parts",
    [
        {"method": {"name": "mtl_lora", "r": 2}},
        {"method": {"name": "hydralora", "r": 2}, "training": {"max_steps": None, "epochs": 1, "accumulation": 2}},
        {"method": {"name": "peft_dora", "r": 3, "target_modules": ["query", "value"]}, "mode": "single"},
        {"method": {"name": "lora", "r": 2, "modules_to_save": ["LayerNorm"]}, "tasks": {"only": ["colour", "size"]}},
        {"model": {"heads": "shared"}, "tasks": {"only": ["colour", "size"]}},
    ],
    ids=["by task", "routed", "peft", "saved modules", "shared head"],
)
def test_parameters_and_steps_are_those_of_the_run(
    parts: dict[str, Any], tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    made = recipe(tiny_bert, *ENCODER, **parts)
    found = foretold(made, task_files)
    told = train(made, tmp_path / "run", data_dir=task_files).metrics["training"]
    each = list(told.values()) if made.mode == "single" else [told]
    assert found.parameters[0].total == sum(run["trainable_parameters"] for run in each)
    assert found.steps == sum(run["steps"] for run in each)
    assert not found.problems


def test_a_decoders_parameters_are_counted_for_every_method(tiny_llama: Path, task_files: Path, tmp_path: Path) -> None:
    made = recipe(tiny_llama, "colour", "echo", kind="decoder", training={"max_steps": 1}, evaluation={"max_rows": 2})
    found = {each.method: each for each in foretold(made, task_files).parameters}
    assert next(iter(found)) == "lora"
    assert found.keys() == {*all_methods(), *BASELINES}
    told = train(made, tmp_path / "run", data_dir=task_files).metrics["training"]
    assert found["lora"].total == found["peft_lora"].total == told["trainable_parameters"]
    assert found["lora"].heads == {}
    # A matrix between the factors for one more task: r x r in each layer.
    assert found["mtl_lora"].each_task is not None
    assert found["mtl_lora"].each_task > found["lora"].each_task == 0
    assert found["hydralora"].routers is not None
    assert found["hydralora"].routers > 0
    refused = [each for each in found.values() if each.refused]
    assert all(each.total is None for each in refused)
    assert len(refused) < 3


def test_the_audit_is_that_of_the_runs_metrics_and_log(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = written(tmp_path / "data", train=[*many(20), row("red up up up up", 1)], val=many(24)[20:], dev=many(3))
    made = recipe(tiny_bert, "colour", model={"max_length": 8}, training={"max_steps": 1})
    found = foretold(made, data)
    with caplog.at_level(logging.WARNING, "lorachord"):
        run = train(made, tmp_path / "run", data_dir=data)
    assert run.metrics["data"] == found.data.to_dict()
    logged = [record.getMessage() for record in caplog.records]
    odd = "2 of 21 train rows have a text that occurs in the same split with another label"
    for words in ("3 of 3 dev rows are also in train", odd, "longer than max_length 8"):
        assert [each for each in found.warnings if words in each]
        assert [each for each in logged if words in each]


def test_single_runs_have_their_own_audit(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    made = recipe(tiny_bert, "colour", "size", mode="single", training={"max_steps": 2})
    run = train(made, tmp_path / "run", data_dir=task_files)
    assert list(run.metrics["data"]["tasks"]) == ["colour", "size"]
    alone = json.loads((run.path / "size" / "metrics.json").read_text())["data"]
    assert alone["tasks"] == {"size": run.metrics["data"]["tasks"]["size"]}


# Memory and time


def test_steps_are_timed_and_their_activations_measured(tiny_bert: Path, task_files: Path) -> None:
    made = recipe(tiny_bert, *ENCODER, surgery={"rule": "ortho_lora"})
    found = foretold(made, task_files, timed=True, seconds=1.0)
    speed, needed = found.speed, found.memory
    assert speed is not None
    assert needed is not None
    assert found.seconds is not None
    assert found.steps is not None
    assert (speed.timed_steps, speed.stand_in, needed.measured) == (3, "", True)
    assert found.seconds == pytest.approx(found.steps * speed.step_seconds + (speed.scoring_seconds or 0))
    trained = found.parameters[0].total or 0
    assert (needed.adapter, needed.gradients, needed.optimizer) == (4 * trained, 4 * trained, 8 * trained)
    by_shape = foretold(made, task_files).memory
    assert by_shape is not None
    assert not by_shape.measured
    # The formula for a plain transformer, beside a tiny one with adapters around every layer.
    assert 0.1 < by_shape.activations / needed.activations < 10


@pytest.mark.parametrize("method", [{"name": "thanora", "r": 4}, {"name": "mor1e"}])
def test_lora_is_timed_for_methods_that_look_at_the_data_first(
    method: dict[str, Any], tiny_bert: Path, task_files: Path
) -> None:
    made = recipe(tiny_bert, "colour", "size", method=method)
    found = foretold(made, task_files, timed=True, seconds=0.5)
    assert found.speed is not None
    assert found.speed.stand_in == "lora"
    assert f"with lora in the place of {method['name']}" in as_text(made, found)


def test_a_model_that_does_not_fit_is_estimated_from_its_shape(
    tiny_llama: Path, task_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_memory, "available_memory", lambda: (1000, "a small machine"))
    monkeypatch.setattr(summaries, "timed_speed", None)
    made = recipe(tiny_llama, "colour", kind="decoder")
    found = foretold(made, task_files, timed=True)
    assert found.speed is not None
    assert (found.speed.timed_steps, found.speed.scoring_seconds) == (0, None)
    assert [words for words in found.warnings if "a small machine has 0.0 free" in words]
    assert "computed from the model's shape" in as_text(made, found)


def test_the_shape_estimate_grows_with_the_work(tiny_llama: Path) -> None:
    made = recipe(tiny_llama, "colour", kind="decoder")
    base, _ = summaries._shape(made, made.tasks.chosen())
    short, long = (speed_by_shape(made, base, tokens=tokens).step_seconds for tokens in (10, 1000))
    assert 20 < long / short < 500


# Warnings and problems


def test_a_rank_over_the_width_is_said(tiny_bert: Path, task_files: Path) -> None:
    found = foretold(recipe(tiny_bert, "colour", method={"name": "lora", "r": 20}), task_files)
    assert [words for words in found.warnings if "rank 20 is over the width" in words and "has 16" in words]
    assert not [words for words in foretold(recipe(tiny_bert, "colour"), task_files).warnings if "rank" in words]


def test_small_dev_and_constant_answers_are_said(tiny_bert: Path, tmp_path: Path) -> None:
    task = task_of(own("number")[0])
    same = [{**each, "label": 2.5} for each in rows(task, 20, 0)]
    for split in ("train", "dev"):
        write_rows(tmp_path / "number" / f"{split}.parquet", same)
    words = foretold(recipe(tiny_bert, "number"), tmp_path).warnings
    assert "number: all answers of train are 2.5, so there is nothing to learn" in words
    assert "number: dev has 20 rows, so that one row moves a score by 5.0%" in words


def test_every_problem_is_collected_and_the_rest_is_still_told(
    tiny_bert: Path,
    task_files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write_data(tmp_path / "data", "size", "number")
    written(data, train=many(20), dev=[{"sentence1": "red", "label": None}])
    (data / "number" / "train.parquet").unlink()
    write_rows(data / "number" / "train.jsonl", [])
    path = tmp_path / "bad.yaml"
    made = recipe(
        tiny_bert, *ENCODER, model={"max_length": 600}, mixture={"every_task": True}, training={"batch_size": 1}
    )
    path.write_text(made.to_yaml(), encoding="utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["check", str(path), "--data", str(data), "--json"]) == 2
    printed = capsys.readouterr()
    found = json.loads(printed.out, parse_constant=pytest.fail)
    assert found["tasks"] == ["size"]
    problems = " ".join(found["problems"])
    for words in ("label None", "is empty", "takes at most 512 tokens"):
        assert words in problems
    assert found["parameters"][0]["total"] > 0
    assert found["speed"] is None
    assert "this recipe cannot be trained; problems: 3" in printed.err
    assert not any((tmp_path / "here").iterdir())


def test_a_batch_that_cannot_hold_every_task_is_a_problem(tiny_bert: Path, task_files: Path) -> None:
    made = recipe(tiny_bert, *ENCODER, mixture={"every_task": True}, training={"batch_size": 2})
    found = foretold(made, task_files)
    assert found.steps is None
    assert "too small for every one of 3 tasks" in found.problems[0]


def test_without_any_data_the_parameters_are_told(tiny_bert: Path, tmp_path: Path) -> None:
    made = recipe(tiny_bert, "colour")
    found = foretold(made, tmp_path / "gone")
    assert (found.tasks, found.steps, found.memory) == ((), None, None)
    assert "does not exist" in found.problems[0]
    assert found.parameters[0].total
    assert "Not going to work:" in as_text(made, found)


def test_the_page_fits_a_terminal_and_ends_with_the_warnings(
    tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(tiny_bert, *ENCODER).to_yaml(), encoding="utf-8")
    assert main(["check", str(path), "--data", str(task_files), "--no-time", "--set", "method.r=3"]) == 0
    page = capsys.readouterr().out
    table = [line for line in page.splitlines() if line.startswith(("task ", "colour  ", "lora ", "mtl_lora "))]
    assert len(table) >= 5
    assert all(len(line) <= 80 for line in table)
    assert "An epoch has" in page
    assert page.index("Warnings:") > page.index("Memory of a step")


def test_errors_of_the_recipe_are_those_of_training(
    tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(tiny_bert, "colour").to_yaml(), encoding="utf-8")
    assert main(["check", str(path), "--data", str(task_files), "--set", "method.name=lroa"]) == 2
    assert "Did you mean 'lora'" in capsys.readouterr().err


def test_counts_need_no_weights(tiny_bert: Path) -> None:
    made = recipe(tiny_bert, "colour", "size")
    base, _ = summaries._shape(made, made.tasks.chosen())
    assert all(parameter.is_meta for parameter in base.parameters())
    layers = summaries.adapted_layers_of(made, base)
    one, two = (parameters_of(made, base, layers, names)[0] for names in (["colour"], ["colour", "size"]))
    assert one.adapter == two.adapter
    assert sum(two.heads.values()) == 2 * sum(one.heads.values())
