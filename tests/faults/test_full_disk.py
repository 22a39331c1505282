"""A disk that fills up during a run ends in a sentence, and the run goes on when there is room again."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorachord.endings import in_words
from lorachord.runs.log import RunLog
from lorachord.runs.train import train
from tests.integration.test_runs import same
from tests.tiny_data import recipe, save_model, write_data
from tests.tiny_models import tiny

SIZE = "600k"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("a small disk can be mounted by root alone")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, left: int) -> None:
    """Leave so many bytes."""
    with (place / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096) == 4096:
                pass
        except OSError:
            pass
    os.truncate(place / "filler", max(0, (place / "filler").stat().st_size - left))


def test_a_full_disk_costs_no_checkpoint(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", "colour", "size")
    training = {"max_steps": 12, "save_every": 3}
    made = recipe(save_model(tiny("bert"), tmp_path / "base"), "colour", "size", training=training)
    whole = train(made, tmp_path / "whole", data_dir=data)
    on_log = RunLog.on_log
    for left in (0, 16 * 1024, 48 * 1024):
        run = small_disk / f"run_{left}"

        def filled(self: RunLog, args: Any, state: Any, control: Any, *, left: int = left, **keywords: Any) -> None:
            on_log(self, args, state, control, **keywords)
            if state.global_step == 5:
                fill(small_disk, left)

        with monkeypatch.context() as patch:
            patch.setattr(RunLog, "on_log", filled)
            # The reason is the disk's, and the run's folder says what is whole.
            status = in_words("train", lambda run=run: train(made, run, data_dir=data))  # type: ignore[misc]
        words = capsys.readouterr().err
        assert status != 0, f"{left} bytes were enough; fill the disk further"
        assert "No space left" in words
        assert "Traceback" not in words
        assert [path.name for path in (run / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
        (small_disk / "filler").unlink()
        resumed = train(made, run, data_dir=data, resume=True)
        assert same(resumed.path, whole.path)
        subprocess.run(["rm", "-r", str(run)], check=True)
