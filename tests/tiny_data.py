"""Tasks that tiny models can learn: a tokenizer of words, rows whose first word decides, and folders of such tasks."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lorachord.data.task import Source, Task
from lorachord.runs.recipe import Recipe, recipe_from

FILLERS = ("up", "down")
WORDS = ["red", "blue", "big", "small", "yes", "no", *FILLERS, "one", "two"]
WORDS += ["Options", "Answer", ":", "or", ",", ".", "-"]
FIRST_WORDS = {"colour": ("red", "blue"), "size": ("big", "small"), "echo": ("up", "down")}
"""The first word of a text whose label is yes, first, 1, and of the others; "one" and "two" for other tasks."""

OWN: dict[str, dict[str, Any]] = {
    "colour": {"kind": "classification", "text": ["sentence1"], "labels": ["no", "yes"]},
    "size": {"kind": "pair", "text": ["sentence1", "sentence2"], "labels": ["no", "yes"]},
    "number": {"kind": "regression", "text": ["sentence1"]},
    "choice": {"kind": "multiple_choice", "text": ["sentence1"]},
    "echo": {"kind": "generation", "text": ["sentence1"]},
}
"""The fields of a task in a recipe's `own`, by its name."""
SUFFIXES = {"colour": ".jsonl", "size": ".csv", "number": ".parquet", "choice": ".parquet", "echo": ".jsonl"}
SIZES = {"train": 72, "dev": 24}


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[EOS]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    """A model's folder with the tokenizer beside."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def rows(task: Task, size: int, seed: int) -> list[dict[str, Any]]:
    """The first word decides: red, big and one are yes, first, 1; the others no, second, 0."""
    generator = torch.Generator().manual_seed(seed)
    yes, no = FIRST_WORDS.get(task.name, ("one", "two"))
    made = []
    for index in range(size):
        positive = bool(torch.rand((), generator=generator) < 0.5)
        filler = FILLERS[int(torch.randint(2, (), generator=generator))]
        first = yes if positive else no
        row: dict[str, Any] = {"sentence1": f"{first} {filler}", "sentence2": filler, "idx": index}
        row["choices"] = ["up", "down", "yes"][: 2 + index % 2]
        answers = {"regression": float(positive), "generation": first}
        row["label"] = answers.get(task.kind, int(positive))
        made.append(row)
    return made


def own(*names: str) -> list[dict[str, Any]]:
    """Tasks for a recipe's `own`. Their groups are rows, since there are but four texts."""
    return [{"name": name, "source": {"path": name}, "group": "idx", **OWN[name]} for name in names]


def task_of(fields: dict[str, Any]) -> Task:
    """One of `own` as a task."""
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Task(**{**fields, **lists, "source": Source(**fields["source"])})


def write_rows(path: Path, made: list[dict[str, Any]]) -> None:
    """Rows as jsonl, csv or parquet, by the path's suffix; csv without the column of lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(made), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    else:
        names = [name for name in made[0] if name != "choices"]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(made)


def write_data(folder: Path, *names: str, **sizes: int) -> Path:
    """A data folder with a folder for each task; sizes by split, 72 rows for train and 24 for dev unless given."""
    for task in map(task_of, own(*(names or OWN))):
        for seed, (split, size) in enumerate({**SIZES, **sizes}.items()):
            write_rows(folder / task.name / f"{split}{SUFFIXES[task.name]}", rows(task, size, seed))
    return folder


def tree(model: Path, /, *names: str, kind: str = "encoder", **parts: Any) -> dict[str, Any]:
    """A recipe's plain data: six steps of LoRA unless the parts say otherwise; parts add to the mappings here."""
    made: dict[str, Any] = {
        "model": {"name": str(model), "kind": kind, "max_length": 32},
        "tasks": {"own": own(*names)},
        "method": {"name": "lora", "r": 2},
        "training": {"max_steps": 6, "batch_size": 16, "learning_rate": 1e-2, "log_every": 1},
    }
    for name, part in parts.items():
        merges = isinstance(part, dict) and name in made and name != "method"
        made[name] = {**made[name], **part} if merges else part
    return made


def recipe(model: Path, /, *names: str, **parts: Any) -> Recipe:
    """The same as a recipe."""
    return recipe_from(tree(model, *names, **parts))


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + ' ' + eos_token }}"
    "{% endgeneration %}{% else %}{{ message['content'] }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
"""One turn behind another, each behind its speaker; the assistant's ends with the end of a text."""


def chat(asked: str, answer: str) -> list[dict[str, str]]:
    """Two turns."""
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
