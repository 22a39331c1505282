"""The side of Adapters in `peers.py`, which starts it in an environment that has adapters and transformers 4.57."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import adapters
import torch
from adapters.composition import MultiTask
from torch import Tensor
from transformers import AutoModelForCausalLM

from outside import serve


def build(
    folder: str, batch: dict[str, Any], adapter: dict[str, Any], weights: str | None
) -> tuple[Sequence[Tensor], Callable[[], Tensor]]:
    """What is trained, and the loss of a step.

    Args:
        folder: of the base model.
        batch: its `token_ids`, which are also the labels, and the `task_ids` of its samples.
        adapter: arguments of the config of MTL-LoRA.
        weights: file of the adapter's start; None for the library's own.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    adapters.init(model)
    tasks = [str(task) for task in sorted(set(batch["task_ids"]))]
    for task in tasks:
        model.add_adapter(task, config=adapters.MTLLoRAConfig(**adapter))
    model.share_parameters(tasks)
    model.train_adapter(MultiTask(*tasks))
    model.train()
    if weights is not None:
        unexpected = model.load_state_dict(torch.load(weights), strict=False).unexpected_keys
        assert not unexpected, unexpected
    token_ids_BL, task_ids_B = (torch.tensor(batch[name]) for name in ("token_ids", "task_ids"))
    inputs = {"input_ids": token_ids_BL, "labels": token_ids_BL, "attention_mask": torch.ones_like(token_ids_BL)}

    def loss_of() -> Tensor:
        loss: Tensor = model(**inputs, task_ids=task_ids_B).loss
        return loss

    return [tensor for tensor in model.parameters() if tensor.requires_grad], loss_of


if __name__ == "__main__":
    serve(build)
