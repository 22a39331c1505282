"""A training loop of your own: name the tasks of a batch, add the method's penalty, and operate on the gradients.

python examples/plain_loop.py [BASE]       # BASE: the name or folder of an encoder; default: MiniLM from the hub
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lorachord as lc

hub = sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2"
tokenizer = AutoTokenizer.from_pretrained(hub)
base = AutoModelForSequenceClassification.from_pretrained(hub, num_labels=2)
model = lc.attach(base, "moelora", tasks=["praise", "length"], r=4, num_experts=4).train()
surgeon = lc.Surgeon(model, rule="ortho_lora")
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

texts = ["good", "a good and long text", "bad", "a bad and long text"] * 2
labels = {"praise": [1, 1, 0, 0], "length": [0, 1, 0, 1]}
# One batch with both tasks, sorted by task: four texts of each.
names = ["praise"] * 4 + ["length"] * 4
batch = tokenizer(texts, padding=True, return_tensors="pt")
batch["labels"] = torch.tensor(labels["praise"] + labels["length"])

for step in range(20):
    with lc.on_task(model, names):
        loss = model(**batch).loss + lc.penalty(model)
    loss.backward()
    operation = surgeon.operate()
    optimizer.step()
    optimizer.zero_grad()
    if step % 5 == 0:
        print(f"step {step}: loss {loss.item():.3f}, conflicts {operation.conflicts:.2f}")
