"""What the integration tests share."""

from typing import Any

import peft
import torch
from torch import Tensor, nn

import lorachord as lc
from lorachord.tuner.layer import LorachordLinear
from tests.tiny_models import perturb, tiny, token_ids

# Small settings of each method, for models with 16 features.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "multilora": {"r": 2, "num_loras": 2},
    "mtl_lora": {"r": 2, "num_ups": 2, "tasks": ["a", "b"]},
    "hydralora": {"r": 2, "num_experts": 2},
    "mosld": {"r": 2, "num_experts": 3},
    "mode": {"r": 2, "num_experts": 2},
    "malora": {"r": 3, "num_experts": 2, "expert_rank": 2},
    "comol": {"r": 2, "num_experts": 2},
    "moelora": {"r": 2, "num_experts": 2},
    "mixlora": {"r": 2, "num_experts": 3},
    "thanora": {"r": 3, "init": "kaiming", "allocation": "uniform", "tasks": ["a", "b"]},
    "allot": {"r": 2, "num_ups": 2, "choose": "all", "tasks": ["a", "b"]},
}
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "llama": {},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
TASK_TYPES = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM"}


def config(method: str, **settings: Any) -> lc.LorachordConfig:
    return lc.LorachordConfig.build(method, **{**METHODS[method], **settings})


def adapted(architecture: str, method: str, scale: float = 0.3, seed: int = 2, **settings: Any) -> peft.PeftModel:
    """A tiny model with a small adapter whose update is far from zero, in eval mode."""
    model = lc.attach(tiny(architecture), method, **{**METHODS.get(method, {}), **settings})
    perturb(model, scale, seed)
    return model.eval()


def logits(model: nn.Module, **keywords: Any) -> Tensor:
    """Answers to `token_ids()`, without a graph."""
    with torch.no_grad():
        return model(**{"input_ids": token_ids(), **keywords}).logits


def task_logits(model: nn.Module, tasks: Any = 0, **keywords: Any) -> Tensor:
    """Answers under tasks, which methods without task-dependent parts ignore."""
    with lc.on_task(model, tasks):
        return logits(model, **keywords)


def layers(model: nn.Module) -> dict[str, LorachordLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LorachordLinear)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(found: Tensor, expected: Tensor, atol: float = 2e-5) -> bool:
    """Equal up to the order of sums, which follows how a tensor lies in memory (a loaded one lies otherwise)."""
    return torch.allclose(found.detach(), expected.detach(), rtol=0, atol=atol)


def differ(left: Tensor, right: Tensor, least: float = 1e-2) -> bool:
    return float((left - right).detach().abs().max()) > least
