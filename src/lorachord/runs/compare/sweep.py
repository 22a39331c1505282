"""The folder of a comparison, and the loop that fills it.

    sweep.json       the plan
    left_out.json    the rows that were left out to save time
    examples.json    what is predicted: the index and label of every example, by split and task
    trials.jsonl     a line for every finished trial: its predictions, time, memory
    trials/          the run folder of each trial
    compare.json     the result, with its tables as compare.csv and compare.md

`sweep.json`, `examples.json` and `trials.jsonl` are all that a comparison needs to go on.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from lorachord.runs.compare.growing import in_the_way
from lorachord.runs.compare.plan import Plan
from lorachord.runs.compare.sweep_state import State
from lorachord.runs.compare.timing import shortened, shown, time_left
from lorachord.runs.compare.trial import Outcome, Trial
from lorachord.runs.compare.workers import Workers
from lorachord.runs.run_lock import locked
from lorachord.whole import finite, read_json, write_json

logger = logging.getLogger("lorachord")
MOST_DEATHS = 3
"""So many times a process of a trial may end before the trial counts as failed."""


class SweepFolder:
    """A folder of a comparison.

    Args:
        path: where it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def is_there(self) -> bool:
        """Whether a comparison was begun here."""
        return (self.path / "sweep.json").is_file()

    def begin(self, plan: Plan) -> State:
        """The state of the comparison, with the trials that the folder has; rows, seeds and claims may be added.

        Raises:
            ValueError: the folder holds something else, or a comparison of another plan.
        """
        if not self.is_there:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ValueError(f"{self.path} holds something that is no comparison; name a new folder by --out.")
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "sweep.json", plan.to_dict())
            return State(plan)
        # Read by this version, which may have more keys than the one that wrote it.
        saved, wanted = _plain(self.saved_plan()), _plain(plan)
        differing = in_the_way(saved, wanted)
        if differing:
            raise ValueError(
                f"{self.path} holds a comparison of another plan:\n  "
                + "\n  ".join(differing[:10])
                + "\nName a new folder by --out, or repeat the first command; methods, seeds and claims may be added."
            )
        state = self.load(plan)
        if saved != wanted:
            write_json(self.path / "sweep.json", wanted)
        return state

    def saved_plan(self) -> Plan:
        """The plan that the comparison was begun with.

        Raises:
            ValueError: there is none, or the file is damaged.
        """
        if not self.is_there:
            raise ValueError(f"{self.path} is no folder of a comparison, which would hold a sweep.json.")
        found = read_json(self.path / "sweep.json")
        try:
            return Plan.from_dict(found)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.path / 'sweep.json'} is damaged or of another version ({error!r}).") from None

    def load(self, plan: Plan) -> State:
        """The state with the finished trials.

        Raises:
            ValueError: a file is damaged; a last line that was cut off is dropped.
        """
        state = State(plan)
        if (self.path / "left_out.json").is_file():
            state.left_out = tuple(read_json(self.path / "left_out.json", ("rows",))["rows"])
        examples, file = self.path / "examples.json", self.path / "trials.jsonl"
        if not examples.is_file() or not file.is_file():
            return state
        state.examples = read_json(examples)
        whole = file.read_text(encoding="utf-8")
        if not whole.endswith("\n"):
            whole = whole[: whole.rfind("\n") + 1]
            file.write_text(whole, encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                outcome = Outcome.from_dict(json.loads(line))
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                raise ValueError(f"Line {number} of {file} is damaged ({error}): remove it to run it again.") from None
            state.outcomes[outcome.trial] = outcome
        return state

    def add(self, state: State, result: dict[str, Any]) -> Outcome:
        """Put a trial that has ended into the state and the files."""
        outcome = Outcome.from_dict(result["outcome"])
        first = not state.examples
        state.add(outcome, result["examples"])
        if first and state.examples:
            write_json(self.path / "examples.json", state.examples)
        line = json.dumps(finite(outcome.to_dict()), allow_nan=False) + "\n"
        with (self.path / "trials.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        return outcome


def _plain(plan: Plan) -> dict[str, Any]:
    made: dict[str, Any] = finite(json.loads(json.dumps(plan.to_dict())))
    return made


def run_sweep(
    folder: SweepFolder,
    state: State,
    workers: Workers,
    *,
    seconds: float | None = None,
    say: Callable[[str], None] = logger.info,
) -> bool:
    """Run the trials that a comparison still wants; whether it came to its end.

    Args:
        seconds: in which to end. When the first trial has been timed, rows that do not fit are left out; in the end no
            trial begins that would take longer. Default: no limit.
        say: is given a line after each trial.

    Raises:
        ValueError: the data have changed, or a file cannot be written. Finished trials are kept.
    """
    with locked(folder.path / "trials"):
        return _run(folder, state, workers, seconds, say)


def _run(
    folder: SweepFolder, state: State, workers: Workers, seconds: float | None, say: Callable[[str], None]
) -> bool:
    deadline = None if seconds is None else time.monotonic() + seconds
    is_new = not state.outcomes
    going: dict[Future[dict[str, Any]], Trial] = {}
    deaths: dict[Trial, int] = {}
    while True:
        _, wanted = state.settled()
        if is_new and deadline is not None and any(outcome.seconds for outcome in state.outcomes.values()):
            is_new = False
            _leave_out(folder, state, workers.size, deadline - time.monotonic(), say)
            _, wanted = state.settled()
        late = deadline is not None and time.monotonic() + _longest(state) > deadline
        for trial in [] if late else [trial for trial in wanted if trial not in going.values()]:
            if len(going) < workers.size:
                going[workers.submit(_spec(folder, state.plan, trial))] = trial
        if not going:
            return not wanted
        ended, _ = wait(going, return_when=FIRST_COMPLETED)
        for future in ended:
            trial = going.pop(future)
            error = future.exception()
            if error is not None and workers.died(error):
                deaths[trial] = deaths.get(trial, 0) + 1
                if deaths[trial] < MOST_DEATHS:
                    say(f"The process of {trial.shown} ended by itself; it runs again.")
                    continue
                said = f"its process ended {MOST_DEATHS} times by itself (out of memory?)"
                failed = Outcome(trial=trial, found={}, failed=said, final=True)
                result: dict[str, Any] = {"outcome": failed.to_dict(), "examples": {}}
            else:
                result = future.result()
            outcome = folder.add(state, result)
            say(_line(state, outcome, workers.size))


def _leave_out(folder: SweepFolder, state: State, size: int, seconds: float, say: Callable[[str], None]) -> None:
    chosen = shortened(state, size, seconds)
    write_json(folder.path / "left_out.json", {"rows": list(chosen)})
    if chosen:
        say(f"Left out to end in time: {', '.join(chosen)}.")
    left, _ = time_left(state, size)
    if left > seconds:
        say(f"The rest takes about {shown(left)} and will not end in time; the same command goes on with it.")


def _longest(state: State) -> float:
    """Seconds of the longest trial so far."""
    return max((outcome.seconds for outcome in state.outcomes.values()), default=0.0)


def _spec(folder: SweepFolder, plan: Plan, trial: Trial) -> dict[str, Any]:
    recipe = plan.any_row(trial.row).recipe(plan.recipe, rate=trial.rate, seed=trial.seed)
    return {
        "trial": {"row": trial.row, "rate": trial.rate, "seed": trial.seed},
        "recipe": recipe.to_dict(),
        "folder": str(folder.path.absolute()),
        "data_dir": plan.data_dir,
        "threads": plan.threads,
    }


def _line(state: State, outcome: Outcome, size: int) -> str:
    trial = outcome.trial
    if outcome.failed is not None:
        return f"{trial.shown}: failed: {outcome.failed}"
    found = f"{trial.shown}: {state.mean(trial, 'val'):.3f} on val, {state.mean(trial, 'dev'):.3f} on dev"
    seconds, count = time_left(state, size)
    return f"{found}; {len(state.outcomes)} trials done, about {count} to go, {shown(seconds)} left"
