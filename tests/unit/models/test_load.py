"""Models and tokenizers by name: what is new is reproducible and quiet, and what cannot be right is refused."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, BertModel, CLIPTextConfig, CLIPTextModel, PreTrainedModel

from lorachord.models.pretrained import load_decoder, load_encoder
from tests.tiny_models import tiny, token_ids
from tests.unit.models.helpers import save, tokenizer, write_gguf


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    return str(save(BertModel(tiny("bert").config), tmp_path / "encoder"))


@pytest.fixture
def decoder(tmp_path: Path) -> str:
    return str(save(tiny("llama"), tmp_path / "decoder"))


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return model.state_dict()


def test_new_weights_follow_the_seed(encoder: str) -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(load_encoder(encoder, 3)[0].classifier.weight)
    assert made[0].shape == (3, 16)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_new_weights_are_logged_in_one_line_and_transformers_says_nothing(
    encoder: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    try:
        with caplog.at_level(logging.INFO, "lorachord"):
            load_encoder(encoder, 3)
        assert transformers.logging.get_verbosity() == logging.WARNING
    finally:
        transformers.logging.set_verbosity(before)
    assert [record.getMessage() for record in caplog.records] == [
        f"{encoder} has no weights for classifier.bias, classifier.weight: drawn at random"
    ]
    assert "MISSING" not in capfd.readouterr().err


def test_an_encoder_has_its_options(encoder: str) -> None:
    model, made = load_encoder(encoder, 1, dtype=torch.bfloat16, problem_type="regression")
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert {value.dtype for value in state(model).values() if value.is_floating_point()} == {torch.bfloat16}
    assert made.pad_token == "[PAD]"
    assert not model.training


def test_a_classifier_for_as_many_labels_is_kept_and_for_others_drawn_anew(tmp_path: Path) -> None:
    trained = tiny("bert", num_labels=3)
    folder = str(save(trained, tmp_path / "trained"))
    assert torch.equal(load_encoder(folder, 3)[0].classifier.weight, trained.classifier.weight)
    model, _ = load_encoder(folder, 2)
    assert model.classifier.weight.shape == (2, 16)
    assert torch.equal(
        model.bert.encoder.layer[1].output.dense.weight, trained.bert.encoder.layer[1].output.dense.weight
    )


def test_a_decoder_can_classify(tmp_path: Path) -> None:
    model = tiny("llama", pad_token_id=None)
    folder = str(save(model, tmp_path / "decoder"))
    loaded, made = load_encoder(folder, 3)
    assert loaded.config.pad_token_id == made.pad_token_id
    assert loaded(token_ids()).logits.shape == (4, 3)


def test_a_decoder_is_the_one_that_was_saved(decoder: str) -> None:
    model, made = load_decoder(decoder)
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids()).logits, tiny("llama")(token_ids()).logits)
    assert model.config.use_cache
    assert load_decoder(decoder, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert made.padding_side == "right"


def test_a_gguf_file_is_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACHORD_CACHE", str(tmp_path / "cache"))
    write_gguf(tiny("llama"), tmp_path / "tiny.gguf")
    model, made = load_decoder(str(tmp_path), gguf_file="tiny.gguf")
    with torch.no_grad():
        torch.testing.assert_close(model(token_ids()).logits, tiny("llama")(token_ids()).logits)
    assert made.pad_token == "<pad>"


def test_padding_falls_back_to_the_end_of_a_text(decoder: str) -> None:
    tokenizer(eos_token="[EOS]").save_pretrained(decoder)
    assert load_decoder(decoder)[1].pad_token == "[EOS]"


def test_a_tokenizer_without_either_is_refused(decoder: str) -> None:
    tokenizer().save_pretrained(decoder)
    with pytest.raises(ValueError, match="no token for padding"):
        load_decoder(decoder)


def test_an_encoder_is_no_decoder(encoder: str, tmp_path: Path) -> None:
    masked = str(save(BertForMaskedLM(tiny("bert").config), tmp_path / "masked"))
    for folder in (encoder, masked):
        with pytest.raises(ValueError, match="is a bert, no causal language model"):
            load_decoder(folder)


def test_a_model_without_a_classifier_is_no_encoder(tmp_path: Path) -> None:
    sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    folder = str(save(CLIPTextModel(CLIPTextConfig(**sizes)), tmp_path / "clip"))
    with pytest.raises(ValueError, match="is a clip_text_model, which has no sequence classifier"):
        load_encoder(folder, 2)
    with pytest.raises(ValueError, match="no causal language model"):
        load_decoder(folder)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_checkpoint_that_lacks_weights_is_refused(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    file = Path(folder) / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if "layers.1." not in key and "layer.1." not in key}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the model, or has others: .*1\..* \.\.\."):
        load_encoder(folder, 2) if kind == "encoder" else load_decoder(folder)


def test_a_checkpoint_of_another_size_is_refused(encoder: str) -> None:
    config = Path(encoder) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 32}))
    with pytest.raises(ValueError, match=r"or has others: bert\.encoder"):
        load_encoder(encoder, 2)
