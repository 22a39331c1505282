"""How far a comparison has come: the trials that are there, the rate that each row has, the trials that are wanted.

Everything follows from the finished trials. So a comparison that was killed goes on where it was, and the order in
which trials end changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from lorachord.runs.compare.chance import at_chance, tied
from lorachord.runs.compare.compared_rows import FRONT, REFERENCE, Row
from lorachord.runs.compare.ladder import Choice, Edge, Tried, best_given, next_steps, rate_at
from lorachord.runs.compare.plan import Plan
from lorachord.runs.compare.trial import Outcome, Trial
from lorachord.runs.scores import score_task
from lorachord.training.model_kind import Record

Examples = Mapping[str, Mapping[str, Mapping[str, Sequence[Any]]]]
"""By split and task: the `idx` and `label` of every example that is predicted."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A row whose trials are all there.

    Attributes:
        row: with its weights, where it is of the front.
        choice: of its rate; None where nothing is trained.
        rates: that were tried, with their means on val.
        trials: of the chosen rate, by seed.
        failed: why the row has no result; then it has no trials.
    """

    row: Row
    choice: Choice | None
    rates: Mapping[float, float]
    trials: Sequence[Trial]
    failed: str | None = None

    @property
    def rate(self) -> float | None:
        """The one that was chosen."""
        return self.trials[0].rate if self.trials else None


@dataclass
class State:
    """
    Attributes:
        plan: of the comparison.
        outcomes: of the finished trials.
        examples: what they predicted.
        left_out: rows that are left out to save time; `front` is one of them.
    """

    plan: Plan
    outcomes: dict[Trial, Outcome] = field(default_factory=dict)
    examples: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def add(self, outcome: Outcome, examples: Examples) -> None:
        """A trial that has ended.

        Raises:
            ValueError: it predicted other examples than the trials before.
        """
        if outcome.failed is None:
            if self.examples and examples != self.examples:
                raise ValueError(
                    f"The trial of {outcome.trial.shown} predicted other examples than those before: the data have "
                    "changed since the comparison began. Compare anew in another folder."
                )
            self.examples = dict(examples)
        self.outcomes[outcome.trial] = outcome

    def records(self, trial: Trial, split: str) -> dict[str, list[Record]]:
        """The records of a finished trial, by task."""
        found, examples = self.outcomes[trial].found[split], self.examples[split]
        return {
            task: [
                dict(zip((*examples[task], *own), row, strict=True))
                for row in zip(*examples[task].values(), *own.values(), strict=True)
            ]
            for task, own in found.items()
        }

    @cached_property
    def _known(self) -> dict[tuple[Any, ...], Any]:
        return {}

    def scores(self, trial: Trial, split: str) -> dict[str, float]:
        """The score of each task of a finished trial."""
        key = (trial, split)
        if key not in self._known:
            records = self.records(trial, split)
            self._known[key] = {task.name: score_task(task, records[task.name])["score"] for task in self.plan.tasks}
        found: dict[str, float] = self._known[key]
        return found

    def mean(self, trial: Trial, split: str) -> float:
        """The mean over the tasks."""
        return fmean(self.scores(trial, split).values())

    def settled(self) -> tuple[list[Settled], list[Trial]]:
        """The rows that are done, in their order, and the trials that are wanted next, the most urgent first."""
        done, wanted = [], []
        for row in self.plan.rows:
            if row.name in self.left_out:
                continue
            found = self._row(row)
            if isinstance(found, Settled):
                done.append(found)
            else:
                wanted += found
        reference = next((own for own in done if own.row.name == REFERENCE), None)
        if reference is not None and reference.failed is None and FRONT not in self.left_out:
            front = list(self._front(reference))
            done += [found for found in front if isinstance(found, Settled)]
            wanted += [found for found in front if isinstance(found, Trial)]
        # Rates first, since what is trained with all seeds depends on them.
        first = self.plan.seeds[0]
        return done, sorted(wanted, key=lambda trial: trial.seed != first)

    def _row(self, row: Row) -> Settled | list[Trial]:
        first = self.plan.seeds[0]
        if not row.trained:
            trial = Trial(row=row.name, rate=None, seed=first)
            return self._or_wanted(row, None, {}, [trial])
        given = self.plan.rates
        unfit: set[int] = set()
        steps = list(range(len(given))) if given is not None else []

        def trial_of(step: int, seed: int) -> Trial:
            rate = given[step] if given is not None else rate_at(self.plan.recipe.training.learning_rate, step)
            return Trial(row=row.name, rate=rate, seed=seed)

        while True:
            trials = {step: trial_of(step, first) for step in steps}
            wanted = [trial for trial in trials.values() if trial not in self.outcomes]
            if wanted:
                return wanted
            broken = next((self.outcomes[trial] for trial in trials.values() if self.outcomes[trial].final), None)
            if broken is not None:
                return Settled(row=row, choice=None, rates={}, trials=(), failed=broken.failed)
            tried = {step: self._tried(trial, step in unfit) for step, trial in trials.items()}
            choice = best_given(tried) if given is not None else next_steps(tried, self._ties(trials))
            if not isinstance(choice, Choice):
                steps = sorted({*steps, *choice})
                continue
            rates = {trials[step].rate or 0.0: tried[step].mean for step in sorted(tried)}
            chosen = [trial_of(choice.step, seed) for seed in self.plan.seeds]
            found = self._or_wanted(row, choice, rates, chosen)
            is_complete = isinstance(found, Settled) and choice.edge is not Edge.CHANCE
            if not is_complete or all(self._is_fit(trial) for trial in chosen):
                return found
            # Another seed stays at chance with it: the next best rate.
            unfit.add(choice.step)

    def _or_wanted(
        self, row: Row, choice: Choice | None, rates: Mapping[float, float], trials: Sequence[Trial]
    ) -> Settled | list[Trial]:
        wanted = [trial for trial in trials if trial not in self.outcomes]
        if wanted:
            return wanted
        failed = next((self.outcomes[trial].failed for trial in trials if self.outcomes[trial].failed), None)
        return Settled(row=row, choice=choice, rates=rates, trials=() if failed else tuple(trials), failed=failed)

    def _tried(self, trial: Trial, is_unfit: bool) -> Tried:
        if self.outcomes[trial].failed is not None:
            return Tried(mean=float("-inf"), is_fit=False)
        return Tried(mean=self.mean(trial, "val"), is_fit=not is_unfit and self._is_fit(trial))

    def _is_fit(self, trial: Trial) -> bool:
        """Whether a trial neither failed nor stayed at chance."""
        key = (trial, "fit")
        if key not in self._known:
            failed = self.outcomes[trial].failed is not None
            self._known[key] = not failed and not at_chance(self.plan.tasks, self.records(trial, "val"))
        return bool(self._known[key])

    def _ties(self, trials: Mapping[int, Trial]) -> Any:
        def ties(best: int, other: int) -> bool:
            key = (trials[best], trials[other], "tied")
            if key not in self._known:
                both = [[self.records(trials[step], "val")] for step in (best, other)]
                self._known[key] = tied(self.plan.tasks, *both)
            return bool(self._known[key])

        return ties

    def _front(self, reference: Settled) -> Iterator[Settled | Trial]:
        """The points of the front of weights: one seed each, and all seeds of the best mean and the best worst task."""
        first = self.plan.seeds[0]
        rows = self.plan.front_rows()
        trials = {row.name: Trial(row=row.name, rate=reference.rate, seed=first) for row in rows}
        wanted = [trial for trial in trials.values() if trial not in self.outcomes]
        if wanted:
            yield from wanted
            return
        fit = [row for row in rows if self.outcomes[trials[row.name]].failed is None]
        if not fit:
            return
        best = {
            max(fit, key=lambda row: self.mean(trials[row.name], "val")).name,
            max(fit, key=lambda row: min(self.scores(trials[row.name], "val").values())).name,
        }
        for row in fit:
            seeds = self.plan.seeds if row.name in best else (first,)
            own = [Trial(row=row.name, rate=reference.rate, seed=seed) for seed in seeds]
            found = self._or_wanted(row, reference.choice, {}, own)
            yield from found if isinstance(found, list) else [found]
