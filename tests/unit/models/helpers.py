"""Tiny models in every form that a name can lead to."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lorachord.models.catalogue import CATALOGUE, Packaged
from lorachord.models.folders import sha256_of

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[EOS]", *(f"word{number}" for number in range(37))]
    made = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **special)


def save(model: PreTrainedModel, folder: Path, pad_token: str = "[PAD]", **options: object) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer(pad_token=pad_token).save_pretrained(folder)
    return folder


def wheel(folder: Path, name: str, files: Mapping[str, bytes], version: str = "1.0") -> Path:
    """A package that pip accepts, whose code must not run."""
    folder.mkdir(exist_ok=True)
    made, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(made, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{name}/__init__.py", "raise ImportError('imported')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return made


def folder_wheel(wheels: Path, source: Path, name: str = "tiny_packaged") -> Packaged:
    """A package that holds the model folder `source`, and its entry for the catalogue."""
    wheel(wheels, name, {f"{name}/model/{file.name}": file.read_bytes() for file in source.iterdir()})
    sha256 = sha256_of([source / "model.safetensors"])
    files = {f"{name}==1.0": f"{name}/model/model.safetensors"}
    return Packaged(kind="encoder", files=files, sha256=sha256, form="folder", licence="none", description="tiny")


def list_as(monkeypatch: pytest.MonkeyPatch, name: str, model: Packaged) -> None:
    monkeypatch.setitem(CATALOGUE, name, model)


def write_gguf(model: PreTrainedModel, file: Path) -> None:
    """A Llama as llama.cpp's converter writes it: without quantisation, with queries and keys permuted."""
    config = model.config
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(ord("a") + number) for number in range(26)]
    merged = ["th", "the", "in", "an", "and", "er"]
    tokens = ["<pad>", "<s>", "</s>", "Ġ", *letters, *merged, "0", "1", "2", "3"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 37)
    writer.add_token_merges(["t h", "th e", "i n", "a n", "an d", "e r"])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    tied = config.tie_word_embeddings
    for key, value in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        name = key
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, _permuted(value, key, config.num_attention_heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(value: torch.Tensor, key: str, num_heads: int) -> np.ndarray:
    # tiny("llama") has as many key heads as query heads, so one permutation serves both.
    if "q_proj" in key or "k_proj" in key:
        value = value.view(num_heads, 2, -1, value.shape[-1]).transpose(1, 2).reshape(value.shape)
    return value.float().numpy()
