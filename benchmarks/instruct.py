"""SmolLM2-135M tuned on three instruction sets by TRL, scored by the LM Evaluation Harness: docs/findings.md.

    python benchmarks/instruct.py --data DATA --out runs/instruct [--steps 200] [--items 300]

PIQA, ARC-easy and SST-2 as prompt and completion. `lora`, and `mtl_lora` with Ortho-LoRA, each export one plain LoRA a
task. The harness's own model type `hf` reads each of them, without this library, and is asked its task's dev rows; the
base is asked all three. What is there already is kept. It needs `pip install "lorachord[trl,harness]"`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from datasets import Dataset, load_dataset
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig

import lorachord as lc
from lorachord.models import fetch
from lorachord.trl import MultiTaskSFTTrainer

TASKS = {"piqa": "cs_piqa", "arc_easy": "cs_arc_easy", "sst2": "glue_sst2"}
"""By the folder of the data."""
METHODS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "lora": ("lora", {"r": 8}, None),
    "mtl_lora, Ortho-LoRA": ("mtl_lora", {"r": 8}, "ortho_lora"),
}
"""By the name of the row: the method, its options, and the rule of surgery."""
SENTIMENT = ["negative", "positive"]
TASK_FILE: dict[str, Any] = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
"""Of the harness."""


def item(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a prompt, its options and the number of the right one."""
    if task == "sst2":
        return {"prompt": f"Review: {row['sentence1']}\nSentiment:", "options": SENTIMENT, "label": row["label"]}
    return {"prompt": f"Question: {row['question']}\nAnswer:", "options": row["choices"], "label": row["label"]}


def items(data: Path, task: str, split: str, most: int) -> list[dict[str, Any]]:
    rows = load_dataset("parquet", data_files=str(data / TASKS[task] / f"{split}.parquet"), split="train")
    return [item(task, row) for row in rows.shuffle(seed=0).select(range(min(most, len(rows))))]


def write_task_files(data: Path, out: Path, most: int) -> Path:
    """What the harness asks: its task files, and the rows beside them."""
    out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        file = out / f"{task}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in items(data, task, "dev", most)))
        told = {**TASK_FILE, "task": f"own_{task}", "dataset_kwargs": {"data_files": {"test": str(file.absolute())}}}
        (out / f"own_{task}.yaml").write_text(yaml.safe_dump(told))
    return out


def train(row: str, base: Path, data: Path, out: Path, steps: int) -> None:
    """Tune with TRL, and export a plain LoRA for each task."""
    method, options, rule = METHODS[row]
    set_seed(0)
    sets = {
        task: Dataset.from_list(
            [
                {"prompt": each["prompt"], "completion": f" {each['options'][each['label']]}"}
                for each in items(data, task, "train", 1000)
            ]
        )
        for task in TASKS
    }
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    settings = SFTConfig(
        str(out / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=5e-4,
        lr_scheduler_type="linear",
        warmup_steps=steps // 16,
        bf16=False,
        max_length=128,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=20,
        report_to="none",
    )
    trainer = MultiTaskSFTTrainer(
        model,
        settings,
        train_dataset=sets,
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=lc.LorachordConfig.build(method, tasks=list(TASKS), **options),
        surgery=rule,
        mixture={"sampling": "uniform"},
    )
    trainer.train()
    for task in TASKS:
        lc.export_lora(trainer.model, out / "loras" / task, task=task)


def score(base: Path, lora: Path | None, task: str, files: Path) -> dict[str, tuple[float, float]]:
    """What the harness finds: by metric, the score and its standard error."""
    model = {"pretrained": str(base), "dtype": "bfloat16", **({"peft": str(lora)} if lora else {})}
    told = lm_eval.simple_evaluate(
        model="hf",
        model_args=model,
        tasks=[f"own_{task}"],
        task_manager=TaskManager(include_path=str(files), include_defaults=False),
        batch_size=8,
        device="cuda" if torch.cuda.is_available() else "cpu",
        log_samples=False,
    )
    found = told["results"][f"own_{task}"]
    return {metric: (found[f"{metric},none"], found[f"{metric}_stderr,none"]) for metric in ("acc", "acc_norm")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=200, help="of 8 rows; default 200")
    parser.add_argument("--items", type=int, default=300, help="of dev, for each task; default 300")
    given = parser.parse_args()
    base, files = fetch("smollm2-135m"), write_task_files(given.data, given.out / "tasks", given.items)
    for row in ("base", *METHODS):
        out = given.out / row.replace(", ", "_")
        loras, kept = out / "loras", out / "scores.json"
        if row != "base" and not all((loras / task).is_dir() for task in TASKS):
            train(row, base, given.data, out, given.steps)
        if not kept.is_file():
            found = {task: score(base, None if row == "base" else loras / task, task, files) for task in TASKS}
            out.mkdir(exist_ok=True)
            kept.write_text(json.dumps(found, indent=2) + "\n")
    print(f"| | {' | '.join(f'{task}, {metric}' for task in TASKS for metric in ('acc', 'acc_norm'))} |")
    print(f"|---|{'---|' * 2 * len(TASKS)}")
    for row in ("base", *METHODS):
        found = json.loads((given.out / row.replace(", ", "_") / "scores.json").read_text())
        cells = [f"{value:.3f} ± {1.96 * error:.3f}" for task in TASKS for value, error in found[task].values()]
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
