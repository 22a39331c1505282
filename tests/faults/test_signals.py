"""SIGTERM and Ctrl-C save a checkpoint, say how to go on, and lose nothing."""

import signal
from pathlib import Path
from typing import Any

import pytest

from lorachord.endings import in_words
from lorachord.runs.log import RunLog
from lorachord.runs.train import train
from tests.integration.test_runs import logged, same
from tests.tiny_data import recipe, save_model, write_data
from tests.tiny_models import tiny


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_it_came_in(
    number: signal.Signals,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_data(tmp_path / "data", "colour", "size")
    made = recipe(save_model(tiny("bert"), tmp_path / "base"), "colour", "size", training={"save_every": 100})
    whole = train(made, tmp_path / "whole", data_dir=data)
    on_log = RunLog.on_log

    def signalled(self: RunLog, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        on_log(self, args, state, control, **keywords)
        if state.global_step == 3:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "on_log", signalled)
        assert in_words("train", lambda: train(made, tmp_path / "run", data_dir=data)) == status
    assert signal.getsignal(number) == before
    words = capsys.readouterr().err
    assert "a checkpoint is saved in" in words
    assert "--resume" in words
    assert "Traceback" not in words
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    resumed = train(made, tmp_path / "run", data_dir=data, resume=True)
    assert same(resumed.path, whole.path)
    assert logged(resumed.path, "loss") == logged(whole.path, "loss")
