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
from lorachord.add_task import add_task
from lorachord.attach import attach
from lorachord.balance import make_balance
from lorachord.calibration import calibrate
from lorachord.core.adapter import Adapter
from lorachord.core.budget import Count, Fit, count_parameters, fit_rank
from lorachord.core.config import LayerSpec, MethodConfig, RankConfig, option
from lorachord.core.context import Context, Mixing, PenaltyFrom
from lorachord.core.registry import all_methods, get_method, register
from lorachord.export import export_lora, merge
from lorachord.families import FromConflict, FromInputs, JointPenalty, PromptLevel, RoutedAdapter, Router, TaskCore
from lorachord.fusion import TaskVectors, fuse, load_task_vectors
from lorachord.heads import TaskHeads, add_heads
from lorachord.methods import (
    Allot,
    CoMoL,
    HydraLoRA,
    LoRA,
    MALoRA,
    MixLoRA,
    MoDE,
    MoELoRA,
    MoR1E,
    MoSLD,
    MTLLoRA,
    MultiLoRA,
    ThanoRA,
)
from lorachord.surgery import Surgeon
from lorachord.tuner import (
    Calibration,
    LorachordConfig,
    fit_intuition,
    on_task,
    penalties,
    penalty,
    router_load,
    target_layers,
)

if TYPE_CHECKING:
    from lorachord.data.task import Task
    from lorachord.runs.compare.command import compare
    from lorachord.runs.compare.comparison import load_comparison
    from lorachord.runs.inspect import inspect
    from lorachord.runs.predictor import load
    from lorachord.runs.report import report
    from lorachord.training.trainer import MultiTaskTrainer

__version__ = "0.1.0"

_ON_DEMAND = {
    "MultiTaskTrainer": "lorachord.training",
    "Task": "lorachord.data",
    "compare": "lorachord.runs.compare.command",
    "inspect": "lorachord.runs.inspect",
    "load": "lorachord.runs.predictor",
    "load_comparison": "lorachord.runs.compare.comparison",
    "report": "lorachord.runs.report",
}
"""Where the names lie that are imported when they are first asked for."""

__all__ = [  # noqa: RUF022
    # Use: put an adapter on a model, name tasks, and take an ordinary model or LoRA away.
    "attach",
    "add_task",
    "LorachordConfig",
    "target_layers",
    "on_task",
    "add_heads",
    "TaskHeads",
    "merge",
    "export_lora",
    "load",
    "inspect",
    "compare",
    "load_comparison",
    "report",
    "fuse",
    "TaskVectors",
    "load_task_vectors",
    "fusion",
    # Train: a trainer, or the pieces for a loop of your own.
    "MultiTaskTrainer",
    "Task",
    "penalty",
    "penalties",
    "Surgeon",
    "make_balance",
    "calibrate",
    "Calibration",
    "fit_intuition",
    "router_load",
    "Count",
    "count_parameters",
    "Fit",
    "fit_rank",
    # Methods, each documented in its class.
    "methods",
    "all_methods",
    "get_method",
    "LoRA",
    "MultiLoRA",
    "ThanoRA",
    "MTLLoRA",
    "Allot",
    "HydraLoRA",
    "MoSLD",
    "MoDE",
    "MALoRA",
    "MoELoRA",
    "CoMoL",
    "MixLoRA",
    "MoR1E",
    # Extend: the classes that a method of your own derives from.
    "register",
    "Adapter",
    "RoutedAdapter",
    "Router",
    "TaskCore",
    "PromptLevel",
    "FromInputs",
    "FromConflict",
    "JointPenalty",
    "MethodConfig",
    "RankConfig",
    "option",
    "Context",
    "LayerSpec",
    "Mixing",
    "PenaltyFrom",
]


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
