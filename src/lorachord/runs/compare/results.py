"""What a comparison found, as plain data: `compare.json`.

Shapes are those of `sample.py`: rows, seeds, tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lorachord.baselines import BASELINES
from lorachord.core.registry import all_methods
from lorachord.method_pages import MERGES
from lorachord.runs.compare.chance import at_chance
from lorachord.runs.compare.compared_rows import FRONT, NAMED, REFERENCE, SINGLE, Row
from lorachord.runs.compare.plan import Plan
from lorachord.runs.compare.sample import Sample, Scores
from lorachord.runs.compare.statistics import Contrast, holm, holm_levels, seeds_needed
from lorachord.runs.compare.sweep_state import Settled, State
from lorachord.runs.compare.trial import Trial
from lorachord.runs.compare.verdict import verdict
from lorachord.runs.constants import constant_scores


def results(state: State) -> dict[str, Any]:
    """The result so far; rows whose trials are not all there are named under `unfinished`.

    Returns:
        `tasks` (metric and majority score of each), `rows`, `claims`, `unfinished`, `left_out`, `verdict`. Scores are
        of dev. A difference has `value`, `half_width`, `smallest` (visible), `p`; all but the first are None for one
        seed.
    """
    plan = state.plan
    settled, _ = state.settled()
    found = {own.row.name: own for own in settled}
    whole = {name: own for name, own in found.items() if own.trials}
    scores = _scores(state, whole) if REFERENCE in whole else None
    rows = [_row(state, own, scores) for own in settled]
    claims = _claims(plan, scores) if scores is not None else []
    made: dict[str, Any] = {
        "tasks": _tasks(state),
        "seeds": list(plan.seeds),
        "effect": plan.effect,
        "rows": rows,
        "claims": claims,
        "gap": None if scores is None or SINGLE not in scores.rows else _difference(scores, SINGLE, REFERENCE, None),
        "unfinished": [row.name for row in plan.rows if row.name not in found and row.name not in state.left_out],
        "left_out": list(state.left_out),
    }
    return {**made, "verdict": verdict(made)}


def _tasks(state: State) -> list[dict[str, Any]]:
    tasks = state.plan.tasks
    trial = next((trial for trial, outcome in state.outcomes.items() if outcome.failed is None), None)
    constants = constant_scores(tasks, state.records(trial, "dev")) if trial is not None else {}
    sizes = {task: len(columns["idx"]) for task, columns in state.examples.get("dev", {}).items()}
    return [
        {
            "name": task.name,
            "metric": task.metric,
            "majority": constants.get(task.name),
            "examples": sizes.get(task.name, 0),
        }
        for task in tasks
    ]


def _scores(state: State, whole: Mapping[str, Settled]) -> Scores:
    """Of the rows with all seeds, and of the base, which has but one."""
    count = len(state.plan.seeds)
    records = {}
    for name, own in whole.items():
        trials: Sequence[Trial] = own.trials if own.row.trained else list(own.trials) * count
        if len(trials) == count:
            records[name] = [state.records(trial, "dev") for trial in trials]
    return Scores(Sample(state.plan.tasks, records))


def _row(state: State, own: Settled, scores: Scores | None) -> dict[str, Any]:
    row, plan = own.row, state.plan
    parameters, share = plan.parameters.get(row.name, plan.parameters[REFERENCE])
    method = row.method["name"]
    made: dict[str, Any] = {
        "name": row.name,
        "method": dict(row.method),
        "surgery": row.surgery,
        "balance": row.balance,
        "mode": row.mode,
        "weights": dict(row.weights),
        "parameters": 0 if not row.trained else parameters,
        "share": 0.0 if not row.trained else share,
        "rate": own.rate,
        "edge": None if own.choice is None else own.choice.edge.value,
        "rates": {f"{rate:g}": mean for rate, mean in own.rates.items()},
        "told": row.is_told,
        "merges": "yes" if method in BASELINES else MERGES[all_methods()[method].mixing],
        "failed": own.failed,
    }
    if not own.trials:
        return made
    by_seed = [state.scores(trial, "dev") for trial in own.trials]
    tasks = {task.name: fmean(scored[task.name] for scored in by_seed) for task in plan.tasks}
    outcomes = [state.outcomes[trial] for trial in own.trials]
    chance = [
        task.name
        for task in plan.tasks
        if any(at_chance([task], {task.name: state.records(trial, "dev")[task.name]}) for trial in own.trials)
    ]
    memory = [outcome.memory for outcome in outcomes if outcome.memory is not None]
    forgotten = [outcome.forgetting for outcome in outcomes if outcome.forgetting is not None]
    lost = [outcome.lost for outcome in outcomes if outcome.lost is not None]
    made |= {
        "scores": tasks,
        "mean": fmean(tasks.values()),
        "worst": min(tasks.values()),
        "at_chance": chance,
        "by_seed": [fmean(scored.values()) for scored in by_seed],
        "forgetting": fmean(forgotten) if forgotten else None,
        "loss_of_earlier_tasks": fmean(lost) if lost else None,
        "seconds": fmean(outcome.seconds for outcome in outcomes),
        "memory": max(memory) if memory else None,
    }
    if scores is None or row.name not in scores.rows:
        return made
    if row.name != REFERENCE:
        made["difference"] = _difference(scores, row.name, REFERENCE, plan.effect)
        if row.is_told and row.trained and row.name != NAMED and NAMED in scores.rows:
            made["against_named"] = _difference(scores, row.name, NAMED, None)
        if row.weighs_tasks:
            made["against_front"] = _against_front(state, scores, row)
    if SINGLE in scores.rows and row.name != SINGLE and row.trained:
        ratio = scores.gap_recovered(row.name, REFERENCE, SINGLE) if row.name != REFERENCE else None
        made["gap_recovered"] = None if ratio is None else {"value": ratio.value, "low": ratio.low, "high": ratio.high}
        made["transfer"] = {
            task.name: _plain(scores.difference(row.name, SINGLE, task.name), None) for task in plan.tasks
        }
    return made


def _against_front(state: State, scores: Scores, row: Row) -> dict[str, Any] | None:
    """Against the best of the reference and the points of the front that have all seeds, chosen on val."""
    settled, _ = state.settled()
    points = {own.row.name: own for own in settled if own.row.name.startswith(FRONT) or own.row.name == REFERENCE}
    known = [name for name in points if name in scores.rows]
    if len(known) < 2:
        return None
    best = max(known, key=lambda name: fmean(state.mean(trial, "val") for trial in points[name].trials))
    return {"row": best, **_difference(scores, row.name, best, None)}


def _difference(scores: Scores, first: str, second: str, effect: float | None) -> dict[str, Any]:
    return _plain(scores.difference(first, second), effect)


def _plain(contrast: Contrast, effect: float | None) -> dict[str, Any]:
    """
    Args:
        effect: a size for which the number of seeds that would show it is given; None for without.
    """
    made = {
        "value": contrast.value,
        "half_width": contrast.half_width,
        "smallest": contrast.smallest,
        "p": contrast.p_value,
        "different": contrast.is_different,
    }
    if effect is not None and contrast.num_seeds > 1:
        made["seeds_for_effect"] = seeds_needed(contrast, effect)
    return made


def _claims(plan: Plan, scores: Scores) -> list[dict[str, Any]]:
    """The claims whose rows are there, with intervals corrected for the number of all that were named."""
    known = [claim for claim in plan.claims if set(claim) <= set(scores.rows)]
    contrasts = [scores.difference(*claim) for claim in known]
    if any(contrast.p_value is None for contrast in contrasts):
        return [
            {"first": first, "second": second, **_plain(contrast, None), "adjusted_p": None, "level": None}
            for (first, second), contrast in zip(known, contrasts, strict=True)
        ]
    # Claims that are not there yet, or that failed, count among the tests.
    lacking = len(plan.claims) - len(known)
    p_values = [contrast.p_value or 0.0 for contrast in contrasts] + [1.0] * lacking
    made = []
    for claim, contrast, adjusted, level in zip(known, contrasts, holm(p_values), holm_levels(p_values), strict=False):
        at_level = contrast.at(level)
        plain = _plain(at_level, plan.effect)
        made.append({"first": claim[0], "second": claim[1], **plain, "adjusted_p": adjusted, "level": level})
    return made
