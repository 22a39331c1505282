"""A resumed run is the unbroken run, bit for bit and from its first step, whatever the method."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lorachord.core.registry import all_methods
from lorachord.runs.train import train
from tests.integration.test_runs import interrupt, logged, predictions, same
from tests.tiny_data import recipe

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"dropout": 0.1},
    "multilora": {"align": 0.1},
    "thanora": {"r": 6},
    "mtl_lora": {"align": {"weight": 0.1, "floor": 1e-4}},
    "allot": {"warmup_steps": 2},
    "hydralora": {"balance": 0.01, "noise": 0.1},
    "mosld": {},
    "mode": {},
    "malora": {},
    "moelora": {},
    "comol": {},
    "mixlora": {},
    "mor1e": {"r1": 2, "r2": 2},
}


def test_every_method_is_here() -> None:
    assert OPTIONS.keys() == {name for name, cls in all_methods().items() if cls.__module__.startswith("lorachord.")}


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_resumed_run_is_the_unbroken_run(
    method: str,
    kind: str,
    tiny_bert: Path,
    tiny_llama: Path,
    task_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny_bert if kind == "encoder" else tiny_llama
    # Two batches a step: the break lies between windows of accumulation.
    training = {"max_steps": 5, "save_every": 2, "accumulation": 2}
    made = recipe(base, "colour", "size", kind=kind, method={"name": method, **OPTIONS[method]}, training=training)
    whole = train(made, tmp_path / "whole", data_dir=task_files)
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(made, tmp_path / "broken", data_dir=task_files)
    torch.manual_seed(99)
    resumed = train(made, tmp_path / "broken", data_dir=task_files, resume=True)
    assert logged(resumed.path, "loss") == logged(whole.path, "loss")
    assert logged(resumed.path, "grad_norm") == logged(whole.path, "grad_norm")
    assert same(resumed.path, whole.path)
    assert predictions(resumed.path, "dev") == predictions(whole.path, "dev")
