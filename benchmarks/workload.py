"""Random models, the batch that they are fed, and their steps: what benchmarks of time and memory share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import lorachord as lc
from harness import Step
from loops import Loop
from lorachord.core.adapter import Adapter
from lorachord.training.compiled import CompiledBlocks
from lorachord.tuner.layer import LorachordLinear

TASKS = ("a", "b", "c", "d")
NUM_SAMPLES = 16
LENGTHS = {"llama_1b": 256, "llama_8b": 1024}


def llama(quick: bool) -> PreTrainedModel:
    num_layers = 1 if quick else 4
    # The output layer, which has no adapter, keeps its share of the work.
    config = LlamaConfig(vocab_size=250 * num_layers, hidden_size=384, intermediate_size=1024, num_attention_heads=6)
    config.num_hidden_layers = num_layers
    return LlamaForCausalLM(config)


def llama_1b(quick: bool) -> PreTrainedModel:
    config = LlamaConfig(vocab_size=8_000, hidden_size=2048, intermediate_size=8192, num_attention_heads=32)
    config.num_key_value_heads, config.num_hidden_layers = 8, 2 if quick else 8
    return LlamaForCausalLM(config)


def llama_8b(quick: bool) -> PreTrainedModel:
    config = LlamaConfig(vocab_size=8_000, hidden_size=4096, intermediate_size=14336, num_attention_heads=32)
    config.num_key_value_heads, config.num_hidden_layers = 8, 1 if quick else 3
    return LlamaForCausalLM(config)


def minilm(quick: bool) -> PreTrainedModel:
    config = BertConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    config.num_hidden_layers = 1 if quick else 6
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return BertModel(config, add_pooling_layer=False)


ARCHITECTURES: dict[str, Callable[[bool], PreTrainedModel]] = {
    make.__name__: make for make in (llama, minilm, llama_1b, llama_8b)
}


@dataclass
class Workload:
    """An architecture, the batch for it, and the weights whose product with its output is the loss.

    Args:
        name: of the architecture.
        quick: whether a small one will do.
        device: of all.
    """

    name: str
    quick: bool
    device: str = "cpu"

    def __post_init__(self) -> None:
        model = self.build()
        length = LENGTHS.get(self.name, 48 if self.quick else 64)
        shape = NUM_SAMPLES, length, model.config.hidden_size
        self.embeddings_BLD = torch.randn(shape, device=self.device, dtype=model.dtype, requires_grad=True)
        with torch.no_grad():
            self.weight_BLV = torch.randn_like(model(inputs_embeds=self.embeddings_BLD)[0])
        self.task_ids_B = torch.arange(len(TASKS), device=self.device).repeat_interleave(NUM_SAMPLES // len(TASKS))

    @property
    def half(self) -> bool:
        """Whether the model is in bfloat16, and trained under its autocast: on a GPU."""
        return self.device != "cpu"

    def build(self) -> PreTrainedModel:
        torch.manual_seed(0)
        with torch.device(self.device):
            model = ARCHITECTURES[self.name](self.quick)
        model.train()
        return model.to(torch.bfloat16) if self.half else model

    def ours(self, method: str, options: Mapping[str, Any]) -> nn.Module:
        """An adapted model, of four tasks."""
        model = lc.attach(self.build(), method, tasks=TASKS, **options)
        if method == "mor1e":
            # As in training, where embeddings are made once a row: a step is handed them.
            lc.fit_intuition(model, self.prompt_embeddings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Away from zero updates, whose equality would say nothing.
                if parameter.requires_grad and "router" not in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return model

    def loop(self, layer_type: type[Loop], method: str, options: Mapping[str, Any]) -> nn.Module:
        """The weights of `ours` in layers of another type, checked to compute the same (not in bfloat16)."""
        ours, model = self.ours(method, options), self.build().requires_grad_(False)
        for adapter in adapters_of(ours):
            base = model.get_submodule(adapter.layer.name)
            model.set_submodule(adapter.layer.name, layer_type(base, adapter, self.task_ids_B))
        if self.half:
            # Near ties choose other experts.
            return model
        results = []
        for candidate in (ours.eval(), model.eval()):
            output_BLV = self.forward_of(candidate)()
            results.append((output_BLV, *torch.autograd.grad(output_BLV, self.embeddings_BLD, self.weight_BLV)))
            candidate.train()
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-4)
        return model

    @property
    def prompt_embeddings(self) -> Tensor:
        """Embeddings of prompts; the first are those of the batch."""
        return torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).to(self.embeddings_BLD.device)

    def batches(self, num_samples: int, batch_size: int) -> list[dict[str, Tensor]]:
        """Inputs as wide and as long as the batch's, of other texts."""
        like = self.embeddings_BLD
        samples_BLD = torch.randn(num_samples, *like.shape[1:], dtype=like.dtype, device=like.device)
        return [{"inputs_embeds": batch_BLD} for batch_BLD in samples_BLD.split(batch_size)]

    def loss_of(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        output_BLV: Tensor = model(**batch)[0]
        return (output_BLV * self.weight_BLV[: len(output_BLV)]).sum()

    def forward_of(self, model: nn.Module) -> Callable[[], Tensor]:
        adapters = adapters_of(model)
        embedding_BF = self.prompt_embeddings[:NUM_SAMPLES] if adapters and adapters[0].method == "mor1e" else None

        def forward() -> Tensor:
            tasks = lc.on_task(model, self.task_ids_B, embedding=embedding_BF) if adapters else nullcontext()
            with tasks, torch.autocast(self.embeddings_BLD.device.type, torch.bfloat16, enabled=self.half):
                output_BLV: Tensor = model(inputs_embeds=self.embeddings_BLD)[0]
            return output_BLV

        return forward

    def step_of(self, model: nn.Module, *, optimise: bool = True, compiled: bool = False) -> Step:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Fused, as the Trainer has it by default.
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if optimise else None
        loops = [module for module in model.modules() if isinstance(module, Loop)]
        forward, ours = self.forward_of(model), bool(adapters_of(model))
        blocks = CompiledBlocks(model) if compiled else None

        def step() -> None:
            with nullcontext() if blocks is None else blocks.called(model):
                output_BLV = forward()
            loss = (output_BLV * self.weight_BLV).sum()
            penalties = [lc.penalty(model)] if ours else [layer.penalty for layer in loops if layer.penalty is not None]
            sum(penalties, start=loss).backward()
            if optimizer is not None:
                optimizer.step()
            for leaf in (*trained, self.embeddings_BLD):
                leaf.grad = None

        return step


def adapters_of(model: nn.Module) -> list[Adapter]:
    return [adapter for layer in model.modules() if isinstance(layer, LorachordLinear) for adapter in layer.active()]


def saved_bytes_of(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages, other than parameters', that a forward pass keeps for its backward pass."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> None:
        # Holding the storages keeps their addresses from being given out again; without the tensors' place in the
        # graph, which would hold itself for ever.
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        output = forward()
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


def saved_bytes(work: Workload, model: nn.Module) -> int:
    """The same for one of a workload's models."""
    return saved_bytes_of(model, work.forward_of(model))
