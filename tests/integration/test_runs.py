"""Runs from a recipe to a finished folder, on tiny models: what they leave, repeat, resume and share out."""

import json
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorachord.runs.folder import RunFolder
from lorachord.runs.log import RunLog
from lorachord.runs.model import load_plain, new_adapter
from lorachord.runs.recipe import read_recipe
from lorachord.runs.train import train
from lorachord.runs.use import evaluate, load_run
from lorachord.training.encoder import EncoderBatches
from tests.tiny_data import SUFFIXES, own, recipe, rows, task_of, write_rows

ENCODER_TASKS = ("colour", "size", "number", "choice")
ADAPTER = "adapter/adapter_model.safetensors"
# The CLI ignores it too: transformers 5.23 renames the argument.
RENAMED = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def predictions(run: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: lines(path) for path in sorted((run / "predictions" / split).iterdir())}


def logged(run: Path, key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in lines(run / "log.jsonl") if key in entry]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / ADAPTER)


def same(left: Path, right: Path) -> bool:
    one, other = adapter(left), adapter(right)
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def nearly(left: list[dict[str, Any]], right: list[dict[str, Any]], atol: float = 1e-5) -> bool:
    """Equal records, up to the rounding of their scores."""

    def tensors(record: dict[str, Any]) -> list[float]:
        scores = record.get("scores", [])
        return [*scores, record["prediction"], record["label"], record["idx"]]

    return len(left) == len(right) and all(
        torch.allclose(torch.tensor(tensors(one)), torch.tensor(tensors(other)), atol=atol)
        for one, other in zip(left, right, strict=True)
    )


