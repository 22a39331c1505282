"""Options behind one reading of the prompt score as each option alone, in bounded memory."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

import lorachord as lc
from lorachord.training.option_scores import Question, score_options
from tests.tiny_models import tiny

SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
QUESTIONS = [
    Question([3, 4, 5, 6, 7, 8], [[9], [10, 11, 12], [13, 14]]),
    Question([5], [[9, 9], [9]]),
    Question([8, 7, 6], [[20, 21, 22, 23], [24], [25, 26], [27]]),
]


def nothing(places: Sequence[int], prompt_mask_BL: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


def alone(model: nn.Module, question: Question, option: list[int]) -> float:
    """One option, one row, by the book."""
    ids = torch.tensor([question.prompt + option])
    with torch.no_grad():
        log_LV = F.log_softmax(model(input_ids=ids).logits[0].float(), dim=1)
    start = len(question.prompt) - 1
    return float(sum(log_LV[start + place, token] for place, token in enumerate(option)))


def architecture(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "llama":
        return tiny("llama").eval()
    configs: dict[str, Any] = {
        "gpt2": transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64),
        "opt": transformers.OPTConfig(
            **SIZES, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=64, pad_token_id=1
        ),
        "qwen2": transformers.Qwen2Config(**SIZES, intermediate_size=16, num_key_value_heads=1),
        "bloom": transformers.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2),
        "mamba": transformers.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4),
    }
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(configs[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("max_tokens", [None, 1, 5, 7])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen2", "bloom", "mamba"])
def test_options_score_as_each_alone(name: str, max_tokens: int | None) -> None:
    model = architecture(name)
    with torch.no_grad():
        found = score_options(model, QUESTIONS, nothing, padding=0, max_tokens=max_tokens)
    for question, scores in zip(QUESTIONS, found, strict=True):
        expected = [alone(model, question, option) for option in question.options]
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_recurrent_model_gets_a_row_for_each_option_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with torch.no_grad():
        score_options(architecture("mamba"), QUESTIONS, nothing, padding=0)
        score_options(architecture("llama"), QUESTIONS, nothing, padding=0)
    assert [record.message.split()[0] for record in caplog.records if "a row for each option" in record.message] == [
        "MambaForCausalLM"
    ]


@pytest.mark.parametrize("method", ["mtl_lora", "hydralora", "mixlora"])
def test_methods_of_each_level_read_the_same_prompt(method: str) -> None:
    model = lc.attach(tiny("llama"), method, tasks=["a", "b"], r=2).eval()
    with torch.no_grad():
        for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)

    def asked(places: Sequence[int], prompt_mask_BL: Tensor) -> AbstractContextManager[None]:
        return lc.on_task(model, "b", prompt_mask=prompt_mask_BL)

    with torch.no_grad():
        together = score_options(model, QUESTIONS, asked, padding=0)
        # So few tokens that every option has a row of its own.
        each = score_options(model, QUESTIONS, asked, padding=0, max_tokens=1)
    for one, other in zip(together, each, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), abs=1e-5)


def test_no_more_logits_are_made_at_a_time_than_were_allowed() -> None:
    model, most = architecture("llama"), 0
    head = model.get_output_embeddings()

    def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal most
        most = max(most, output.shape[0] * output.shape[1])

    head.register_forward_hook(watch)
    questions = QUESTIONS * 10
    with torch.no_grad():
        score_options(model, QUESTIONS, nothing, padding=0)
        most = 0
        score_options(model, questions, nothing, padding=0, max_tokens=24)
    assert 12 < most <= 24
