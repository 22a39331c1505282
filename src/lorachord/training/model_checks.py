"""Whether a model can learn the tasks that it is given: asked before anything is made."""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.training.model_kind import ModelKind, base_of
from lorachord.tuner.peft_config import LorachordConfig


def check_model(kind: ModelKind, model: nn.Module) -> None:
    """Whether a model's lengths, adapters and heads fit the tasks.

    Raises:
        ValueError: `max_length` beyond the model's positions; an adapter with parameters for other tasks, or for these
            in another order; or as the kind's own `check`.
    """
    base = base_of(model)
    longest = getattr(base.config, "max_position_embeddings", None)
    if longest is not None and kind.max_length > longest:
        raise ValueError(
            f"max_length is {kind.max_length}, but {type(base).__name__} takes at most {longest} tokens: give "
            f"max_length={longest} or less."
        )
    if isinstance(model, PeftModel):
        for name in model.active_adapters:
            config = model.peft_config[name]
            if isinstance(config, LorachordConfig) and get_method(config.method).mixing is Mixing.TASK:
                _check_tasks(config, [task.name for task in kind.tasks])
    kind.check(base)


def _check_tasks(config: LorachordConfig, names: list[str]) -> None:
    if config.tasks != names:
        raise ValueError(
            f"{config.method} has parameters for the tasks {', '.join(config.tasks or ())}, and is trained on "
            f"{', '.join(names)}: give both the same tasks in the same order, lc.attach(..., tasks={names})."
        )
