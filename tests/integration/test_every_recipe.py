"""A recipe of every method, on an encoder and on a decoder: trained, scored, and loaded to score the same again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lorachord as lc
from lorachord.families.calibrated import Calibrated
from lorachord.runs.train import train
from lorachord.runs.use import evaluate, load_run
from lorachord.tuner.prompt_clusters import has_centroids
from tests.tiny_data import recipe

METHODS = {name: cls for name, cls in lc.all_methods().items() if cls.__module__.startswith("lorachord.")}
SMALL: dict[str, dict[str, Any]] = {
    "mixlora": {"r": 2, "num_experts": 4},
    "mor1e": {"r1": 2, "r2": 3},
    "thanora": {"r": 6},
    "allot": {"warmup_steps": 3},
}
"""Where a method's defaults ask more than models of 16 features or so little data have."""
TASKS = {"encoder": ("colour", "size", "number", "choice"), "decoder": ("colour", "choice", "echo")}


def scores_of_choices(run: Path) -> torch.Tensor:
    """What the run gave each choice of each row of dev, as its predictions have it."""
    lines = (run / "predictions" / "dev" / "choice.jsonl").read_text(encoding="utf-8").splitlines()
    return torch.tensor([score for line in lines for score in json.loads(line)["scores"]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", TASKS)
def test_a_recipe_trains_and_scores_again_as_it_did(
    kind: str, method: str, tiny_bert: Path, tiny_llama: Path, task_files: Path, tmp_path: Path
) -> None:
    folder = tiny_bert if kind == "encoder" else tiny_llama
    options = {"name": method, **SMALL.get(method, {})}
    made = recipe(folder, *TASKS[kind], kind=kind, method=options, model={"kind": kind})
    run = train(made, tmp_path / "run", data_dir=task_files)
    steps = [entry for entry in run.path.joinpath("log.jsonl").read_text().splitlines() if '"loss"' in entry]
    assert len(steps) == 6
    first = scores_of_choices(run.path)
    again = evaluate(run.path, "dev", data_dir=task_files, again=True)
    assert again["tasks"] == run.metrics["dev"]["tasks"]
    torch.testing.assert_close(scores_of_choices(run.path), first)
    if method == "mor1e":
        assert has_centroids(load_run(run.path)[0])
    if issubclass(METHODS[method], Calibrated):
        assert lc.Calibration.load(run.path / "calibration").method == method
