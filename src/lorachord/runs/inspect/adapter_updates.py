"""The updates of an adapter by task, from a model in memory or from the files of a plain LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.fusion.factors import LowRank
from lorachord.fusion.load import factors_of
from lorachord.runs.inspect.spectra import EVERY
from lorachord.tuner import LorachordConfig
from lorachord.tuner.adapter_files import check_adapter

Updates = dict[str, dict[str, LowRank]]
DORA = "A DoRA adapter rescales the base weight, so it is no low-rank update and has no spectrum of its own."
BEGINNING = "base_model.model."


def updates_of(model: PeftModel) -> Updates:
    """The updates of the active adapter, by task, or by `all` where every task has the same.

    Raises:
        ValueError: it has no fixed update, or none of low rank.
    """
    config = model.peft_config[model.active_adapter]
    if isinstance(config, LoraConfig) and config.use_dora:
        raise ValueError(DORA)
    if not isinstance(config, LorachordConfig):
        return {EVERY: factors_of(model, EVERY)}
    mixing, tasks = get_method(config.method).mixing, config.task_names.names
    if mixing is Mixing.INPUT:
        raise ValueError(f"{config.method} has another update for every input, and so no spectrum: see its routing.")
    if mixing is Mixing.TASK:
        return {task: factors_of(model, task) for task in tasks}
    return {EVERY: factors_of(model, tasks[0] if tasks else EVERY)}


def read_lora(folder: Path) -> dict[str, LowRank]:
    """The update of each layer of a plain LoRA, from its files alone.

    Raises:
        ValueError: the folder holds something else, or its files are damaged.
    """
    kind = check_adapter(folder)["peft_type"]
    if kind != "LORA":
        raise ValueError(
            f"{folder} holds an adapter of type {kind}, which does not say its updates without its base: name the run "
            "that it is from, or give the loaded model to lorachord.inspect."
        )
    config: Any = PeftConfig.from_pretrained(str(folder))
    if config.use_dora:
        raise ValueError(DORA)
    tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    found = {}
    # Block 2 before block 10.
    for key in sorted(tensors, key=lambda key: [part.zfill(6) for part in key.split(".")]):
        layer, matched, _ = key.removeprefix(BEGINNING).partition(".lora_A.")
        if matched:
            up_OR = tensors[key.replace(".lora_A.", ".lora_B.")]
            found[layer] = LowRank(tensors[key].float(), _scale(config, layer) * up_OR.float())
    if not found:
        raise ValueError(f"{folder} changes no linear layer by a LoRA.")
    return found


def _scale(config: LoraConfig, layer: str) -> float:
    """As PEFT has it, with its patterns of names."""

    def of(pattern: Mapping[str, float] | None, otherwise: float) -> float:
        return (pattern or {}).get(get_pattern_key([*(pattern or {})], layer), otherwise)

    rank, alpha = of(config.rank_pattern, config.r), of(config.alpha_pattern, config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)
