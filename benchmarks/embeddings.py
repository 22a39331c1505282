"""MiniLM tuned on three tasks of embeddings with three losses, scored by sentence-transformers: docs/findings.md.

    python benchmarks/embeddings.py --data DATA --out runs/embeddings [--steps 300] [--seeds 3]

STS-B with CoSENTLoss, MRPC with OnlineContrastiveLoss, and QNLI (a question and the sentence that answers it) with
MultipleNegativesRankingLoss. `lora` is one joint LoRA; `mtl_lora` exports one for each task. Every score is of an
exported folder, loaded by the stock library. What is there already is kept. It needs
`pip install "lorachord[sentence-transformers]"`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from datasets import Dataset, load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import evaluation, losses
from transformers import set_seed

import lorachord as lc
from lorachord.models import fetch
from lorachord.sentence_transformers import MultiTaskSentenceTransformerTrainer, export_lora

TASKS = ("stsb", "mrpc", "qnli")
LOSSES = {
    "stsb": losses.CoSENTLoss,
    "mrpc": losses.OnlineContrastiveLoss,
    "qnli": losses.MultipleNegativesRankingLoss,
}
METRICS = {"stsb": "spearman_cosine", "mrpc": "cosine_ap", "qnli": "cosine_ndcg@10"}
ANSWERS = 0
"""The label of a sentence of QNLI that answers its question."""
METHODS: dict[str, dict[str, Any]] = {"lora": {"r": 8}, "mtl_lora": {"r": 8}}


def rows(data: Path, task: str, split: str) -> Dataset:
    found = load_dataset("parquet", data_files=str(data / f"glue_{task}" / f"{split}.parquet"), split="train")
    if task == "qnli":
        found = found.filter(lambda row: row["label"] == ANSWERS)
        return found.select_columns(["sentence1", "sentence2"])
    if task == "stsb":
        found = found.map(lambda row: {"score": row["label"] / 5}, remove_columns=["label"])
        return found.select_columns(["sentence1", "sentence2", "score"])
    return found.select_columns(["sentence1", "sentence2", "label"])


def evaluators(data: Path) -> dict[str, evaluation.SentenceEvaluator]:
    stsb, mrpc, qnli = (rows(data, task, "dev") for task in TASKS)
    corpus = {text: str(index) for index, text in enumerate(dict.fromkeys(qnli["sentence2"]))}
    return {
        "stsb": evaluation.EmbeddingSimilarityEvaluator(stsb["sentence1"], stsb["sentence2"], stsb["score"]),
        "mrpc": evaluation.BinaryClassificationEvaluator(mrpc["sentence1"], mrpc["sentence2"], mrpc["label"]),
        "qnli": evaluation.InformationRetrievalEvaluator(
            {str(index): text for index, text in enumerate(qnli["sentence1"])},
            {number: text for text, number in corpus.items()},
            {str(index): {corpus[text]} for index, text in enumerate(qnli["sentence2"])},
        ),
    }


def score(folder: Path, task: str, asked: evaluation.SentenceEvaluator) -> float:
    model = SentenceTransformer(str(folder))
    model.max_seq_length = 64
    return float(asked(model)[METRICS[task]])


def train(method: str, seed: int, data: Path, out: Path, steps: int) -> None:
    set_seed(seed)
    model = SentenceTransformer(str(fetch("minilm")))
    model.max_seq_length = 64
    settings = SentenceTransformerTrainingArguments(
        str(out / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=5e-4,
        warmup_steps=steps // 16,
        multi_dataset_batch_sampler="round_robin",
        seed=seed,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
    )
    trainer = MultiTaskSentenceTransformerTrainer(
        model,
        settings,
        train_dataset={task: rows(data, task, "train").shuffle(seed=seed) for task in TASKS},
        loss={task: LOSSES[task](model) for task in TASKS},
        peft_config=lc.LorachordConfig.build(
            method, tasks=list(TASKS), exclude_modules=["pooler.dense"], **METHODS[method]
        ),
    )
    trainer.train()
    for task in TASKS:
        export_lora(model, out / "loras" / task, task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=300, help="of 16 rows of one task; default 300")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    given = parser.parse_args()
    asked, found = evaluators(given.data), dict[str, dict[str, list[float]]]()
    found["base"] = {task: [score(fetch("minilm"), task, asked[task])] for task in TASKS}
    for seed in range(given.seeds):
        for method in METHODS:
            out = given.out / f"{method}_{seed}"
            if not (out / "scores.json").is_file():
                train(method, seed, given.data, out, given.steps)
                scores = {task: score(out / "loras" / task, task, asked[task]) for task in TASKS}
                (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
            for task, value in json.loads((out / "scores.json").read_text()).items():
                found.setdefault(method, {}).setdefault(task, []).append(value)
    print(f"| | {' | '.join(f'{task}, {METRICS[task]}' for task in TASKS)} |\n|---|{'---|' * len(TASKS)}")
    for name, scores in found.items():
        cells = [
            f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "") for values in scores.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
