"""Model cards: what a folder holds, what it was made for, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.models.resolve import name_on_hub

PIPELINES = {
    "SEQ_CLS": "text-classification",
    "CAUSAL_LM": "text-generation",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
"""What the hub calls the work of a model, by PEFT's type of task. PEFT's others have no name there."""


def write_card(folder: Path, config: PeftConfig, method: str, tasks: Sequence[str], options: Mapping[str, Any]) -> None:
    """Write `README.md` for a saved adapter."""
    cls = get_method(method)
    task_rows = "".join(f"{index}. {name}\n" for index, name in enumerate(tasks))
    by_module = "by module, see adapter_config.json"
    shown = {key: by_module if isinstance(value, dict) else value for key, value in options.items()}
    option_rows = "".join(f"| {key} | {value} |\n" for key, value in sorted(shown.items()))
    example = (
        "import lorachord  # registers the adapter type with PEFT\n"
        "from peft import PeftModel\n\n"
        f'model = PeftModel.from_pretrained(base, "{folder.name}")\n'
    )
    if cls.mixing is Mixing.TASK:
        example += f'with lorachord.on_task(model, "{tasks[0]}"):\n    output = model(**batch)\n'
    _write(
        folder,
        config,
        f"# LoRAchord adapter: {method}\n\nMethod: {cls.paper}. Base model: {_base(config)}.\n\n"
        f"## Use\n\n```python\n{example}```\n\n"
        + (f"## Tasks, in the order of the stacked parameters\n\n{task_rows}\n" if task_rows else "")
        + f"## Options\n\n| option | value |\n|---|---|\n{option_rows}",
    )


def write_export_card(folder: Path, config: PeftConfig, method: str, task: str | None) -> None:
    """Write `README.md` for an exported plain LoRA."""
    for_task = f" for the task {task}" if task is not None else ""
    _write(
        folder,
        config,
        f"# Plain LoRA{for_task}\n\nExported from a LoRAchord adapter ({method}); it needs PEFT alone. "
        f"Base model: {_base(config)}.\n\n```python\nfrom peft import PeftModel\n\n"
        f'model = PeftModel.from_pretrained(base, "{folder.name}")\n'
        "```\n\nThe scale is in `lora_B`, so `lora_alpha` equals the rank.\n",
    )


def _base(config: PeftConfig) -> str:
    name = name_on_hub(config.base_model_name_or_path)
    return f"`{name}`" if name else "not named"


def _write(folder: Path, config: PeftConfig, body: str) -> None:
    path = folder / "README.md"
    if path.is_file():
        # PEFT has written one already: its other metadata stay.
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        card.text = body
    else:
        card = ModelCard(f"---\n{ModelCardData(library_name='peft').to_yaml()}\n---\n\n{body}")
    base, data = name_on_hub(config.base_model_name_or_path), card.data
    assert isinstance(data, ModelCardData)
    data.base_model, data.pipeline_tag = base, PIPELINES.get(str(config.task_type))
    # PEFT's tags name what it was given, which may be a folder here.
    tags = [tag for tag in data.tags or () if not tag.startswith("base_model:")]
    data.tags = list(dict.fromkeys([*tags, *([f"base_model:adapter:{base}"] if base else ()), "lorachord", "lora"]))
    card.save(path)
