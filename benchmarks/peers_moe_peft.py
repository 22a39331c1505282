"""MoE-PEFT's side of `peers.py`, which starts it in an environment that has moe-peft and transformers 4.46."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from moe_peft import LLMBatchConfig, LLMModel, LLMModelInput, adapter_factory
from torch import Tensor

from outside import serve


def build(
    folder: str, batch: dict[str, Any], adapter: dict[str, Any], weights: str | None
) -> tuple[Sequence[Tensor], Callable[[], Tensor]]:
    """What is trained, and the loss of a step.

    Args:
        folder: of the base model.
        batch: its `token_ids`, which are also the labels.
        adapter: MoE-PEFT's config of it.
        weights: file of the adapter's start; None for the library's own.
    """
    model = LLMModel.from_pretrained(folder, device="cpu", load_dtype=torch.float32)
    model.init_adapter(adapter_factory(adapter_name="peer", **adapter), weights and torch.load(weights))
    token_ids_BL = torch.tensor(batch["token_ids"])

    def loss_of() -> Tensor:
        samples = LLMBatchConfig("peer", 0, len(token_ids_BL))
        (output,) = model(LLMModelInput([samples], token_ids_BL, token_ids_BL, torch.ones_like(token_ids_BL)))
        loss: Tensor = output.loss if output.aux_loss is None else output.loss + output.aux_loss
        return loss

    return [tensor for tensor in model.get_adapter_weight_dict("peer").values() if tensor.requires_grad], loss_of


if __name__ == "__main__":
    serve(build)
