"""A BERT in an ONNX file as a folder that `from_pretrained` loads, written once."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from lorachord.models.folders import write_once

logger = logging.getLogger(__name__)


def convert_bert_onnx(file: Path, tokenizer: Path, out: Path, *, num_heads: int) -> Path:
    """A BERT encoder in an ONNX file, as torch exports it, as safetensors. It has no pooler.

    Args:
        file: the ONNX file.
        tokenizer: a folder with the tokenizer of the model, which an ONNX file does not hold.
        out: the folder to write. If it is there, it is left as it is.
        num_heads: attention heads, which no weight's shape tells.

    Returns:
        `out`.

    Raises:
        ImportError: `onnx` is not installed.
        ValueError: the file holds no BERT.
    """
    onnx = import_onnx()
    logger.info("Converting %s", file.name)
    graph = onnx.load(file).graph
    values = {item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()) for item in graph.initializer}
    state = {_key(name): value for name, value in values.items() if _key(name)}
    for node in graph.node:
        # A linear without its bias is a product, whose weight is stored transposed under the name of the product.
        if node.op_type == "MatMul" and node.input[1] in values:
            state[_key(node.name.replace("/", ".")).removesuffix("MatMul") + "weight"] = values[node.input[1]].T
    if "embeddings.word_embeddings.weight" not in state:
        raise ValueError(f"{file} holds no BERT as torch exports it. Its weights: {', '.join(sorted(values)[:5])} ...")
    (epsilon,) = {item.f for node in graph.node for item in node.attribute if item.name == "epsilon"}
    config = _bert_config(state, num_heads, epsilon)
    return write_once(out, partial(_write_bert, config, state, tokenizer))


def import_onnx() -> Any:
    """The module, which is optional.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise ImportError("The model is an ONNX file, and reading it needs a package: `pip install onnx`.") from None
    return onnx


def _key(name: str) -> str:
    """What follows the names of the modules around the encoder; empty for anything else."""
    for part in ("embeddings.", "encoder."):
        if part in name:
            return name[name.index(part) :]
    return ""


def _bert_config(state: dict[str, Tensor], num_heads: int, epsilon: float) -> BertConfig:
    vocab_size, hidden_size = state["embeddings.word_embeddings.weight"].shape
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=len({key.split(".")[2] for key in state if key.startswith("encoder.layer.")}),
        num_attention_heads=num_heads,
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        type_vocab_size=len(state["embeddings.token_type_embeddings.weight"]),
        layer_norm_eps=epsilon,
    )


def _write_bert(config: BertConfig, state: dict[str, Tensor], tokenizer: Path, made: Path) -> None:
    model: Any = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(state)
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(made)
