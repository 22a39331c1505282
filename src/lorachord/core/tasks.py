"""The ordered names of the tasks that an adapter was built for.

Per-task parameters are stacked by position, so the order is part of an adapter: the same parameters under reordered
names would silently serve every task with another task's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from torch import Tensor

from lorachord.messages import suggest

Tasks = str | int | Sequence[str] | Sequence[int] | Tensor
"""How a user names tasks: one name or index for all samples, or one per sample; or ids per token, a tensor (B, L)."""


@dataclass(frozen=True, slots=True)
class TaskNames:
    """
    Attributes:
        names: unique, in the order of the stacked parameters; may be empty.
        accepts_unknown: whether a name that is not among them is a task of its own (index T) and not an error.
    """

    names: tuple[str, ...] = ()
    accepts_unknown: bool = False

    def __post_init__(self) -> None:
        for name in self.names:
            if not isinstance(name, str) or not name:
                raise ValueError(f"Task names must be non-empty strings; got {name!r}.")
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise ValueError(f"Task names must be text; {name!r} has half of a letter, which UTF-8 cannot write.")
        duplicates = sorted({name for name in self.names if self.names.count(name) > 1})
        if duplicates:
            raise ValueError(f"Task names must be unique; repeated: {', '.join(duplicates)}.")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, task: str | int) -> int:
        """The position of one task, given by name or by position.

        Raises:
            ValueError: no such task; the message lists those there are.
        """
        if isinstance(task, str):
            if task in self.names:
                return self.names.index(task)
            if self.accepts_unknown:
                return len(self.names)
            raise ValueError(f"There is no task {task!r} in this adapter. {suggest(task, self.names)}")
        if isinstance(task, bool) or not isinstance(task, int):
            raise ValueError(f"A task is a name or an index, not {task!r}.")
        if not 0 <= task < len(self.names):
            raise ValueError(f"There is no task {task}: the adapter has {len(self)} tasks, {', '.join(self.names)}.")
        return task

    def indices(self, tasks: Tasks) -> list[int]:
        """The positions of one task or several, those of tokens one sample after another; errors as in `index`."""
        if isinstance(tasks, Tensor):
            if tasks.dim() > 2 or tasks.is_floating_point() or tasks.is_complex():
                raise ValueError(
                    f"Task ids must be a 1-D integer tensor; got {tasks.dtype} of shape {tuple(tasks.shape)}. Those of "
                    "tokens are a 2-D one."
                )
            tasks = tasks.flatten().tolist() if tasks.dim() else tasks.tolist()
        named: list[str | int] = list(tasks) if isinstance(tasks, Sequence) and not isinstance(tasks, str) else [tasks]
        if not named:
            raise ValueError("No task was named: the list is empty.")
        return [self.index(task) for task in named]

    def digest(self) -> list[int]:
        """One 63-bit number per name, in order: saved beside the parameters, to notice a reordering."""
        return [int.from_bytes(sha256(name.encode()).digest()[:8], "big") >> 1 for name in self.names]

    def check_digest(self, saved: Tensor) -> None:
        """Compare with the digest that was saved beside the parameters.

        Raises:
            ValueError: the names differ, or their order does.
        """
        found = saved.tolist()
        if found == self.digest():
            return
        how = "in another order" if sorted(found) == sorted(self.digest()) else "for other tasks"
        raise ValueError(
            f"The saved parameters were stacked {how} than these: {', '.join(self.names)}. Their order is fixed when "
            "an adapter is made; use the task list that was saved with it."
        )


NO_TASKS = TaskNames()
