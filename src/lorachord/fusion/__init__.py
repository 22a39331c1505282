"""Finished adapters into one: a single plain LoRA for several tasks, without joint training.

Each finished adapter adds an update to the base, its *task vector*. Fusing makes one update of several task vectors.
Take it where the adapters are trained already, or where their data may not be brought together. Where they may, compare
with joint training: docs/findings.md has both.

`load_task_vectors` reads the adapters' folders, `fuse` makes the new model. `load_routed_task_vectors` reads one
input-routed adapter and averages its gates on each task's inputs. The methods, by their names in `METHODS`:

- `average`, `task_arithmetic`: weighted sums. They need no data, and the result is exact.
- `ties`, `dare`: drop most entries of each update, then combine the rest. They need no data.
- `adamerging`: learns a coefficient for each task and layer on unlabelled inputs.
- `concrete`: learns such coefficients and a mask over the weights' entries, on unlabelled inputs.
- `collapse`: solves least squares in each layer on unlabelled inputs. It stays nearest to the single adapters.
- `r_mtllmf`: learns coefficients on a few labelled examples and leaves protected layers alone.

Two LoRAs of rank 4 make one of rank 8, which holds their average exactly:

>>> import copy, tempfile, transformers, lorachord as lc
>>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
>>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
>>> with tempfile.TemporaryDirectory() as root:
...     folders = {task: f"{root}/{task}" for task in ("cola", "sst2")}
...     for task, folder in folders.items():
...         lc.attach(copy.deepcopy(base), "lora", tasks=[task], r=4).save_pretrained(folder)
...     vectors = lc.load_task_vectors(base, folders)
>>> model = lc.fuse(vectors, lc.fusion.Average())
>>> type(model).__name__, model.peft_config["default"].r
('PeftModelForCausalLM', 8)
"""

from lorachord.fusion.adamerging import AdaMerging
from lorachord.fusion.arithmetic import Average, Dare, TaskArithmetic, Ties
from lorachord.fusion.collapse import Collapse
from lorachord.fusion.concrete import Concrete
from lorachord.fusion.load import load_task_vectors
from lorachord.fusion.load_routed import load_routed_task_vectors
from lorachord.fusion.merged import Merged
from lorachord.fusion.method import FusionMethod, fuse, merge_vectors
from lorachord.fusion.noise import with_noise
from lorachord.fusion.predictions import Inputs
from lorachord.fusion.r_mtllmf import RMTLLMF
from lorachord.fusion.task_vectors import TaskVectors

METHODS: dict[str, type[FusionMethod]] = {
    cls.name: cls for cls in (Average, TaskArithmetic, Ties, Dare, AdaMerging, Concrete, Collapse, RMTLLMF)
}
"""By their names on the command line."""

__all__ = [
    "METHODS",
    "RMTLLMF",
    "AdaMerging",
    "Average",
    "Collapse",
    "Concrete",
    "Dare",
    "FusionMethod",
    "Inputs",
    "Merged",
    "TaskArithmetic",
    "TaskVectors",
    "Ties",
    "fuse",
    "load_routed_task_vectors",
    "load_task_vectors",
    "merge_vectors",
    "with_noise",
]
