"""What `peers.py` compares with ours: libraries that need an environment of their own, and their adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peers_work import ALPHA, ATTENTION, MLP, NUM_EXPERTS, RANK
from workload import TASKS, adapters_of

Weights = dict[str, Tensor]


def lora_weights(adapter: Any) -> Weights:
    name = adapter.layer.name.replace("model", "base_model.model.model", 1)
    return {f"{name}.lora_A.weight": adapter.down, f"{name}.lora_B.weight": adapter.up}


def mixture_weights(kind: str) -> Callable[[Any], Weights]:
    """Those of `moelora` by MoE-PEFT's names of one of its mixtures."""

    def weights(adapter: Any) -> Weights:
        name = adapter.layer.name.replace("model", kind, 1)
        found = {f"{name}.moe_gate.weight": adapter.router.weight}
        pairs = zip(adapter.down.split(RANK), adapter.up.split(RANK, dim=1), strict=True)
        for expert, (down, up) in enumerate(pairs):
            found |= {f"{name}.experts.{expert}.lora_A.weight": down, f"{name}.experts.{expert}.lora_B.weight": up}
        return found

    return weights


def mtl_lora_weights(adapter: Any) -> Weights:
    """Those of `mtl_lora` by the names of Adapters."""
    name, tasks = adapter.layer.name, [str(task) for task in range(len(TASKS))]
    shared = f"{name}.shared_parameters.{','.join(tasks)}"
    found = {f"{shared}.lora_A": adapter.down, f"{shared}.lora_B": torch.stack(adapter.up.split(RANK, dim=1))}
    for task in tasks:
        found[f"{name}.loras.{task}.weights"] = adapter.mixture[int(task)]
        found[f"{name}.loras.{task}.task_specific.values"] = adapter.transform[int(task)]
    return found


@dataclass(frozen=True)
class Pair:
    """An adapter of another library, by its config, and ours.

    Args:
        weights: those of one of our adapters by its names, where both are the same function.
    """

    row: str
    adapter: dict[str, Any]
    method: str
    options: dict[str, Any]
    weights: Callable[[Any], Weights] | None
    bound: float | None = 1.0

    def start(self, model: nn.Module) -> Weights | None:
        """What the other side starts from to be the same; None where it cannot be."""
        if self.weights is None:
            return None
        found = [self.weights(adapter) for adapter in adapters_of(model)]
        return {name: tensor.detach().clone() for layer in found for name, tensor in layer.items()}


@dataclass(frozen=True)
class Library:
    """One that needs an environment of its own: how to make it, the script that runs in it, and its pairs.

    Args:
        installs: the arguments of one `pip install` after the other; of torch it is to have what we have.
        dropout: its name of it.
        no_dropout: the value that comes closest.
    """

    name: str
    installs: Sequence[Sequence[str]]
    script: str
    dropout: str
    no_dropout: float
    pairs: Sequence[Pair]


def moe_peft(row: str, kind: str, method: str, options: dict[str, Any], weights: Any, **adapter: Any) -> Pair:
    common = {"target_modules": options["target_modules"], "r": RANK, "lora_alpha": ALPHA}
    bound = None if kind == "LORA" else 1.0
    return Pair(f"MoE-PEFT {row}", {"peft_type": kind, **common, **adapter}, method, options, weights, bound)


DENSE = {"num_experts": NUM_EXPERTS, "top_k": NUM_EXPERTS, "balance": 0.0, "contrastive": 0.0}
"""All experts of `moelora` in use, and no losses."""

SPARSE = {**DENSE, "top_k": 2}
MIXTURE = {"num_experts": NUM_EXPERTS, "top_k": 2}

TORCH = [f"torch=={torch.__version__.split('+')[0]}"]

MOE_PEFT = Library(
    "MoE-PEFT",
    (
        TORCH,
        ["transformers==4.46.3", "accelerate", "datasets", "evaluate", "scikit-learn", "sentencepiece", "tiktoken"],
        # Its own bound on torch is older; it works.
        ["--no-deps", "moe-peft==2.0.2"],
    ),
    "peers_moe_peft.py",
    "lora_dropout",
    # It refuses 0. With this nothing is dropped.
    1e-12,
    (
        moe_peft("lora / lora", "LORA", "lora", {"target_modules": [*ATTENTION, *MLP]}, lora_weights),
        moe_peft(
            "mola / moelora, 2 of 8",
            "MOLA",
            "moelora",
            {**SPARSE, "target_modules": [*ATTENTION, *MLP]},
            mixture_weights("mola"),
            **MIXTURE,
        ),
        moe_peft(
            "loramoe / moelora, all 8",
            "LORAMOE",
            "moelora",
            {**DENSE, "target_modules": MLP},
            mixture_weights("loramoe"),
            num_experts=NUM_EXPERTS,
        ),
        moe_peft(
            "mixlora / moelora, 2 of 8",
            "MIXLORA",
            "moelora",
            {**SPARSE, "target_modules": MLP, "balance": 0.001},
            None,
            routing_strategy="mixlora",
            **MIXTURE,
        ),
    ),
)

ADAPTERS = Library(
    "Adapters",
    (TORCH, ["adapters==1.3.0"]),
    "peers_adapters.py",
    "dropout",
    0.0,
    (
        Pair(
            "Adapters mtl_lora / mtl_lora",
            {
                "r": RANK,
                "alpha": ALPHA,
                "n_up_projection": NUM_EXPERTS,
                "weights_sharpness": 0.1,
                # What it adapts of a Llama with these are the linears that ours is given below.
                "attn_matrices": ["q", "k", "v"],
                "intermediate_lora": True,
                "output_lora": True,
            },
            "mtl_lora",
            {
                "tasks": TASKS,
                "num_ups": NUM_EXPERTS,
                "transform": "diagonal",
                "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"],
            },
            mtl_lora_weights,
        ),
    ),
)
LIBRARIES = (MOE_PEFT, ADAPTERS)
