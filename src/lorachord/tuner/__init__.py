"""The tuner: the only part that knows PEFT's internals."""

from lorachord.tuner.calibration import Calibration
from lorachord.tuner.config import LorachordConfig
from lorachord.tuner.intuition import fit_intuition
from lorachord.tuner.penalty import penalty
from lorachord.tuner.register import register_tuner
from lorachord.tuner.router_load import router_load
from lorachord.tuner.state import on_task
from lorachord.tuner.targets import target_layers

register_tuner()

__all__ = ["Calibration", "LorachordConfig", "fit_intuition", "on_task", "penalty", "router_load", "target_layers"]
