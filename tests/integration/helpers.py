"""What the integration tests share: logits, adapters beside each other, two-task gradients."""

from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

import lorachord as lc
from lorachord.tuner.layer import LorachordLinear
from tests.conftest import perturb, tiny, token_ids

METHODS = ("lora", "multilora", "mtl_lora", "hydralora", "mosld")
SMALL: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "multilora": {"r": 2, "num_loras": 2},
    "mtl_lora": {"r": 2, "num_ups": 2, "tasks": ["a", "b"]},
    "hydralora": {"r": 2, "num_experts": 2},
    "mosld": {"r": 2, "num_experts": 3},
}


def logits(model: nn.Module, ids: Tensor | None = None, **keywords: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids() if ids is None else ids, **keywords).logits


def adapted(architecture: str, method: str, scale: float = 0.3, **settings: Any) -> peft.PeftModel:
    """A tiny model with a small adapter whose update is far from zero."""
    model = lc.attach(tiny(architecture), method, **{**SMALL[method], **settings})
    perturb(model, scale)
    return model.eval()


def saved(folder: Path, architecture: str, method: str, **settings: Any) -> tuple[Path, Tensor]:
    """An adapter's folder and what its model answers, under task 0 where there are tasks."""
    model = adapted(architecture, method, **settings)
    model.save_pretrained(folder)
    with lc.on_task(model, 0) if method == "mtl_lora" else lc.on_task(model, []) if False else _nothing():
        return folder, logits(model)


def layers(model: nn.Module) -> dict[str, LorachordLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LorachordLinear)}
