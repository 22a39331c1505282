"""What leaves a run says what it is: its tasks in `lorachord_task.json`, and in README.md the code that uses it.

The code needs transformers and, for a LoRA, PEFT alone. It predicts as the run does, one example at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from transformers import PretrainedConfig

from lorachord.data.task import Task
from lorachord.runs.recipe import Recipe
from lorachord.runs.usage_code import load_code, predict_code

TASK_FILE = "lorachord_task.json"


def label_names(task: Task) -> dict[str, Any]:
    """`id2label` and `label2id`, as transformers' configs have them."""
    return {"id2label": dict(enumerate(task.labels)), "label2id": {name: i for i, name in enumerate(task.labels)}}


def name_labels(config: PretrainedConfig, recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Give a merged model's config the label names, where its tasks have the same, and the type of its answers."""
    if len({task.labels for task in tasks}) == 1 and tasks[0].labels:
        config.update(label_names(tasks[0]))
    kinds = {"regression": "regression", "classification": "single_label_classification"}
    kinds["pair"] = kinds["classification"]
    found = {kinds.get(task.kind) for task in tasks}
    if recipe.model.kind == "encoder" and len(found) == 1:
        config.update({"problem_type": found.pop()})


def write_usage(folder: Path, recipe: Recipe, tasks: Sequence[Task], *, base: str | None) -> None:
    """Write both files into the folder of an exported LoRA or of a merged model.

    Args:
        tasks: that its weights and its head serve.
        base: where the base of a LoRA is loaded from; None for a merged model.
    """
    described = {
        "model": recipe.model.name,
        "kind": recipe.model.kind,
        "method": recipe.method["name"],
        "max_length": recipe.model.max_length,
        "dtype": recipe.model.dtype,
        "precision": recipe.training.precision,
        "batch_size": recipe.evaluation.batch_size,
        "max_new_tokens": recipe.evaluation.max_new_tokens,
        "chat_template": recipe.model.chat_template,
        "tasks": [_described(task) for task in tasks],
    }
    (folder / TASK_FILE).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _write_card(folder, _text(folder, recipe, tasks, base), base)


def _described(task: Task) -> dict[str, Any]:
    answers = {"answers": list(task.answers)} if task.answers else {}
    names = label_names(task) if task.labels else {}
    columns = {} if task.source is None else dict(task.source.columns)
    return {
        "name": task.name,
        "kind": task.kind,
        "text": list(task.text_columns),
        "choices": task.choices,
        "columns": columns,
        "prefix": task.prefix,
        **names,
        "prompt": task.prompt,
        **answers,
        "metric": task.metric,
    }


def _text(folder: Path, recipe: Recipe, tasks: Sequence[Task], base: str | None) -> str:
    made, needs = ("A plain LoRA", "PEFT alone") if base is not None else ("A plain model", "transformers alone")
    names = ", ".join(task.name for task in tasks)
    facts = [
        f"{made} of {recipe.method['name']} on {recipe.model.name}, for {names}; it needs {needs}.",
        f"Trained with LoRAchord; texts are cut to {recipe.model.max_length} tokens. `{TASK_FILE}` has its tasks.",
    ]
    if base is not None:
        facts.append("The scale is in `lora_B`, so `lora_alpha` equals the rank.")
    parts = [f"# {names}\n\n" + "\n".join(facts), _section("Load", load_code(folder, recipe, tasks[0], base))]
    parts += [_section(task.name, predict_code(recipe, task)) for task in tasks]
    return "\n\n".join(parts) + "\n"


def _section(title: str, code: str) -> str:
    return f"## {title}\n\n```python\n{code.strip()}\n```"


def _write_card(folder: Path, text: str, base: str | None) -> None:
    path = folder / "README.md"
    if path.is_file():
        # The metadata that the export has written stay.
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        card.text = "\n" + text
    else:
        data = ModelCardData(library_name="transformers" if base is None else "peft", tags=["lorachord"])
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    card.save(path)
