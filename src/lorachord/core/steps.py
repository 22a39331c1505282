"""When an optimiser step has been taken, for what lasts exactly one step.

Torch calls a global hook after every step of every optimiser that derives from its own, whatever training loop is
around it. The version counter of a parameter is no substitute: fused optimisers do not move it.
"""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

_taken = 0


def _count(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    global _taken
    _taken += 1


register_optimizer_step_post_hook(_count)


def optimizer_steps() -> int:
    """Steps taken in this process so far, by all optimisers together."""
    return _taken
