"""Looking at an adapter: what each paper claims to see, as arrays, with thresholds and meanings in words.

`inspect` (`lc.inspect`, `lorachord inspect`) takes a run, a fused or exported adapter, or a model in memory, and makes
the figures that it has. Each figure is a frozen dataclass of arrays, which a function of its own makes:

- `spectra`, `beside`: singular values of the updates, effective ranks, and those of another adapter beside them.
- `overlap`: principal angles between the updates of tasks.
- `routing`: experts, factors or clusters that each task's prompts use.
- `task_ranks`: ThanoRA's entropies and ranks. `masks`: the density of Concrete's masks.
- `conflicts`: cosines of the tasks' gradients by layer and step, from surgery.
- `interference`: what a step for one task does to another.

>>> import torch, transformers, lorachord as lc
>>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
>>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
>>> found = lc.inspect(lc.attach(base, "lora", tasks=["a", "b"], r=2))
>>> found["spectra"].words
'The updates are zero: nothing was trained.'
>>> found["spectra"].values.shape                                   # updates, layers, singular values
(1, 7, 2)
>>> found.absent["overlap"]
'All tasks have the same update, so there is no overlap of several.'
"""

from lorachord.runs.inspect.conflicts import Conflicts, conflicts
from lorachord.runs.inspect.entropies import TaskRanks, task_ranks
from lorachord.runs.inspect.figure import Figure
from lorachord.runs.inspect.inspecting import inspect
from lorachord.runs.inspect.inspection import Inspection
from lorachord.runs.inspect.interference import Interference, interference
from lorachord.runs.inspect.masks import Masks, masks
from lorachord.runs.inspect.routing import Routing, routing
from lorachord.runs.inspect.spectra import Beside, Spectra, beside, spectra
from lorachord.runs.inspect.subspaces import Overlap, overlap

__all__ = [
    "Beside",
    "Conflicts",
    "Figure",
    "Inspection",
    "Interference",
    "Masks",
    "Overlap",
    "Routing",
    "Spectra",
    "TaskRanks",
    "beside",
    "conflicts",
    "inspect",
    "interference",
    "masks",
    "overlap",
    "routing",
    "spectra",
    "task_ranks",
]
