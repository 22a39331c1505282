"""How well MoELoRA's contrastive loss is estimated from few tokens of few texts: the tables of docs/findings.md.

    python benchmarks/contrast.py --data DATA --out runs/contrast

MiniLM with MoELoRA at its defaults is trained on four GLUE tasks, on texts of up to 128 tokens. Then, for batches of
one task's longest texts of val, the gradient of the contrastive loss with respect to all factors is made of a few
tokens of each text, or of half of the texts, and of all of them, and compared. The loss of other texts sets the scale:
how far the gradients of two batches lie apart, of all tokens both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

import lorachord as lc
from lorachord.messages import table
from lorachord.runs.recipe import Recipe, recipe_from
from lorachord.runs.tasksets import load_data
from lorachord.runs.train import train
from lorachord.runs.use import load_run
from lorachord.tuner.layer import LorachordLinear

TASKS = ("glue_sst2", "glue_mrpc", "glue_qnli", "glue_stsb")
LENGTH, BATCH, BATCHES = 128, 16, 6
CHOICES = [*((num_tokens, BATCH) for num_tokens in (8, 16, 24, 32, 48, 64)), (16, BATCH // 2), (LENGTH, BATCH // 2)]
"""Of how many tokens and texts, at most."""


def recipe(steps: int) -> Recipe:
    tree = {
        "model": {"name": "minilm", "kind": "encoder", "heads": "per_task", "max_length": LENGTH},
        "tasks": {"suite": "glue", "only": list(TASKS), "max_rows": 1000},
        "method": {"name": "moelora"},
        "mixture": {"batches": "mixed"},
        "training": {"max_steps": steps, "batch_size": BATCH, "learning_rate": 1e-3},
        "evaluation": {"max_rows": 100},
    }
    return recipe_from(tree)


def gradient(
    model: nn.Module, batch: Mapping[str, Tensor], num_tokens: int = LENGTH, num_texts: int = BATCH
) -> tuple[float, Tensor]:
    """The contrastive loss of at most so many tokens of at most so many texts, and its gradient."""
    limits = {"contrastive_tokens": num_tokens, "contrastive_sequences": num_texts}
    factors = []
    for layer in model.modules():
        for adapter in layer.active() if isinstance(layer, LorachordLinear) else ():
            # Without the balance loss, which is its router's.
            adapter.config = adapter.router.config = replace(adapter.config, balance=0.0, **limits)
            factors += [adapter.down, adapter.up]
    inputs = {**batch}
    with lc.on_task(model, inputs.pop("tasks")):
        model(**inputs)
    loss = lc.penalty(model)
    return float(loss), torch.cat([part.flatten() for part in torch.autograd.grad(loss, factors)]).double()


def cosine(first: Tensor, second: Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


def rows(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Iterator[list[str]]:
    """Tokens, texts, loss, and of the gradient, against that of all: cosine, and norm over norm."""
    every = [gradient(model, batch) for batch in batches]
    for num_tokens, num_texts in CHOICES:
        some = [gradient(model, batch, num_tokens, num_texts) for batch in batches]
        pairs = [(few, full) for (_, few), (_, full) in zip(some, every, strict=True)]
        angle = fmean(cosine(few, full) for few, full in pairs)
        length = fmean(float(few.norm() / full.norm()) for few, full in pairs)
        chosen = "all" if num_tokens == LENGTH else f"{num_tokens}", f"{num_texts}"
        yield [*chosen, f"{fmean(loss for loss, _ in some):.4f}", f"{angle:.2f}", f"{length:.2f}"]
    yield ["all", f"{BATCH}", f"{fmean(loss for loss, _ in every):.4f}", "1", "1"]
    apart = fmean(cosine(first, second) for (_, first), (_, second) in combinations(every, 2))
    yield ["all", f"{BATCH} others", "", f"{apart:.2f}", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with a folder of files per task")
    parser.add_argument("--out", type=Path, required=True, help="where the run is kept")
    parser.add_argument("--steps", type=int, default=100, help="of training; default: 100")
    parser.add_argument("--task", default="glue_qnli", choices=TASKS, help="whose texts; default: glue_qnli")
    chosen = parser.parse_args()
    made = recipe(chosen.steps)
    run = train(made, chosen.out / f"steps_{chosen.steps}", data_dir=chosen.data, resume=True)
    model, collate, tasks = load_run(run.path)
    index = [task.name for task in tasks].index(chosen.task)
    texts = load_data(made, tasks, chosen.data).split("val", None, made.tasks.seed)[index]
    examples = [{**texts[row], "task": index} for row in range(len(texts))]
    examples.sort(key=lambda example: len(example["first"] + example["second"]), reverse=True)
    batches = []
    for start in range(BATCHES):
        # Every sixth, so that batches are alike in length.
        batch = collate(examples[start : BATCH * BATCHES : BATCHES])
        batches.append({name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "tasks")})
    model.train().requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    length = fmean(float(batch["attention_mask"].sum(1).float().mean()) for batch in batches)
    print(f"{chosen.task}, {chosen.steps} steps, {length:.0f} tokens a text")
    print(table([["tokens", "texts", "loss", "cosine", "norm"], *rows(model, batches)]))


if __name__ == "__main__":
    main()
