"""The number of optimizer steps taken, for anything that lasts exactly one step.

Torch calls a global hook after every step of every optimizer that derives from its own, whatever training loop is
around it. The version counter of a parameter is no substitute: fused optimizers do not move it.
"""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

_taken = _before = 0


def _count(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    global _taken
    _taken += 1


register_optimizer_step_post_hook(_count)


def optimizer_steps() -> int:
    """Steps taken in this process so far, by all optimizers together."""
    return _taken


def steps_before() -> int:
    """Steps that the present run had taken before this process went on with it."""
    return _before


def go_on_from(step: int) -> None:
    """A run begins, or goes on after `step` steps of another process; a trainer says so before its first step."""
    global _before
    _before = step
