"""Two plain PEFT LoRAs, one a task, made into one without training: which rule loses least?

python examples/fuse_loras.py [BASE]       # BASE: the name or folder of an encoder; default: MiniLM from the hub
"""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoTokenizer

import lorachord as lc

hub = sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2"
batch = AutoTokenizer.from_pretrained(hub)(["one text", "another text"], padding=True, return_tensors="pt")


def embed(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).last_hidden_state


# Stand-ins for adapters that you have trained: of random weights, each pulls the base somewhere.
folders, wanted = {}, {}
for seed, task in enumerate(["first", "second"]):
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    adapted = get_peft_model(AutoModel.from_pretrained(hub), config).eval()
    wanted[task], folders[task] = embed(adapted), f"out/{task}"
    adapted.save_pretrained(folders[task])

base = AutoModel.from_pretrained(hub).eval()
away = {task: float((embed(base) - outputs).norm()) for task, outputs in wanted.items()}
vectors = lc.load_task_vectors(base, folders)
for rule in (lc.fusion.Average(), lc.fusion.TaskArithmetic(scale=1.0), lc.fusion.Ties()):
    fused = lc.fuse(vectors, rule)
    distances = [float((embed(fused) - wanted[task]).norm()) / away[task] for task in folders]
    print(f"{rule.name:16} distance from each adapter, over the base's: {distances[0]:.2f}, {distances[1]:.2f}")
fused.save_pretrained("out/fused")
