"""Two tasks from lists of dicts: train one adapter, score each task, and export a plain LoRA for each task.

python examples/your_rows.py [BASE]        # BASE: the name or folder of an encoder; default: MiniLM from the hub
"""

import sys

from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

import lorachord as lc

# Which team answers a message; and, of other messages, whether it can wait.
team = [
    {"body": "The parcel never arrived and the tracking page is empty.", "team": "delivery"},
    {"body": "You charged my card twice for the same order.", "team": "billing"},
    {"body": "The driver left the box at the wrong house.", "team": "delivery"},
    {"body": "The invoice shows the wrong VAT number.", "team": "billing"},
    {"body": "My shipment has been stuck in the depot for a week.", "team": "delivery"},
    {"body": "I was refunded less money than I paid.", "team": "billing"},
    {"body": "The courier came while nobody was home.", "team": "delivery"},
    {"body": "The payment was declined although my card is valid.", "team": "billing"},
]
urgent = [
    {"body": "The machine is smoking, please call me now!", "urgent": "yes"},
    {"body": "Could you tell me your opening hours some time?", "urgent": "no"},
    {"body": "We cannot work at all until this is fixed today.", "urgent": "yes"},
    {"body": "I have a small suggestion for the next catalogue.", "urgent": "no"},
    {"body": "Stop the delivery immediately, the address is wrong!", "urgent": "yes"},
    {"body": "Whenever you have a moment, please send the brochure.", "urgent": "no"},
    {"body": "The server is down and customers are waiting right now.", "urgent": "yes"},
    {"body": "No hurry, but the colour in the photo looks different.", "urgent": "no"},
]
new_team = [
    {"body": "The courier lost my parcel.", "team": "delivery"},
    {"body": "My card was charged for an order that I cancelled.", "team": "billing"},
    {"body": "The shipment went to the wrong address.", "team": "delivery"},
    {"body": "There is a mistake on the invoice.", "team": "billing"},
]
new_urgent = [
    {"body": "Please stop the order immediately!", "urgent": "yes"},
    {"body": "I have a question about the catalogue, no hurry.", "urgent": "no"},
    {"body": "Nobody can work right now, call me!", "urgent": "yes"},
    {"body": "Could you send me a brochure some time?", "urgent": "no"},
]

names = ["team", "urgent"]
hub = sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2"
base = lc.add_heads(AutoModelForSequenceClassification.from_pretrained(hub), dict.fromkeys(names, 2))
model = lc.attach(base, "mtl_lora", tasks=names)
args = TrainingArguments("out", num_train_epochs=20, learning_rate=1e-3, report_to=[], save_strategy="no")
tasks = [lc.Task(name, kind="classification", text="body", label=name) for name in names]
rows = {"train_data": {"team": team, "urgent": urgent}, "eval_data": {"team": new_team, "urgent": new_urgent}}
trainer = lc.MultiTaskTrainer(model, args, tokenizer=AutoTokenizer.from_pretrained(hub), tasks=tasks, **rows)
trainer.train()
print(trainer.evaluate())
print(*(lc.export_lora(model, f"out/loras/{name}", task=name) for name in names))