# A joint run of an encoder


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data whose dev has the rows of train, so that predictions of train are known from the training itself."""
    folder = tmp_path_factory.mktemp("mirrored")
    for fields in own(*ENCODER_TASKS):
        task = task_of(fields)
        for split, size, seed in (("train", 30, 1), ("dev", 30, 1), ("val", 20, 2)):
            write_rows(folder / task.name / f"{split}{SUFFIXES[task.name]}", rows(task, size, seed))
    return folder


@pytest.fixture(scope="module")
def joint(tiny_bert: Path, mirrored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    method = {"name": "mtl_lora", "r": 2, "num_ups": 2}
    made = recipe(tiny_bert, *ENCODER_TASKS, method=method, training={"max_steps": 8, "log_every": 3})
    return train(made, tmp_path_factory.mktemp("runs") / "joint", data_dir=mirrored).path


@pytest.fixture
def copied(joint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(joint, tmp_path / "copied"))


def test_a_joint_run_leaves_all_its_files_and_nothing_else(joint: Path) -> None:
    splits = [f"predictions/{split}/{task}.jsonl" for split in ("dev", "val") for task in ENCODER_TASKS]
    top = ["README.md", "environment.json", "log.jsonl", "metrics.json", "recipe.yaml"]
    saved = [ADAPTER, "adapter/adapter_config.json", "adapter/README.md"]
    found = {str(path.relative_to(joint)) for path in joint.rglob("*") if path.is_file()}
    assert found == {*top, *splits, *saved}
    assert read_recipe(joint / "recipe.yaml").method == {"name": "mtl_lora", "r": 2, "num_ups": 2}


def test_metrics_say_how_each_task_was_scored_and_trained(joint: Path) -> None:
    metrics = RunFolder.open(joint).metrics
    assert list(metrics) == ["val", "dev", "training", "data"]
    for split, size in (("val", 20), ("dev", 30)):
        tasks = metrics[split]["tasks"]
        assert [(name, scored["metric"], scored["examples"]) for name, scored in tasks.items()] == [
            ("colour", "accuracy", size),
            ("size", "accuracy", size),
            ("number", "spearman", size),
            ("choice", "accuracy", size),
        ]
        scores = [scored["score"] for scored in tasks.values()]
        assert metrics[split]["mean"] == pytest.approx(sum(scores) / 4)
        assert metrics[split]["worst"] == min(scores)
    assert metrics["training"]["steps"] == 8
    assert metrics["training"]["rows"] == dict.fromkeys(ENCODER_TASKS, 30)
    trained = [tensor.numel() for name, tensor in adapter(joint).items() if not name.endswith("task_digest")]
    assert metrics["training"]["trainable_parameters"] == sum(trained)


def test_the_log_has_each_step_once_with_the_loss_of_each_task(joint: Path) -> None:
    assert [step for step, _ in logged(joint, "loss")] == [1, 3, 6]
    for task in ENCODER_TASKS:
        assert all(torch.tensor(value).isfinite() for _, value in logged(joint, f"loss_{task}"))
        assert logged(joint, f"loss_{task}")


def test_saved_predictions_are_scored_again_without_the_model(copied: Path) -> None:
    metrics = RunFolder.open(copied).metrics
    shutil.rmtree(copied / "adapter")
    (copied / "metrics.json").write_text("{}")
    assert evaluate(copied) == metrics["dev"]
    assert evaluate(copied, "val") == metrics["val"]
    # Other data are not answered from what is saved.
    with pytest.raises(ValueError, match="nowhere"):
        evaluate(copied, data_dir="nowhere")


def test_the_saved_adapter_predicts_what_the_trained_one_did(copied: Path) -> None:
    scores = evaluate(copied, "train")
    found, expected = predictions(copied, "train"), predictions(copied, "dev")
    assert found.keys() == expected.keys() == {*ENCODER_TASKS}
    for task in ENCODER_TASKS:
        assert nearly(found[task], expected[task])
    metrics = RunFolder.open(copied).metrics["dev"]
    assert scores["tasks"]["colour"] == metrics["tasks"]["colour"]
    assert scores["mean"] == pytest.approx(metrics["mean"])


def test_predicting_anew_repeats_the_saved_predictions(copied: Path, joint: Path) -> None:
    shutil.rmtree(copied / "predictions")
    scores = evaluate(copied, "dev", again=True)
    assert predictions(copied, "dev") == predictions(joint, "dev")
    assert scores == RunFolder.open(joint).metrics["dev"]


def test_predicting_anew_takes_no_saved_prediction_for_its_own(copied: Path) -> None:
    path = copied / "predictions" / "dev" / "colour.jsonl"
    right = lines(path)
    path.write_text("".join(json.dumps({**record, "prediction": record["label"]}) + "\n" for record in right))
    assert evaluate(copied)["tasks"]["colour"]["score"] == 1
    evaluate(copied, again=True)
    assert lines(path) == right


def test_a_split_that_the_data_lack_is_refused_and_leaves_nothing(copied: Path) -> None:
    with pytest.raises(ValueError, match="Task 'colour' has no test split; take dev or val"):
        evaluate(copied, "test")
    assert not (copied / "predictions" / "test").exists()


def test_a_base_that_has_changed_since_is_refused(copied: Path, tiny_llama: Path, tmp_path: Path) -> None:
    text = (copied / "recipe.yaml").read_text()
    name = read_recipe(copied / "recipe.yaml").model.name
    base = Path(shutil.copytree(name, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    save_file({key: value + 0.5 for key, value in weights.items()}, base / "model.safetensors", {"format": "pt"})
    (copied / "recipe.yaml").write_text(text.replace(name, str(base)))
    with pytest.raises(ValueError, match="same sizes, but other weights"):
        evaluate(copied, again=True)


def test_a_loaded_run_is_in_evaluation_mode_with_its_tasks(joint: Path) -> None:
    model, batches, tasks = load_run(joint)
    assert not model.training
    assert [task.name for task in tasks] == list(ENCODER_TASKS)
    assert tuple(batches.tasks) == tasks


# Learning, methods and options


def test_a_joint_run_learns_its_tasks(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    made = recipe(tiny_bert, "colour", "size", training={"max_steps": 40, "learning_rate": 3e-2, "log_every": 10})
    folder = train(made, tmp_path / "run", data_dir=task_files)
    assert folder.metrics["dev"]["worst"] > 0.9
    losses = [value for _, value in logged(folder.path, "loss")]
    assert losses[-1] < losses[0] / 2


@RENAMED
@pytest.mark.parametrize(
    "parts",
    [
        {"method": {"name": "peft_lora", "r": 2}},
        {"method": {"name": "hydralora", "r": 2, "num_experts": 2}},
        {"method": {"name": "mosld", "r": [2, 4], "num_experts": [2, 4]}, "mixture": {"every_task": True}},
        {"method": {"name": "multilora", "r": 2}, "model": {"heads": "shared"}, "mixture": {"sampling": "uniform"}},
        {"training": {"precision": "bf16"}, "model": {"dtype": "bfloat16"}},
        {"training": {"accumulation": 2, "precision": "bf16"}, "mixture": {"batches": "one_task"}},
        {"method": {"name": "mtl_lora", "r": 2}, "training": {"gradient_checkpointing": True}},
        {"method": {"name": "hydralora", "r": 2}, "training": {"gradient_checkpointing": True, "schedule": "constant"}},
    ],
    ids=lambda parts: "-".join(
        str(value) for part in parts.values() for value in part.values() if isinstance(value, str)
    ),
)
def test_methods_and_options_train_to_finite_losses_and_load_again(
    tiny_bert: Path, task_files: Path, tmp_path: Path, parts: dict[str, Any]
) -> None:
    parts = {**parts, "training": {"max_steps": 3, **parts.get("training", {})}}
    run = train(recipe(tiny_bert, "colour", "size", **parts), tmp_path / "run", data_dir=task_files).path
    losses = logged(run, "loss")
    assert [step for step, _ in losses] == [1, 2, 3]
    assert all(0 < value < 5 for _, value in losses)
    before = predictions(run, "val")
    evaluate(run, "val", again=True)
    # Scores in training are computed as training is.
    atol = 5e-3 if parts["training"].get("precision") == "bf16" else 1e-5
    assert all(nearly(before[task], predictions(run, "val")[task], atol) for task in before)


def test_accumulated_steps_are_as_many_as_whole_ones(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    steps = []
    for accumulation in (1, 2):
        training = {"max_steps": None, "epochs": 1, "accumulation": accumulation, "batch_size": 20}
        made = recipe(tiny_bert, "colour", "size", training=training)
        steps.append(train(made, tmp_path / str(accumulation), data_dir=task_files).metrics["training"]["steps"])
    assert steps == [7, 7]


@RENAMED
def test_a_recomputed_run_is_the_same_run(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    runs = []
    for recomputed in (False, True):
        training = {"max_steps": 3, "gradient_checkpointing": recomputed}
        made = recipe(tiny_bert, "colour", "size", method={"name": "mtl_lora", "r": 2}, training=training)
        runs.append(adapter(train(made, tmp_path / str(recomputed), data_dir=task_files).path))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=1e-3, atol=1e-5)


def test_the_seed_decides_the_adapter(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        made = recipe(tiny_bert, "colour", "number", seed=seed, training={"max_steps": 2})
        runs.append(train(made, tmp_path / str(number), data_dir=task_files).path)
    assert same(runs[0], runs[1])
    assert predictions(runs[0], "dev") == predictions(runs[1], "dev")
    assert not same(runs[0], runs[2])


def test_max_rows_bound_training_and_scoring(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    bounds = {"tasks": {"max_rows": 20}, "evaluation": {"max_rows": 5}, "training": {"max_steps": 1}}
    run = train(recipe(tiny_bert, "colour", "size", **bounds), tmp_path / "run", data_dir=task_files)
    assert run.metrics["training"]["rows"] == {"colour": 18, "size": 18}
    assert [scored["examples"] for scored in run.metrics["dev"]["tasks"].values()] == [5, 5]
    assert [scored["examples"] for scored in run.metrics["val"]["tasks"].values()] == [2, 2]
    saved = predictions(run.path, "dev")
    evaluate(run.path, "dev", again=True)
    assert [record["idx"] for record in predictions(run.path, "dev")["colour"]] == [
        record["idx"] for record in saved["colour"]
    ]


def test_a_task_of_weight_zero_leaves_its_head_as_it_was(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    made = recipe(tiny_bert, "colour", "size", tasks={"weights": {"size": 0}}, training={"max_steps": 3})
    run = train(made, tmp_path / "run", data_dir=task_files).path
    base, _ = load_plain(made, made.tasks.chosen())
    model = new_adapter(made, base, made.tasks.chosen())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    heads = {name: value for name, value in adapter(run).items() if ".heads." in name}
    moved = {}
    for name, value in heads.items():
        task = name.split(".heads.")[1].split(".")[0]
        start = next(old for key, old in before.items() if f".default.heads.{name.split('.heads.')[1]}" in key)
        moved[task] = moved.get(task, False) or not torch.equal(value, start)
    assert moved == {"colour": True, "size": False}


# Epochs, early stopping, interruptions


def epochs(**training: Any) -> dict[str, Any]:
    """Three steps an epoch for two tasks of 22 rows."""
    settings = {"max_steps": None, "epochs": 3, "save_every": 2, **training}
    return {"tasks": {"max_rows": 24}, "training": settings}


def test_each_epoch_has_the_rows_in_an_order_of_its_own(
    tiny_bert: Path, task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, int]]] = []
    collate = EncoderBatches.collate

    def recording(self: EncoderBatches, examples: Any) -> dict[str, Any]:
        if len(examples) == 16:
            seen.append([(example["task"], example["idx"]) for example in examples])
        return collate(self, examples)

    monkeypatch.setattr(EncoderBatches, "collate", recording)
    run = train(recipe(tiny_bert, "colour", "size", **epochs()), tmp_path / "run", data_dir=task_files)
    assert run.metrics["training"]["steps"] == 9
    assert len(seen) == 9
    orders = [[*chain(*seen[start : start + 3])] for start in (0, 3, 6)]
    assert len(set(orders[0])) == 44
    assert orders[0] != orders[1]
    assert orders[1] != orders[2]
    # 48 places for 44 rows: the next epoch goes on where the last one stopped.
    assert set(Counter(chain(*orders)).values()) == {3, 4}


@pytest.mark.parametrize(("at", "checkpoint"), [(1, None), (3, 2), (5, 4), (7, 6)])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    tiny_bert: Path,
    task_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Path,
    at: int,
    checkpoint: int | None,
) -> None:
    made, out = recipe(tiny_bert, "colour", "size", **epochs()), tmp_path / "run"
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        train(made, out, data_dir=task_files)
    monkeypatch.undo()
    assert (sorted(path.name for path in (out / "checkpoints").glob("checkpoint-*")) or [None]) == [
        checkpoint and f"checkpoint-{checkpoint}"
    ]
    with pytest.raises(ValueError, match="holds an unfinished run"):
        train(made, out, data_dir=task_files)
    with pytest.raises(ValueError, match="not finished; go on with"):
        evaluate(out)

    torch.manual_seed(99)
    train(made, out, data_dir=task_files, resume=True)
    assert same(out, uninterrupted)
    assert predictions(out, "dev") == predictions(uninterrupted, "dev")
    assert logged(out, "loss") == logged(uninterrupted, "loss")
    assert [step for step, _ in logged(out, "loss")] == list(range(1, 10))
    assert not (out / "checkpoints").exists()


@pytest.fixture(scope="module")
def uninterrupted(tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = recipe(tiny_bert, "colour", "size", **epochs())
    return train(made, tmp_path_factory.mktemp("runs") / "whole", data_dir=task_files).path


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """As if the user pressed a key after a step was logged."""
    original = RunLog.on_log

    def on_log(self: RunLog, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        original(self, args, state, control, **keywords)
        if state.global_step == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "on_log", on_log)


def test_resuming_a_finished_run_changes_nothing(joint: Path, mirrored: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in joint.rglob("*")}
    folder = train(read_recipe(joint / "recipe.yaml"), joint, data_dir=mirrored, resume=True)
    assert folder.finished
    assert {path: path.stat().st_mtime_ns for path in joint.rglob("*")} == times


def test_a_run_stops_when_val_gets_no_better(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    training = {"max_steps": 20, "learning_rate": 1e-9, "eval_every": 2, "patience": 2}
    run = train(recipe(tiny_bert, "colour", "size", training=training), tmp_path / "run", data_dir=task_files)
    assert run.metrics["training"]["steps"] == 6
    assert [step for step, _ in logged(run.path, "eval_mean")] == [2, 4, 6]


def test_the_best_adapter_is_kept_not_the_last(tiny_bert: Path, mirrored: Path, tmp_path: Path) -> None:
    training = {"max_steps": 12, "learning_rate": 0.3, "eval_every": 1, "schedule": "constant", "warmup": 0}
    run = train(recipe(tiny_bert, "colour", "size", training=training), tmp_path / "run", data_dir=mirrored)
    means = [value for _, value in logged(run.path, "eval_mean")]
    assert len(means) == 12
    assert means[-1] < max(means)
    assert run.metrics["val"]["mean"] == max(means)
    assert evaluate(run.path, "val", again=True)["mean"] == max(means)


# Each task alone


@pytest.fixture(scope="module")
def single(tiny_bert: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # colour has a quarter of the rows of the others.
    fields = own("colour", "size", "number")
    fields[0]["max_rows"] = 18
    made = recipe(tiny_bert, mode="single", tasks={"own": fields, "weights": {"size": 2}}, training={"max_steps": 18})
    return train(made, tmp_path_factory.mktemp("runs") / "single", data_dir=task_files).path


def test_each_task_alone_has_a_finished_run_of_its_own(single: Path) -> None:
    assert sorted(path.name for path in single.iterdir()) == [
        "README.md",
        "colour",
        "environment.json",
        "metrics.json",
        "number",
        "recipe.yaml",
        "size",
    ]
    for task in ("colour", "size", "number"):
        own_run = RunFolder.open(single / task).require_finished()
        assert own_run.recipe.mode == "joint"
        assert [chosen.name for chosen in own_run.recipe.tasks.chosen()] == [task]
        assert list(own_run.metrics["dev"]["tasks"]) == [task]
    assert RunFolder.open(single / "size").recipe.tasks.weights == {"size": 2.0}


def test_max_steps_are_shared_out_by_the_rows_that_each_task_would_get(single: Path) -> None:
    training = RunFolder.open(single).metrics["training"]
    assert {task: part["rows"][task] for task, part in training.items()} == {"colour": 16, "size": 65, "number": 65}
    assert {task: part["steps"] for task, part in training.items()} == {"colour": 2, "size": 8, "number": 8}


def test_the_metrics_of_tasks_alone_are_put_together(single: Path) -> None:
    metrics = RunFolder.open(single).metrics
    for split in ("val", "dev"):
        alone = {task: RunFolder.open(single / task).metrics[split] for task in ("colour", "size", "number")}
        assert metrics[split]["tasks"] == {task: scored["tasks"][task] for task, scored in alone.items()}
        assert metrics[split]["mean"] == pytest.approx(sum(scored["mean"] for scored in alone.values()) / 3)
        assert metrics[split]["worst"] == min(scored["mean"] for scored in alone.values())
        assert evaluate(single, split) == metrics[split]


def test_a_single_run_goes_on_with_the_tasks_that_it_lacks(single: Path, task_files: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(single, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    metrics = RunFolder.open(run).metrics
    (run / "metrics.json").unlink()
    (run / "size" / "metrics.json").unlink()
    train(RunFolder.open(run).recipe, run, data_dir=task_files, resume=True)
    again = RunFolder.open(run).metrics
    assert again["dev"] == metrics["dev"]
    assert same(run / "size", single / "size")
    touched = {path.relative_to(run).parts[0] for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert touched == {"size", "metrics.json"}


def test_a_single_run_has_no_model_of_all_tasks(single: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run for each task; name one of them: .*colour, size, number"):
        load_run(single)
    assert load_run(single / "size")[2][0].name == "size"


# Decoders


@pytest.fixture(scope="module")
def decoder(tiny_llama: Path, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {"training": {"max_steps": 3}, "evaluation": {"max_new_tokens": 3, "max_rows": 10}}
    made = recipe(tiny_llama, "colour", "choice", "echo", "number", kind="decoder", **parts)
    return train(made, tmp_path_factory.mktemp("runs") / "decoder", data_dir=task_files).path


def test_a_decoder_is_scored_on_options_by_both_likelihoods_and_on_its_writing(decoder: Path) -> None:
    dev = RunFolder.open(decoder).metrics["dev"]["tasks"]
    assert {task: "score_normalised" in scored for task, scored in dev.items()} == {
        "colour": True,
        "choice": True,
        "echo": False,
        "number": False,
    }
    assert dev["echo"]["metric"] == "rouge_l"
    saved = predictions(decoder, "dev")
    assert all(len(record["text"].split()) <= 3 for record in saved["echo"])
    assert all(len(record["scores"]) == 2 for record in saved["colour"])
    assert {len(record["scores"]) for record in saved["choice"]} == {2, 3}


def test_a_decoders_run_is_scored_again_and_predicted_again(decoder: Path) -> None:
    metrics, saved = RunFolder.open(decoder).metrics, predictions(decoder, "dev")
    assert evaluate(decoder, "dev")["tasks"]["colour"] == metrics["dev"]["tasks"]["colour"]
    evaluate(decoder, "dev", again=True)
    again = predictions(decoder, "dev")
    assert [record["text"] for record in again["echo"]] == [record["text"] for record in saved["echo"]]
    assert nearly(again["colour"], saved["colour"])


@RENAMED
def test_a_decoder_trains_in_bfloat16_with_recomputing_and_accumulation(
    tiny_llama: Path, task_files: Path, tmp_path: Path
) -> None:
    training = {"max_steps": 2, "precision": "bf16", "gradient_checkpointing": True, "accumulation": 2}
    parts = {"model": {"dtype": "bfloat16"}, "method": {"name": "mtl_lora", "r": 2}, "training": training}
    made = recipe(tiny_llama, "colour", "size", kind="decoder", **parts)
    run = train(made, tmp_path / "run", data_dir=task_files).path
    assert all(0 < value < 10 for _, value in logged(run, "loss"))
    assert {value.dtype for value in adapter(run).values() if value.is_floating_point()} == {torch.float32}


def test_no_step_is_logged_twice(joint: Path, uninterrupted: Path, single: Path) -> None:
    for run in (joint, uninterrupted, single / "size"):
        assert set(Counter(step for step, _ in logged(run, "loss")).values()) == {1}


def test_a_run_in_bfloat16_predicts_the_same_anew(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    made = recipe(tiny_bert, "colour", "size", training={"precision": "bf16"})
    run = train(made, tmp_path / "run", data_dir=task_files).path
    before = predictions(run, "dev")
    evaluate(run, "dev", again=True)
    assert all(nearly(before[task], predictions(run, "dev")[task]) for task in before)


def test_tensorboard_gets_losses_and_scores_that_outlive_the_run(
    tiny_bert: Path, task_files: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = {"max_steps": 4, "eval_every": 2, "report_to": ["tensorboard"]}
    run = train(recipe(tiny_bert, "colour", "size", training=training), tmp_path / "run", data_dir=task_files).path
    events = list(run.rglob("events.out.tfevents.*"))
    assert events
    read = EventAccumulator(str(events[0].parent)).Reload()
    assert {"train/loss", "train/loss_colour", "eval/mean", "eval/colour"} <= set(read.Tags()["scalars"])
    assert [event.step for event in read.Scalars("eval/mean")] == [2, 4]
    dev = json.loads((run / "metrics.json").read_text())["dev"]
    for name, value in (("dev/size", dev["tasks"]["size"]["score"]), ("dev/mean", dev["mean"])):
        assert [(event.step, event.value) for event in read.Scalars(name)] == [(4, pytest.approx(value))]


def test_what_a_run_writes_is_json_even_where_a_decoder_wrote_no_number(decoder: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for path in [decoder / "metrics.json", *decoder.rglob("*.jsonl")]:
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("method", ["lora", "mtl_lora", "hydralora"])
@pytest.mark.parametrize("surgery", [{"rule": "ortho_lora"}, {"rule": "mgda", "granularity": "role"}], ids=str)
def test_a_recipe_can_ask_for_surgery(
    tiny_bert: Path, task_files: Path, tmp_path: Path, method: str, surgery: dict[str, Any]
) -> None:
    training = {"max_steps": 4, "accumulation": 2, "log_every": 2}
    made = recipe(tiny_bert, "colour", "size", method={"name": method}, surgery=surgery, training=training)
    run = train(made, tmp_path / "run", data_dir=task_files)
    logged = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "surgery_moved" in entry] == [1, 2, 4]


def test_a_run_with_surgery_goes_on_with_the_orders_that_it_would_have_drawn(
    tiny_bert: Path, task_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("colour", "size", "number")
    made = recipe(tiny_bert, *names, surgery={"rule": "ortho_lora"}, training={"max_steps": 6, "save_every": 3})
    whole = train(made, tmp_path / "whole", data_dir=task_files).path
    interrupt(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        train(made, tmp_path / "cut", data_dir=task_files)
    monkeypatch.undo()
    train(made, tmp_path / "cut", data_dir=task_files, resume=True)
    assert same(tmp_path / "cut", whole)
