"""The equation, and what a method says about itself. Depends on torch alone.

    y = W0 x + s * B' core(A' drop(x); x, ctx)          core linear in its first argument

Read `adapter.py` first: its hooks are all that a method may change of this equation. `forward.py` computes it, and
`matrix.py` gives `s B' core A'` as a matrix or as two factors, for merging and export. `context.py` has what a core may
look at, `config.py` how options are declared, `registry.py` methods by their names.

Beside the equation: `tasks.py` and `rows.py` know which task a layer's rows belong to, `probes.py` gives gradients per
task, `init.py` has starts, `steps.py` counts optimizer steps, `budget.py` counts parameters and solves for a rank.

>>> import torch
>>> from lorachord.core import Adapter, LayerSpec, TaskNames, get_method
>>> method = get_method("lora")
>>> issubclass(method, Adapter), method.mixing.value, method.parameters_formula
(True, 'static', 'r*(d_in + d_out)')
"""

from lorachord.core.adapter import Adapter
from lorachord.core.budget import Count, Fit, count_parameters, fit_rank
from lorachord.core.config import LayerSpec, MethodConfig, RankConfig, option
from lorachord.core.context import Batch, Context, Mixing, PenaltyFrom
from lorachord.core.registry import all_methods, get_method, register
from lorachord.core.tasks import TaskNames

__all__ = [
    "Adapter",
    "Batch",
    "Context",
    "Count",
    "Fit",
    "LayerSpec",
    "MethodConfig",
    "Mixing",
    "PenaltyFrom",
    "RankConfig",
    "TaskNames",
    "all_methods",
    "count_parameters",
    "fit_rank",
    "get_method",
    "option",
    "register",
]
