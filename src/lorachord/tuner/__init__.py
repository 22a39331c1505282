"""The tuner: the only part that knows PEFT's internals."""

from lorachord.tuner.on_task import on_task
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.penalty import penalties, penalty
from lorachord.tuner.prompt_clusters import fit_intuition
from lorachord.tuner.register import register_tuner
from lorachord.tuner.router_load import router_load
from lorachord.tuner.saved_calibration import Calibration
from lorachord.tuner.targets import target_layers

register_tuner()

__all__ = [
    "Calibration",
    "LorachordConfig",
    "fit_intuition",
    "on_task",
    "penalties",
    "penalty",
    "router_load",
    "target_layers",
]
