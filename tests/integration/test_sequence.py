"""Runs that learn their tasks one after the other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lorachord as lc
from lorachord.runs import joint
from lorachord.runs.folder import RunFolder
from lorachord.runs.recipe import Recipe, recipe_from
from lorachord.runs.sequence import order_of, stage_folder
from lorachord.runs.stopping import Stopped
from lorachord.runs.train import train
from lorachord.runs.use import evaluate, export_run
from lorachord_cli import main
from tests.tiny_data import recipe, tree

TASKS = ("colour", "number", "size")
MTL = {"name": "mtl_lora", "r": 2, "num_ups": 2}
STEPS = {"max_steps": 18}


def sequence(model: Path, **parts: Any) -> Recipe:
    return recipe(model, *TASKS, **{"mode": "sequence", "training": STEPS, **parts})


def stages(run: Path) -> list[RunFolder]:
    return [RunFolder.open(stage_folder(run, number)) for number in (1, 2, 3)]


def saved(run: Path, split: str, task: str) -> str:
    return (run / "predictions" / split / f"{task}.jsonl").read_text()


@pytest.fixture(scope="module", params=[{"name": "lora", "r": 2}, MTL], ids=["lora", "mtl_lora"])
def run(request: Any, tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "sequence"
    return train(sequence(tiny_bert, method=request.param), out, data_dir=task_files)


def test_each_stage_learns_one_task_in_the_drawn_order(run: RunFolder) -> None:
    order = run.metrics["order"]
    assert sorted(order) == sorted(TASKS)
    for task, stage in zip(order, stages(run.path), strict=True):
        assert stage.recipe.tasks.learn == (task,)
        assert list(stage.metrics["training"]["rows"]) == [task]
        # As many as in a joint run.
        assert stage.metrics["training"]["steps"] == 6
        lines = [json.loads(line) for line in (stage.path / "log.jsonl").read_text().splitlines()]
        learned = {key for line in lines for key in line if key.startswith("loss_")}
        assert learned == {f"loss_{task}"}


def test_all_tasks_are_scored_after_each_stage(run: RunFolder) -> None:
    metrics, grows = run.metrics, run.recipe.method["name"] == "mtl_lora"
    order = metrics["order"]
    for split in ("val", "dev"):
        for number, scores in enumerate(metrics["stages"][split]):
            assert list(scores) == list(TASKS)
            known = order[: number + 1] if grows else order
            own = stages(run.path)[number].metrics[split]["tasks"]
            assert scores == {task: own[task]["score"] if task in known else None for task in TASKS}
    last = metrics["stages"]["dev"][-1]
    assert last == {task: metrics["dev"]["tasks"][task]["score"] for task in TASKS}
    found = metrics["loss_of_earlier_tasks"]
    assert found["tasks"] == {
        task: metrics["stages"]["dev"][number][task] - last[task] for number, task in enumerate(order[:-1])
    }


def test_new_cores_forget_nothing_and_one_adapter_forgets(run: RunFolder) -> None:
    order, lost = run.metrics["order"], run.metrics["loss_of_earlier_tasks"]
    first, *_, last = (stage.path for stage in stages(run.path))
    if run.recipe.method["name"] == "mtl_lora":
        assert lost["mean"] == 0.0
        assert set(lost["tasks"].values()) == {0.0}
        assert saved(last, "dev", order[0]) == saved(first, "dev", order[0])
        assert saved(last, "val", order[0]) == saved(first, "val", order[0])
    else:
        assert saved(last, "dev", order[0]) != saved(first, "dev", order[0])


def test_the_last_stage_is_the_model_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    last = stages(run.path)[-1].path
    found = evaluate(run.path, "dev")
    assert found == run.metrics["dev"]
    assert list(found["tasks"]) == list(TASKS)
    again = evaluate(run.path, "dev", names=["size"], again=True)
    assert again["tasks"]["size"] == found["tasks"]["size"]
    answers = lc.load(run.path).predict([{"sentence1": "red up"}], task="colour")
    assert answers == lc.load(last).predict([{"sentence1": "red up"}], task="colour")
    assert [folder.name for folder in export_run(run.path, tmp_path / "loras")] == list(TASKS)


@pytest.mark.parametrize("method", [{"name": "lora", "r": 2}, MTL], ids=["lora", "mtl_lora"])
def test_a_sequence_that_was_stopped_ends_as_one_that_was_not(
    method: dict[str, Any], tiny_bert: Path, task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sequence(tiny_bert, method=method, tasks={"own": tree(tiny_bert, *TASKS[:2])["tasks"]["own"]})
    made = recipe_from({**made.to_dict(), "training": {**made.training.__dict__, "max_steps": 8, "save_every": 1}})
    whole = train(made, tmp_path / "whole", data_dir=task_files)

    class StopsInTheSecondStage(joint.StopRequests):
        def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
            if self.path.name == "2" and state.global_step == 2:
                self.asked = 15
            super().on_step_end(args, state, control, **keywords)

    monkeypatch.setattr(joint, "StopRequests", StopsInTheSecondStage)
    with pytest.raises(Stopped, match="stages/2"):
        train(made, tmp_path / "run", data_dir=task_files)
    monkeypatch.undo()
    before = (tmp_path / "run/stages/1/metrics.json").stat().st_mtime_ns
    found = train(made, tmp_path / "run", data_dir=task_files, resume=True)
    assert (tmp_path / "run/stages/1/metrics.json").stat().st_mtime_ns == before
    assert found.metrics["stages"] == whole.metrics["stages"]
    one, other = (load_file(path / "stages/2/adapter/adapter_model.safetensors") for path in (found.path, whole.path))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_order_follows_the_seed_unless_it_has_one_of_its_own(tiny_bert: Path) -> None:
    orders = [tuple(order_of(sequence(tiny_bert, seed=seed))) for seed in range(12)]
    assert len(set(orders)) > 3
    fixed = [tuple(order_of(sequence(tiny_bert, seed=seed, training={"order_seed": 3}))) for seed in range(4)]
    assert set(fixed) == {orders[3]}


def test_the_command_prints_the_scores_after_each_task(
    tiny_bert: Path, task_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(sequence(tiny_bert, training={"max_steps": 3}).to_yaml(), encoding="utf-8")
    assert main(["train", str(path), "--data", str(task_files), "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    order = json.loads((tmp_path / "run/metrics.json").read_text())["order"]
    [start] = [number for number, line in enumerate(lines) if line.split()[:1] == ["after"]]
    assert lines[start].split() == ["after", *order, "mean"]
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == [*order, "lost"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"surgery": {"rule": "ortho_lora"}}, "leave out surgery and balance"),
        ({"balance": {"name": "famo"}}, "leave out surgery and balance"),
        ({"training": {"max_steps": 4, "eval_every": 2}}, "leave out training.eval_every"),
        ({"start_from": "first"}, "a sequence begins with a new adapter"),
        ({"tasks": {"learn": ["colour"]}}, "tasks.learn is for mode joint"),
    ],
)
def test_a_recipe_that_is_no_sequence_is_refused(tiny_bert: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence(tiny_bert, **parts)


@pytest.mark.parametrize("method", [{"name": "thanora", "r": 6}, {"name": "mor1e", "r1": 2, "r2": 3}])
def test_methods_that_are_fitted_to_all_tasks_are_refused(
    tiny_bert: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="is fitted to all tasks before training"):
        train(sequence(tiny_bert, method=method), tmp_path / "run", data_dir="nowhere")
