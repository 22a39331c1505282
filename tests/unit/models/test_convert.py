"""Conversions, on tiny models written here: equal logits, the tokenizer and its template, tied weights."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel

from lorachord.models.convert import convert_gguf
from lorachord.models.convert_onnx import convert_bert_onnx
from lorachord.models.folders import check_complete
from tests.tiny_models import tiny, token_ids
from tests.unit.models.helpers import TEMPLATE, names, save, write_gguf


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_becomes_the_model_that_it_was_written_from(tied: bool, tmp_path: Path) -> None:
    model = tiny("llama", tie_word_embeddings=tied)
    (tmp_path / "in").mkdir()
    write_gguf(model, tmp_path / "in" / "tiny.gguf")
    out = convert_gguf(tmp_path / "in", "tiny.gguf", tmp_path / "out")
    check_complete(out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        torch.testing.assert_close(loaded(token_ids()).logits, model(token_ids()).logits)
    assert loaded.dtype == torch.float32
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    with safe_open(out / "model.safetensors", "pt") as saved:
        assert ("lm_head.weight" in saved.keys()) != tied  # noqa: SIM118
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_the_tokenizer_of_a_gguf_file_comes_with_its_template(tmp_path: Path) -> None:
    write_gguf(tiny("llama"), tmp_path / "tiny.gguf")
    out = convert_gguf(tmp_path, "tiny.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the hand", add_special_tokens=False).input_ids) == [
        "the",
        "Ġ",
        "h",
        "and",
    ]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")
    assert tokenizer.chat_template == TEMPLATE


def test_a_converted_folder_is_not_written_again(tmp_path: Path) -> None:
    write_gguf(tiny("llama"), tmp_path / "tiny.gguf")
    out = convert_gguf(tmp_path, "tiny.gguf", tmp_path / "out")
    (tmp_path / "tiny.gguf").unlink()
    assert convert_gguf(tmp_path, "tiny.gguf", out) == out


def write_onnx(model: BertModel, file: Path) -> None:
    """The weights of a BERT under the names that torch's exporter gives them, without a graph that could run."""
    onnx = pytest.importorskip("onnx", reason="writes the ONNX file")
    tensors, nodes = [], []
    for key, value in model.state_dict().items():
        name, transposed = f"model.0.auto_model.{key}", value
        if value.dim() == 2 and key.startswith("encoder."):
            node = f"/{name.removesuffix('.weight').replace('.', '/').replace('layer/', 'layer.')}/MatMul"
            name, transposed = f"onnx::MatMul_{len(nodes)}", value.T
            nodes.append(onnx.helper.make_node("MatMul", ["x", name], [f"y{len(nodes)}"], name=node))
        tensors.append(onnx.numpy_helper.from_array(transposed.contiguous().numpy(), name))
    inputs = ["x", "model.0.auto_model.embeddings.LayerNorm.weight"]
    nodes.append(onnx.helper.make_node("LayerNormalization", inputs, ["z"], epsilon=1e-12))
    # As between positions, a product of two results, which has no weight.
    nodes.append(onnx.helper.make_node("MatMul", ["y0", "y1"], ["w"], name="/model.0/encoder/self/MatMul"))
    graph = onnx.helper.make_graph(nodes, "tiny", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), file)


def bert() -> Any:
    torch.manual_seed(0)
    return BertModel(tiny("bert").config, add_pooling_layer=False).eval()


def test_an_onnx_file_becomes_the_encoder_that_it_was_written_from(tmp_path: Path) -> None:
    model = bert()
    write_onnx(model, tmp_path / "tiny.onnx")
    tokenizer = save(tiny("bert"), tmp_path / "tokenizer")
    out = convert_bert_onnx(tmp_path / "tiny.onnx", tokenizer, tmp_path / "out", num_heads=2)
    check_complete(out)
    loaded = BertModel.from_pretrained(out, add_pooling_layer=False)
    with torch.no_grad():
        ours, theirs = (each(token_ids()).last_hidden_state for each in (loaded, model))
    torch.testing.assert_close(ours, theirs)
    assert AutoTokenizer.from_pretrained(out)("word3").input_ids == [6]


def test_an_onnx_file_of_something_else_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="writes the ONNX file")
    tensor = onnx.numpy_helper.from_array(torch.ones(2, 2).numpy(), "some.weight")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "other", [], [], [tensor])), tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"holds no BERT.*some\.weight"):
        convert_bert_onnx(tmp_path / "other.onnx", tmp_path, tmp_path / "out", num_heads=2)
    assert names(tmp_path) == ["other.onnx"]


def test_without_onnx_the_command_to_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What an import finds there is no module.
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="pip install onnx"):
        convert_bert_onnx(tmp_path / "a.onnx", tmp_path, tmp_path / "out", num_heads=2)
