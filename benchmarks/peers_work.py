"""The workload of `peers.py`: one batch, and the models that are trained on it here, ours and PEFT's."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PolyConfig, XLoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

import lorachord as lc
from outside import Train, training
from workload import NUM_SAMPLES, TASKS, adapters_of, llama

RANK, ALPHA, NUM_EXPERTS = 8, 16, 8
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


class Workload:
    """One batch, the task of each sample, and the models."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        generator = torch.Generator().manual_seed(0)
        self.token_ids_BL = torch.randint(self.base().config.vocab_size, (NUM_SAMPLES, 64), generator=generator)
        self.task_ids_B = torch.arange(len(TASKS)).repeat_interleave(NUM_SAMPLES // len(TASKS))

    def base(self) -> PreTrainedModel:
        torch.manual_seed(0)
        model = llama(self.quick)
        model.set_attn_implementation("eager")
        # X-LoRA refuses a cache.
        model.config.use_cache = False
        return model

    def train(self, model: nn.Module, **more: Tensor) -> Train:
        ids_BL = self.token_ids_BL
        inputs = {"input_ids": ids_BL, "labels": ids_BL, "attention_mask": torch.ones_like(ids_BL), **more}

        def loss_of() -> Tensor:
            loss: Tensor = model(**inputs).loss + lc.penalty(model)
            return loss

        return training([tensor for tensor in model.train().parameters() if tensor.requires_grad], loss_of)

    def ours(self, method: str, **options: Any) -> PeftModel:
        model = lc.attach(self.base(), method, r=RANK, alpha=float(ALPHA), **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Away from zero updates, whose equality would say nothing.
                if parameter.requires_grad and "router" not in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    def train_ours(self, model: PeftModel) -> Train:
        by_task = adapters_of(model)[0].num_tasks > 0
        return self.train(model, **({"lorachord_tasks": self.task_ids_B} if by_task else {}))

    def poly(self, num_experts: int) -> PeftModel:
        config = PolyConfig(
            task_type="CAUSAL_LM",
            target_modules=[*ATTENTION, *MLP],
            r=RANK,
            n_skills=num_experts,
            n_tasks=len(TASKS),
        )
        return get_peft_model(self.base(), config)

    def xlora(self) -> PeftModel:
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=[*ATTENTION, *MLP], r=RANK, lora_alpha=ALPHA)
        with TemporaryDirectory() as folder:
            # X-LoRA reads its experts from finished adapters.
            get_peft_model(self.base(), lora).save_pretrained(folder)
            base = self.base()
            config = XLoraConfig(
                task_type="CAUSAL_LM",
                hidden_size=base.config.hidden_size,
                adapters={str(expert): folder for expert in range(NUM_EXPERTS)},
                use_trainable_adapters=True,
            )
            return get_peft_model(base, config)
