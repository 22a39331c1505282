"""A GGUF file as a folder that `from_pretrained` loads, written once."""

from __future__ import annotations

import copy
import logging
import os
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorachord.models.folders import write_once

logger = logging.getLogger(__name__)


def convert_gguf(folder: str | os.PathLike[str], gguf_file: str, out: Path) -> Path:
    """A decoder in a GGUF file as safetensors, dequantised, with its tokenizer and chat template.

    Args:
        folder: where the file lies.
        gguf_file: its name. Weights, configuration and tokenizer are read from it.
        out: the folder to write. If it is there, it is left as it is.

    Returns:
        `out`.
    """
    logger.info("Converting %s", gguf_file)
    return write_once(out, partial(_write_gguf, os.fspath(folder), gguf_file))


def _write_gguf(folder: str, gguf_file: str, made: Path) -> None:
    # float32, since it holds what every GGUF type decodes to: half, bfloat16, and blocks of a scale times an integer
    # plus an offset, to which bfloat16 would add a second rounding. Whoever loads it chooses the dtype to compute in.
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=torch.float32)
    config = copy.deepcopy(loaded.config)
    # Transformers takes a model from a GGUF file for a quantised one and would not save it, though it no longer is.
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(made)
    AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file).save_pretrained(made)
