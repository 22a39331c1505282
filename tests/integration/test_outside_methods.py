"""Methods from outside the package go the whole way of a run."""

from pathlib import Path
from typing import Any

import pytest

from lorachord.runs.train import train
from lorachord.runs.use import evaluate
from tests.contract import test_outside
from tests.integration.test_runs import predictions
from tests.tiny_data import recipe

METHODS = [test_outside.Outside.method, test_outside.OutsidePrompts.method]


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_from_outside_trains_is_loaded_and_scored(
    method: str, kind: str, tiny_bert: Path, tiny_llama: Path, task_files: Path, tmp_path: Path
) -> None:
    base = tiny_bert if kind == "encoder" else tiny_llama
    options: dict[str, Any] = {"name": method, "r": 2}
    folder = train(recipe(base, "colour", "size", kind=kind, method=options), tmp_path / "run", data_dir=task_files)
    before = predictions(folder.path, "dev")
    evaluate(folder.path, "dev", again=True)
    assert predictions(folder.path, "dev") == before
