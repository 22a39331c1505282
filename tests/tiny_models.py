"""Tiny random models, the same at every call. Knows nothing of this package: exports are tried without it."""

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

ARCHITECTURES = ("bert", "llama", "gpt2")


def tiny(architecture: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model with two blocks and 16 features, in eval mode."""
    torch.manual_seed(seed)
    if architecture == "bert":
        sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
        model = BertForSequenceClassification(BertConfig(**{**sizes, "num_labels": 3, **changes}))
    elif architecture == "llama":
        sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
        special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **special, **changes}))
    else:
        sizes = dict(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        model = GPT2LMHeadModel(GPT2Config(**{**sizes, **special, **changes}))
    return model.eval()


def token_ids(num_samples: int = 4, length: int = 7, seed: int = 1) -> torch.Tensor:
    """Random tokens (B, L) without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 40, (num_samples, length), generator=generator)


def perturb(model: torch.nn.Module, scale: float = 0.05, seed: int = 2) -> None:
    """Move every trainable parameter, so that no update is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                # Drawn in float64, so that the same model in two dtypes is moved to the same place.
                step = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += step.to(parameter.device)
