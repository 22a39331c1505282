"""Tiny random models, the same at every call, and quiet libraries."""

import gc
import os
from pathlib import Path

# Before any import of transformers: no hub, no progress bars in the log.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tests.tiny_data import save_model, write_data

# The models are far too small for two threads to help.
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

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
                parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


@pytest.fixture(autouse=True, scope="session")
def _collected_once() -> None:
    """Every Trainer collects garbage, and would go through all that the libraries have imported each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder."""
    return save_model(tiny("bert"), tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny decoder."""
    return save_model(tiny("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with all tasks of `tiny_data.OWN`."""
    return write_data(tmp_path_factory.mktemp("data"))
