"""One trial of a comparison: a run of a row with one rate and one seed, and the figures that are kept of it."""

from __future__ import annotations

import logging
import re
import resource
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lorachord.runs.compare.forgetting import forgetting
from lorachord.runs.folder import RunFolder
from lorachord.runs.joint import REPORTED
from lorachord.runs.recipe import recipe_from
from lorachord.runs.scores import NORMALISED
from lorachord.runs.train import train
from lorachord.runs.use import predictions
from lorachord.training.model_kind import Record

logger = logging.getLogger("lorachord")
KEPT = ("prediction", NORMALISED)
"""The part of a record that differs between trials."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """
    Attributes:
        row: the name of its row.
        rate: peak learning rate; None for a base that is not trained.
        seed: of the run.
    """

    row: str
    rate: float | None
    seed: int

    @property
    def path(self) -> str:
        """Of its run folder, in the folder of the comparison."""
        rate = "untrained" if self.rate is None else f"{self.rate:g}"
        row = re.sub(r"[^\w.+\-]+", "_", self.row).strip("_.")
        return f"trials/{row}/{rate}/seed{self.seed}"

    @property
    def shown(self) -> str:
        """In words."""
        rate = "" if self.rate is None else f" at {self.rate:g}"
        return f"{self.row}{rate}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is kept of a trial.

    Attributes:
        trial: which.
        found: by split and task, the columns of `KEPT` that its records have. Empty where it failed.
        seconds: of training.
        parameters: that were trained, heads included.
        memory: the process's highest, in bytes, where the system tells; on an accelerator, what was allocated on it.
        forgetting: see `forgetting.py`; None where it is not measured.
        lost: what the earlier tasks of a sequence lose, the mean of `runs/sequence.lost`; None elsewhere.
        failed: why there are no predictions; None where there are.
        final: whether another rate would fail likewise.
    """

    trial: Trial
    found: Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]
    seconds: float = 0.0
    parameters: int = 0
    memory: int | None = None
    forgetting: float | None = None
    lost: float | None = None
    failed: str | None = None
    final: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` takes it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Outcome:
        """From `to_dict`."""
        return cls(**{**plain, "trial": Trial(**plain["trial"])})


def run_trial(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train and score one trial, or go on with it; in a process that may be another one.

    Args:
        spec: `trial`, `recipe`, `folder` of the comparison, `data_dir`, `threads`, as plain data.

    Returns:
        `outcome`, and `examples`: by split and task, the `idx` and `label` of what was predicted.
    """
    trial = Trial(**spec["trial"])
    path = Path(spec["folder"], trial.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(spec["threads"])
    with path.with_suffix(".log").open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        logging.basicConfig(format="%(message)s", stream=log, force=True)
        logger.setLevel(logging.INFO)
        return _run(trial, path, spec)


def _run(trial: Trial, path: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    _forget_peak()
    try:
        run = train(recipe_from(spec["recipe"]), path, data_dir=spec["data_dir"], resume=True)
        found = {split: _predicted(run, split) for split in REPORTED}
        forgotten = forgetting(run)
    except FloatingPointError as error:
        return {"outcome": Outcome(trial=trial, found={}, failed=str(error)).to_dict(), "examples": {}}
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            # The disk's fault is nobody's result.
            raise
        return {"outcome": Outcome(trial=trial, found={}, failed=str(error), final=True).to_dict(), "examples": {}}
    training = run.metrics["training"]
    # Of tasks alone there are several.
    parts = [training] if "seconds" in training else list(training.values())
    outcome = Outcome(
        trial=trial,
        found={split: _columns(records, KEPT) for split, records in found.items()},
        seconds=sum(part["seconds"] for part in parts),
        parameters=max(part["trainable_parameters"] for part in parts),
        memory=_peak(),
        forgetting=forgotten,
        lost=run.metrics["loss_of_earlier_tasks"]["mean"] if run.recipe.mode == "sequence" else None,
    )
    examples = {split: _columns(records, ("idx", "label")) for split, records in found.items()}
    return {"outcome": outcome.to_dict(), "examples": examples}


def _predicted(run: RunFolder, split: str) -> dict[str, list[Record]]:
    return predictions(run.path, split)


def _columns(records: Mapping[str, Sequence[Record]], keys: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    return {
        task: {key: [record[key] for record in own] for key in keys if key in own[0]} for task, own in records.items()
    }


def _forget_peak() -> None:
    """Let the highest memory so far be that of now, where Linux lets a process do so."""
    if torch.accelerator.is_available():
        torch.accelerator.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak() -> int:
    """The highest memory since, in bytes."""
    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated()
    try:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
