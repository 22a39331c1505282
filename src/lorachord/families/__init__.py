"""The families of methods: the classes that a method derives from, inside this package or outside it.

`docs/add_a_method.md` shows a whole method. Most are one of these, with a few lines of their own:

- `RoutedAdapter`: a router chooses among experts for each token (HydraLoRA, MoSLD, MoDE, MALoRA, MoELoRA).
- `TaskCore`: a matrix between the factors for each task (MTL-LoRA, Allot).
- `PromptLevel`: one choice for each prompt, made once and kept while decoding (MixLoRA, MoR1E).
- `FromInputs`, `FromConflict`: fitted to the tasks before training, by `lorachord.calibrate` (ThanoRA, Allot).
- `JointPenalty`: penalties of all layers in one go.

>>> from lorachord import get_method
>>> from lorachord.families import RoutedAdapter, TaskCore
>>> issubclass(get_method("hydralora"), RoutedAdapter), issubclass(get_method("mtl_lora"), TaskCore)
(True, True)
"""

from lorachord.families.by_prompt import PromptLevel
from lorachord.families.by_task import TaskCore, task_matrices
from lorachord.families.calibrated import Calibrated, FromConflict, FromInputs
from lorachord.families.covariance import Covariance
from lorachord.families.joint_penalty import JointPenalty
from lorachord.families.routed import RoutedAdapter, require_top_k
from lorachord.families.router import Router, RouterConfig

__all__ = [
    "Calibrated",
    "Covariance",
    "FromConflict",
    "FromInputs",
    "JointPenalty",
    "PromptLevel",
    "RoutedAdapter",
    "Router",
    "RouterConfig",
    "TaskCore",
    "require_top_k",
    "task_matrices",
]
