"""Gradient surgery: the gradients of each task, and a rule that makes one gradient of them.

Two tasks may pull a shared factor in opposite directions. A `Surgeon` collects the gradient of each task from one
backward pass, compares them factor by factor, and writes the rule's gradient into `.grad`, before clipping and the
optimizer's step. Ortho-LoRA (`ortho_lora`) takes from each task's gradient its part against another task.

>>> import torch, transformers, lorachord as lc
>>> from lorachord.surgery import Surgeon
>>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
>>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
>>> model = lc.attach(base, "lora", tasks=["a", "b"], r=2).train()
>>> surgeon = Surgeon(model, rule="ortho_lora")
>>> with lc.on_task(model, ["a", "a", "b", "b"]):
...     loss = model(input_ids=torch.arange(16).view(4, 4)).logits.square().mean()
>>> loss.backward()
>>> operation = surgeon.operate()          # before clipping and the step
>>> operation.present
(0, 1)

Rules: `ortho_lora`; `significant`, which projects only where a conflict is more than noise; `sum`, the plain gradient;
and TorchJD's `mgda`, `cagrad`, `imtl_g`, `aligned_mtl`, `gradvac` (`pip install 'lorachord[surgery]'`), `upgrad` and
`nash_mtl`, whose solvers are under the GPL (`pip install 'lorachord[surgery-gpl]'`). On real tasks, look at
`operation.conflicts` first: where no pair conflicts, no rule can change anything.
"""

from lorachord.surgery.operation import Operation
from lorachord.surgery.rules import OrthoLora, Rule
from lorachord.surgery.significant import Significant
from lorachord.surgery.surgeon import Surgeon, check_surgery, make_rule
from lorachord.surgery.watch import Watch, Watched, read

__all__ = [
    "Operation",
    "OrthoLora",
    "Rule",
    "Significant",
    "Surgeon",
    "Watch",
    "Watched",
    "check_surgery",
    "make_rule",
    "read",
]
