"""One adapter for two tasks of embeddings, each with a data set and a loss of its own, by sentence-transformers.

    python examples/embeddings.py [MODEL]

MODEL is a folder or a name on the hub; the default is a small encoder. It needs
`pip install "lorachord[sentence-transformers]"`.
"""

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses

import lorachord as lc
from lorachord.sentence_transformers import MultiTaskSentenceTransformerTrainer, export_lora

alike = [{"one": one, "two": two, "score": score} for one, two, score in [
    ("A dog runs.", "A dog is running.", 0.9), ("A dog runs.", "Cats sleep.", 0.1), ("It rains.", "Rain falls.", 0.8),
]]  # fmt: skip
answers = [{"question": question, "answer": answer} for question, answer in [
    ("Where is the tower?", "It stands in Paris."), ("Who wrote it?", "A poet did."), ("When was it?", "In 1815."),
]]  # fmt: skip

model = SentenceTransformer(sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2")
trainer = MultiTaskSentenceTransformerTrainer(
    model,
    SentenceTransformerTrainingArguments("out", max_steps=20, learning_rate=1e-3, save_strategy="no", report_to=[]),
    train_dataset={"alike": Dataset.from_list(alike * 8), "answers": Dataset.from_list(answers * 8)},
    loss={"alike": losses.CoSENTLoss(model), "answers": losses.MultipleNegativesRankingLoss(model)},
    peft_config=lc.LorachordConfig.build("mtl_lora", tasks=["alike", "answers"], r=8, exclude_modules=["pooler.dense"]),
)
trainer.train()
with lc.on_task(model, "answers"):
    print(model.similarity(model.encode("Who wrote it?"), model.encode(["A poet did.", "In 1815."])))
for name in ("alike", "answers"):
    print(export_lora(model, f"out/loras/{name}", name))
