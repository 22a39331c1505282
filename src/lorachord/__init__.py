"""Multi-task low-rank adaptation: every method, behind PEFT's interface.

Importing this package registers its adapter type with PEFT.

>>> import torch, transformers, lorachord as lc
>>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
>>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
>>> model = lc.attach(base, "mtl_lora", tasks=["cola", "sst2"], r=4)
>>> with lc.on_task(model, ["cola", "sst2", "sst2"]):
...     logits = model(input_ids=torch.arange(12).view(3, 4)).logits
>>> tuple(logits.shape)
(3, 4, 32)
>>> type(lc.merge(model, task="cola")).__name__
'LlamaForCausalLM'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import lorachord.fusion as fusion
import lorachord.methods as methods
from lorachord.attach import attach
from lorachord.balance.make import make_balance
from lorachord.calibration import calibrate
from lorachord.core.adapter import Adapter
from lorachord.core.budget import Count, Fit, count_parameters, fit_rank
from lorachord.core.config import LayerSpec, MethodConfig, RankConfig, option
from lorachord.core.context import Context, Mixing
from lorachord.core.registry import all_methods, get_method, register
from lorachord.export import export_lora, merge
from lorachord.fusion import TaskVectors, fuse, load_task_vectors
from lorachord.heads import TaskHeads, add_heads
from lorachord.surgery.surgeon import Surgeon
from lorachord.tuner import Calibration, LorachordConfig, fit_intuition, on_task, penalty, router_load, target_layers

if TYPE_CHECKING:
    from lorachord.data.task import Task
    from lorachord.training.trainer import MultiTaskTrainer

__version__ = "0.1.0"

_ON_DEMAND = {"MultiTaskTrainer": "lorachord.training", "Task": "lorachord.data"}
"""Where the names lie that are imported when they are first asked for."""

__all__ = [
    "Adapter",
    "Calibration",
    "Context",
    "Count",
    "Fit",
    "LayerSpec",
    "LorachordConfig",
    "MethodConfig",
    "Mixing",
    "MultiTaskTrainer",
    "RankConfig",
    "Surgeon",
    "Task",
    "TaskHeads",
    "TaskVectors",
    "add_heads",
    "all_methods",
    "attach",
    "calibrate",
    "count_parameters",
    "export_lora",
    "fit_intuition",
    "fit_rank",
    "fuse",
    "fusion",
    "get_method",
    "load_task_vectors",
    "make_balance",
    "merge",
    "methods",
    "on_task",
    "option",
    "penalty",
    "register",
    "router_load",
    "target_layers",
]


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
