"""sentence-transformers with a task for each data set: one adapter, and a plain LoRA of each task.

`MultiTaskSentenceTransformerTrainer` takes the place of `SentenceTransformerTrainer` in a script. Each of its data sets
is a task with a loss of its own; the adapter is given by `peft_config`. `with lorachord.on_task(model, name)` embeds on
a task. `export_lora` writes a task's plain LoRA, which sentence-transformers loads without this library.

It needs sentence-transformers: `pip install "lorachord[sentence-transformers]"`. docs/embeddings.md has a whole script.

>>> import lorachord as lc, tempfile, tokenizers, transformers
>>> from datasets import Dataset
>>> from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
>>> from sentence_transformers.sentence_transformer import losses
>>> from lorachord.sentence_transformers import MultiTaskSentenceTransformerTrainer, export_lora
>>> base = tempfile.mkdtemp()
>>> words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "red": 2, "big": 3}, "[UNK]"))
>>> words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
>>> _ = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]").save_pretrained(base)
>>> sizes = dict(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
>>> transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(base)
>>> model = SentenceTransformer(base, device="cpu")
>>> settings = dict(max_steps=2, report_to=[], save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False)
>>> trainer = MultiTaskSentenceTransformerTrainer(
...     model,
...     SentenceTransformerTrainingArguments(tempfile.mkdtemp(), use_cpu=True, **settings),
...     train_dataset={
...         "alike": Dataset.from_list([{"one": "red", "two": "big", "score": 0.2}] * 8),
...         "answers": Dataset.from_list([{"question": "red big", "answer": "red"}] * 8),
...     },
...     loss={"alike": losses.CoSENTLoss(model), "answers": losses.MultipleNegativesRankingLoss(model)},
...     peft_config=lc.LorachordConfig.build("mtl_lora", tasks=["alike", "answers"], exclude_modules=["pooler.dense"]),
... )
>>> trainer.train().global_step  # doctest: +ELLIPSIS
{'train_runtime': ...}
2
>>> with lc.on_task(model, "answers"):
...     model.encode(["red big"]).shape
(1, 16)
>>> export_lora(model, f"{base}/answers", "answers").name
'answers'
"""

from importlib.util import find_spec

if find_spec("sentence_transformers") is None:
    raise ImportError(
        "lorachord.sentence_transformers needs sentence-transformers, which is not installed: "
        'pip install "lorachord[sentence-transformers]".'
    )

from lorachord.sentence_transformers.adapted import export_lora
from lorachord.sentence_transformers.task_trainer import MultiTaskSentenceTransformerTrainer

__all__ = ["MultiTaskSentenceTransformerTrainer", "export_lora"]
