"""The tuner: the adapter type that PEFT and transformers see. The only part that knows PEFT's internals.

Importing this package registers it: `PeftModel.from_pretrained` then loads a folder that was saved with it.
`LorachordConfig` is its config, `lorachord_model.py` its model, `layer.py` the layer that stands in a linear's place.
`on_task` names the task of each sample of the passes inside it; `passes.py` lays tasks over the rows of every layer.
`penalty` is the sum of the method's own losses after a pass.

>>> import torch, transformers
>>> from peft import get_peft_model
>>> from lorachord.tuner import LorachordConfig, on_task
>>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
>>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
>>> model = get_peft_model(base, LorachordConfig.build("mtl_lora", tasks=["a", "b"], r=2, task_type="CAUSAL_LM"))
>>> with on_task(model, "b"):
...     tuple(model(input_ids=torch.arange(4).view(1, 4)).logits.shape)
(1, 4, 32)
"""

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
