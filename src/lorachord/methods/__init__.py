"""The methods of multi-task low-rank adaptation, one final class in one file each.

Importing this package registers them all by name. A class's docstring has the method's equation, its paper, its
parameters, and when to take it: `help(lc.get_method("mtl_lora"))`, `lorachord methods mtl_lora`, or `docs/methods.md`.

To choose:

- Begin with `lora`. On the real tasks that were tried here no method was visibly ahead of it (`docs/findings.md`).
- Tasks that contradict each other on the same inputs need the task: take `mtl_lora`, or `allot` for some layers alone.
- Where tokens tell the tasks apart, try a router, `hydralora` or `mosld`. The adapter then merges into no weight.
- Where the prompt tells them apart, try `mixlora` or `mor1e`, which choose once for each prompt. Nor do these merge.

The others are there to compare with. Tune the learning rate of each, and that of `lora` first.

>>> from lorachord.methods import MTLLoRA
>>> MTLLoRA.method, MTLLoRA.mixing.value, MTLLoRA.Config(r=4).num_ups
('mtl_lora', 'task', 3)
>>> print(MTLLoRA.__doc__.splitlines()[0])
Each task has a matrix between shared factors, and a mixture of several up-projections.
"""

from lorachord.methods.allot import Allot
from lorachord.methods.comol import CoMoL
from lorachord.methods.hydralora import HydraLoRA
from lorachord.methods.lora import LoRA
from lorachord.methods.malora import MALoRA
from lorachord.methods.mixlora import MixLoRA
from lorachord.methods.mode import MoDE
from lorachord.methods.moelora import MoELoRA
from lorachord.methods.mor1e import MoR1E
from lorachord.methods.mosld import MoSLD
from lorachord.methods.mtl_lora import MTLLoRA
from lorachord.methods.multilora import MultiLoRA
from lorachord.methods.thanora import ThanoRA

__all__ = [
    "Allot",
    "CoMoL",
    "HydraLoRA",
    "LoRA",
    "MALoRA",
    "MTLLoRA",
    "MixLoRA",
    "MoDE",
    "MoELoRA",
    "MoR1E",
    "MoSLD",
    "MultiLoRA",
    "ThanoRA",
]
