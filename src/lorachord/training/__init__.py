"""Training and scoring one model on many tasks, over transformers' Trainer.

`MultiTaskTrainer` takes a model with an adapter, transformers' `TrainingArguments`, a tokenizer, the tasks, and the
rows of each task by its name. It reads and checks the rows, mixes the tasks in batches, and names the task of every row
to the adapter and to the heads. The loss of a step is the mean over the tasks of their own mean losses, plus the
adapter's penalties. `evaluate` gives each task's metric, their mean and the worst.

The model is a sequence classifier (`EncoderBatches`, with a head for each task by `lc.add_heads`) or a causal language
model (`DecoderBatches`, which reads a prompt and writes its answer). These two classes hold all that differs between
them: batches, losses, predictions. A surgeon for the tasks' gradients (`lc.Surgeon`) and a balance of their losses
(`lc.make_balance`) are arguments of the trainer. `predict` and `score_records` score a model without a trainer.

>>> import lorachord as lc, tempfile, tokenizers, transformers
>>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "late": 2, "good": 3}, "[UNK]"))
>>> words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
>>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
>>> sizes = dict(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
>>> base = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))

>>> complaints = [{"body": f"late {n}", "team": "delivery"} for n in range(20)]
>>> complaints += [{"body": f"wrong {n}", "team": "billing"} for n in range(20)]
>>> stars = [{"review": f"good {n}", "label": 5.0} for n in range(20)] + [{"review": "bad", "label": 1}]
>>> model = lc.attach(lc.add_heads(base, {"complaints": 2, "stars": 1}), "mtl_lora", tasks=["complaints", "stars"])
>>> settings = dict(max_steps=2, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True)
>>> trainer = lc.MultiTaskTrainer(
...     model,
...     transformers.TrainingArguments(tempfile.mkdtemp(), **settings),
...     tokenizer=tokenizer,
...     tasks=[
...         lc.Task("complaints", kind="classification", text="body", label="team"),
...         lc.Task("stars", kind="regression", text="review"),
...     ],
...     train_data={"complaints": complaints, "stars": stars},
... )
>>> steps = trainer.train()  # doctest: +ELLIPSIS
{'train_runtime': ...}
>>> steps.global_step
2
>>> list(trainer.evaluate())  # doctest: +ELLIPSIS
{'eval_complaints': ...}
['eval_complaints', 'eval_stars', 'eval_mean', 'eval_worst', 'epoch']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorachord.training.decoder import DecoderBatches
from lorachord.training.encoder import EncoderBatches
from lorachord.training.model_kind import ModelKind
from lorachord.training.scoring import predict, score_records

if TYPE_CHECKING:
    from lorachord.training.trainer import MultiTaskTrainer

__all__ = ["DecoderBatches", "EncoderBatches", "ModelKind", "MultiTaskTrainer", "predict", "score_records"]


def __getattr__(name: str) -> Any:
    # transformers' Trainer takes seconds to import, and scores are read and compared without it.
    if name == "MultiTaskTrainer":
        return import_module("lorachord.training.trainer").MultiTaskTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
