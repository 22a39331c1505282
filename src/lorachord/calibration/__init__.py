"""Calibration: measuring the base and its tasks before an adapter is made, for methods that are fitted to them.

ThanoRA looks at the tasks' inputs of each layer (`inputs.py`), Allot at the conflict of the tasks' gradients
(`conflict.py`). `calibrate` runs the measurement and returns a `Calibration`, which `lc.attach` takes. It is small, and
saving it spares the measurement the next time. Recipes do all of this by themselves.

>>> import torch, transformers, lorachord as lc
>>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
>>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
>>> batches = {task: [{"input_ids": torch.randint(32, (4, 8))}] for task in ("a", "b")}
>>> calibration = lc.calibrate(base, "thanora", tasks=["a", "b"], batches=batches, r=2)
>>> model = lc.attach(base, "thanora", tasks=["a", "b"], r=2, calibration=calibration)
"""

from lorachord.calibration.calibrate import calibrate

__all__ = ["calibrate"]
