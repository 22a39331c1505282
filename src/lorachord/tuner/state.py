"""What the adapted layers of one model share: tasks and prompts of the current forward pass, for each adapter name."""

from __future__ import annotations

from torch import Tensor

from lorachord.core.context import Context, PenaltyFrom
from lorachord.core.tasks import TaskNames, Tasks
from lorachord.tuner.callers import Caller, Contexts
from lorachord.tuner.prompts import Prompts

HEADS = ""
"""In the place of an adapter's name: the tasks of the heads, which are there whatever adapter is active."""


class SharedState:
    """Shared by reference among the layers of one model; one for each model, whatever adapters it has.

    Attributes:
        task_names: the tasks of each adapter.
        penalty_from: the source of each adapter's penalty.
        penalty_asked: whether `penalty` was ever asked for; `trained` whether a pass in training came before.
        unverified: the adapters whose saved task order has not been compared with their task names yet.
        caller: what differs between those who call the model at the same time.
        prompts: for adapters that choose by prompt.
    """

    def __init__(self) -> None:
        self.task_names: dict[str, TaskNames] = {}
        self.penalty_from: dict[str, PenaltyFrom] = {}
        self.penalty_asked = self.trained = False
        self.unverified: set[str] = set()
        self.caller = Caller()
        self.prompts = Prompts(self.caller)

    @property
    def named(self) -> Contexts:
        """The contexts that the caller's `on_task` has set."""
        return self.caller.named.contexts

    @property
    def contexts(self) -> Contexts:
        """Those of the caller's pass: `named`, or the forward's keyword, with the pass's token mask and prompts."""
        contexts = self.caller.passing.contexts
        return self.named if contexts is None else contexts

    def forget(self, name: str) -> None:
        """Drop an adapter."""
        self.task_names.pop(name, None)
        self.penalty_from.pop(name, None)
        self.unverified.discard(name)
        self.prompts.forget(name)

    def resolve(self, tasks: Tasks, active: list[str]) -> Contexts:
        """The contexts in which the samples have these tasks, for each adapter by its own task list.

        Raises:
            ValueError: an active adapter does not have a task. Inactive ones are then left without.
        """
        contexts = {}
        for name, task_names in self.task_names.items():
            if not len(task_names):
                continue
            try:
                ids = task_names.indices(tasks)
                if isinstance(tasks, Tensor) and tasks.dim() == 2:
                    rows = [ids[start : start + tasks.shape[1]] for start in range(0, len(ids), tasks.shape[1])]
                    contexts[name] = Context.of_tokens(rows)
                else:
                    contexts[name] = Context.of_tasks(ids)
            except ValueError:
                if name in active:
                    raise
        return contexts
