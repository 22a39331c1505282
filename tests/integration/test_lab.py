"""The positive control: what each method reaches on tasks that contradict each other is known in advance."""

from pathlib import Path

import pytest

import lorachord as lc
from lorachord.runs.recipe import recipe_from
from lorachord.runs.train import train

METHODS = {name: cls for name, cls in lc.all_methods().items() if cls.__module__.startswith("lorachord.")}
BLIND = [name for name, cls in METHODS.items() if cls.mixing is not lc.Mixing.TASK]
"""Methods that are not told the task."""
ALL = ("single", *METHODS)
RATES = {"thanora": 3e-4}
"""Blocks that start as large as the weights want smaller steps."""


def dev_scores(row: str, k: float, out: Path) -> tuple[float, float]:
    """Mean and worst accuracy on dev of four tasks on MiniLM."""
    recipe = recipe_from(
        {
            "model": {"name": "minilm", "kind": "encoder", "heads": "shared", "max_length": 32},
            "tasks": {"lab": {"name": "lab-contradiction", "k": k}},
            "method": {"name": "lora" if row == "single" else row},
            "training": {"max_steps": 120, "batch_size": 32, "learning_rate": RATES.get(row, 1e-3)},
            "evaluation": {"max_rows": 1000},
            "mode": "single" if row == "single" else "joint",
        }
    )
    scores = train(recipe, out).metrics["dev"]
    return scores["mean"], scores["worst"]


@pytest.mark.slow
@pytest.mark.parametrize("row", ALL)
def test_without_contradiction_everything_is_learned(row: str, tmp_path: Path) -> None:
    _, worst = dev_scores(row, 0.0, tmp_path / "run")
    assert worst > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("row", ALL)
def test_in_full_contradiction_only_what_knows_the_task_learns(row: str, tmp_path: Path) -> None:
    mean, worst = dev_scores(row, 1.0, tmp_path / "run")
    if row in BLIND:
        assert mean < 0.6
    else:
        assert worst > 0.95
