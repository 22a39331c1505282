"""The tuner: the only part that knows PEFT's internals."""

from lorachord.tuner.config import LorachordConfig
from lorachord.tuner.register import register_tuner
from lorachord.tuner.state import on_task, penalty
from lorachord.tuner.targets import target_layers

register_tuner()

__all__ = ["LorachordConfig", "on_task", "penalty", "target_layers"]
