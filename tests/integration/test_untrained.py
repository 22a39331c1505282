"""`max_steps: 0`: the base is scored as it is."""

from pathlib import Path

import pytest

from lorachord.runs.train import train
from lorachord.runs.use import evaluate
from tests.tiny_data import recipe

NOTHING = {"max_steps": 0}


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_nothing_is_trained_and_every_method_scores_alike(
    kind: str, tiny_bert: Path, tiny_llama: Path, task_files: Path, tmp_path: Path
) -> None:
    model = tiny_bert if kind == "encoder" else tiny_llama
    runs = [
        train(recipe(model, "colour", "size", kind=kind, method=method, training=NOTHING), out, data_dir=task_files)
        for method, out in (({"name": "lora", "r": 2}, tmp_path / "a"), ({"name": "mtl_lora", "r": 2}, tmp_path / "b"))
    ]
    assert [run.metrics["training"]["steps"] for run in runs] == [0, 0]
    assert runs[0].metrics["dev"] == runs[1].metrics["dev"]
    assert evaluate(runs[0].path, again=True) == runs[0].metrics["dev"]


def test_nor_is_each_task_alone(tiny_bert: Path, task_files: Path, tmp_path: Path) -> None:
    run = train(recipe(tiny_bert, "colour", "size", mode="single", training=NOTHING), tmp_path, data_dir=task_files)
    assert [own["steps"] for own in run.metrics["training"].values()] == [0, 0]
