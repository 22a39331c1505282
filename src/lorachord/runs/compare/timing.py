"""How long a comparison will take: by the trials that it had."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from lorachord.runs.compare.compared_rows import FRONT, HIGH_RANK, SINGLE, Row
from lorachord.runs.compare.ladder import FIRST_STEPS
from lorachord.runs.compare.plan import Plan
from lorachord.runs.compare.sweep_state import State

START = 8.0
"""Seconds that a trial takes beside its training, for loading and scoring, before anything is known."""
OPTIONAL = (FRONT, HIGH_RANK, SINGLE)
"""What a plan that has to be short leaves out, in this order."""


def time_left(state: State, size: int) -> tuple[float, int]:
    """Seconds that a comparison still takes, and the trials that it still needs; both are guesses.

    Args:
        size: trials at once.
    """
    done = [outcome for outcome in state.outcomes.values() if outcome.failed is None]
    seconds: dict[str, list[float]] = {}
    for outcome in done:
        seconds.setdefault(outcome.trial.row, []).append(outcome.seconds + START)
    common = fmean(value for own in seconds.values() for value in own) if seconds else START
    total, count = 0.0, 0
    for row, needed in trials_needed(state).items():
        count += needed
        total += needed * (fmean(seconds[row]) if row in seconds else common)
    return total / size, count


def trials_needed(state: State) -> Mapping[str, int]:
    """The trials that each row still needs, if its best rate is inside the first ones."""
    settled, wanted = state.settled()
    finished = {own.row.name for own in settled}
    plan, needed = state.plan, {}
    for row in plan.rows:
        if row.name in finished or row.name in state.left_out:
            continue
        had = sum(trial.row == row.name for trial in state.outcomes)
        now = sum(trial.row == row.name for trial in wanted)
        needed[row.name] = max(now, trials_of(plan, row) - had)
    points = plan.front_rows() if FRONT not in state.left_out else ()
    if points and not any(own.row.name == points[0].name for own in settled):
        had = sum(trial.row.startswith(FRONT) for trial in state.outcomes)
        needed[FRONT] = max(1, front_trials(plan) - had)
    return needed


def trials_of(plan: Plan, row: Row) -> int:
    """The trials of a row whose best rate is inside the first ones."""
    if not row.trained:
        return 1
    return (len(plan.rates) if plan.rates is not None else len(FIRST_STEPS)) + len(plan.seeds) - 1


def front_trials(plan: Plan) -> int:
    """Those of the front of weights: each point once, two of them with the other seeds."""
    return len(plan.front_rows()) + 2 * (len(plan.seeds) - 1)


def shortened(state: State, size: int, seconds: float) -> tuple[str, ...]:
    """The rows to leave out, so that a comparison of which one trial was timed ends in so many seconds, if any do.

    The front goes first, then the row of high rank, then tasks alone. Claims are never left out.
    """
    claimed = {name for claim in state.plan.claims for name in claim}
    chosen: tuple[str, ...] = ()
    for name in OPTIONAL:
        state.left_out = chosen
        if time_left(state, size)[0] <= seconds:
            break
        if name not in claimed:
            chosen = (*chosen, name)
    state.left_out = chosen
    return chosen


def shown(seconds: float) -> str:
    """A length of time in words."""
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{max(1, minutes)} min"


def seconds_of(text: str | None) -> float | None:
    """A length of time as it is written: `90s`, `30m`, `2h`, `1.5h`; None for none.

    Raises:
        ValueError: it is written otherwise.
    """
    if text is None:
        return None
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        found = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        found = 0.0
    if not 0 < found < float("inf"):
        raise ValueError(f"--time takes a number with s, m or h, as in 90m; got {text!r}.")
    return found
