"""Two instruction sets of different columns, one adapter by TRL's script, and a plain LoRA for each task.

python examples/trl_sft.py [BASE]          # BASE: the name or folder of a decoder; default: SmolLM2 from the hub
"""

import sys

import torch
from datasets import Dataset
from trl import SFTConfig

import lorachord as lc
from lorachord.trl import MultiTaskSFTTrainer

moods = [{"prompt": f"The mood of '{text}':", "completion": f" {mood}"} for text, mood in [
    ("What a day!", "happy"), ("I miss it.", "sad"), ("We did it!", "happy"), ("Nobody came.", "sad"),
]]  # fmt: skip
colours = [{"messages": [
    {"role": "user", "content": f"Which colour has {thing}?"}, {"role": "assistant", "content": colour},
]} for thing, colour in [("snow", "white"), ("coal", "black"), ("grass", "green")]]  # fmt: skip

hub = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
on_gpu = torch.cuda.is_available()
rows = {"mood": Dataset.from_list(moods * 8), "colour": Dataset.from_list(colours * 8)}
trainer = MultiTaskSFTTrainer(
    hub,
    SFTConfig("out", max_steps=20, learning_rate=1e-3, packing=True, max_length=64, bf16=on_gpu, save_strategy="no"),
    train_dataset=rows,
    eval_dataset=rows,
    peft_config=lc.LorachordConfig.build("mtl_lora", tasks=["mood", "colour"], r=8),
    surgery="ortho_lora",
)
trainer.train()
print(trainer.evaluate())
print(*(lc.export_lora(trainer.model, f"out/loras/{name}", task=name) for name in rows))
