"""What the tests of fusion share: adapters of tiny models, and inputs without meaning."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import lorachord as lc
from lorachord.fusion import Merged
from lorachord.fusion.factors import LowRank
from lorachord.fusion.load import load_task_vectors
from lorachord.fusion.predictions import Inputs, entropy, predictions
from lorachord.fusion.task_vectors import Stacked, TaskVectors, held
from tests.tiny_models import perturb, tiny, token_ids

TARGETS = {"bert": ["query", "dense"], "llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}
TASK_TYPES = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM"}


def peft_lora(folder: Path, architecture: str = "bert", seed: int = 1, **settings: Any) -> PeftModel:
    """A trained-looking LoRA of PEFT's own, saved in `folder`."""
    changes = {"num_labels": settings.pop("num_labels")} if "num_labels" in settings else {}
    settings = {"r": 2, "target_modules": TARGETS[architecture], "task_type": TASK_TYPES[architecture], **settings}
    settings.setdefault("fan_in_fan_out", architecture == "gpt2")
    model = get_peft_model(tiny(architecture, **changes), LoraConfig(**settings))
    perturb(model, 0.2, seed)
    model.save_pretrained(folder)
    return model.eval()


def two(folder: Path, architecture: str = "bert", **settings: Any) -> TaskVectors:
    """Task vectors of two adapters."""
    peft_lora(folder / "a", architecture, 1, **settings)
    peft_lora(folder / "b", architecture, 2, **settings)
    return load_task_vectors(tiny(architecture), {"a": folder / "a", "b": folder / "b"})


def toy(ranks: tuple[int, ...] = (2, 3), shape: tuple[int, int] = (6, 5), seed: int = 0) -> TaskVectors:
    """Stacked task vectors of a model of one linear layer."""
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = shape
    factors = [
        LowRank(torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator))
        for rank in ranks
    ]
    tasks = tuple("abcdefgh"[: len(ranks)])
    return TaskVectors(nn.ModuleDict({"linear": nn.Linear(d_in, d_out)}), tasks, {"linear": Stacked.of(factors)}, {})


def toy_dense(deltas: Tensor) -> TaskVectors:
    """Dense task vectors (T, O, D) of a model of one linear layer."""
    num_tasks, d_out, d_in = deltas.shape
    model = nn.ModuleDict({"linear": nn.Linear(d_in, d_out)})
    return TaskVectors(model, tuple("abcdefgh"[:num_tasks]), {"linear": held(deltas)}, {})


def as_dense(vectors: TaskVectors) -> TaskVectors:
    """The same task vectors, multiplied out."""
    layers = {
        name: held(torch.stack([layer.delta(task) for task in range(len(vectors.tasks))]))
        for name, layer in vectors.layers.items()
    }
    return TaskVectors(vectors.base, vectors.tasks, layers, vectors.others)


def inputs(seed: int = 1, kind: str = "classes", **fields: Any) -> Inputs:
    """A batch of four examples for `tiny`."""
    tokens = token_ids(seed=seed)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, -2:] = True
    fields.setdefault("answer_mask", mask if kind == "tokens" else None)
    return Inputs({"input_ids": tokens}, kind, (1,) * len(tokens), 3, **fields)


def data(vectors: TaskVectors, kind: str = "classes", batches: int = 3, **fields: Any) -> dict[str, list[Inputs]]:
    """Batches for each task."""
    return {
        task: [inputs(10 * index + batch, kind, **fields) for batch in range(batches)]
        for index, task in enumerate(vectors.tasks)
    }


def answers(model: nn.Module, task: str | None = None) -> Tensor:
    with torch.no_grad():
        if task is None:
            return model(input_ids=token_ids()).logits
        with lc.on_task(model, task):
            return model(input_ids=token_ids()).logits


def near(found: Tensor, expected: Tensor, atol: float = 1e-6) -> bool:
    """Equal up to rounding: within `atol` of the largest entry (or of 1)."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max()) <= atol * max(1.0, float(expected.abs().max()))


def average_entropy(merged: Merged, batches: dict[str, list[Inputs]]) -> float:
    """Of what a fusion predicts: the mean over tasks and batches."""
    values = []
    for task, own in batches.items():
        with merged.model() as model, lc.on_task(model, task):
            values += [float(entropy(predictions(model, batch))) for batch in own]
    return sum(values) / len(values)
