"""A run that is killed anywhere between two writes ends as the unbroken one, its log and its train_loss too."""

from pathlib import Path
from typing import Any

import pytest

from lorachord.training import trainer as trainer_module
from lorachord.training.encoder import EncoderBatches
from lorachord.training.trainer import MultiTaskTrainer
from tests.faults.kill import METHODS, Kills

pytestmark = pytest.mark.filterwarnings("ignore:This process")
KILLED = -9


def check(kills: Kills, owner: Any, name: str, number: int) -> None:
    assert kills.at_call(owner, name, number)
    assert kills.status == KILLED, "the run ended before"


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "mosld" else pytest.mark.slow) for name in METHODS]
)
def test_a_kill_in_a_window_after_the_last_step_or_in_scoring_changes_nothing(method: str, tmp_path: Path) -> None:
    kills = Kills(tmp_path, method)
    # The second batch of the sixth step, of two batches each.
    check(kills, MultiTaskTrainer, "training_step", 12)
    # The first batch of the fifth, when four are saved.
    check(kills, MultiTaskTrainer, "training_step", 9)
    # No scores are asked for in training: the first tasks to be scored are those of val, then dev.
    check(kills, trainer_module, "predict", 1)
    check(kills, trainer_module, "predict", 4)


def test_early_stopping_waits_as_long_as_in_the_unbroken_run(tmp_path: Path) -> None:
    training = {"max_steps": 20, "learning_rate": 1e-9, "eval_every": 2, "patience": 3, "save_every": 2}
    kills = Kills(tmp_path, "mtl_lora", **training)
    _, scores, _ = kills.whole
    assert scores["steps"] == 8
    assert "train_loss" in scores["log"][-1]
    # In the step before the last evaluation; while it is scored; and after early stopping has ended it.
    check(kills, MultiTaskTrainer, "training_step", 8)
    check(kills, trainer_module, "predict", 8)
    check(kills, trainer_module, "predict", 9)


def test_the_best_checkpoint_is_kept_over_a_kill(tmp_path: Path) -> None:
    kills = Kills(tmp_path, "mtl_lora", max_steps=8, learning_rate=0.3, eval_every=2, schedule="constant", warmup=0)
    for number in (5, 8):
        check(kills, MultiTaskTrainer, "training_step", number)
    check(kills, EncoderBatches, "predict", 12)
