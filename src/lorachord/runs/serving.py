"""Servers of plain LoRAs: what they refuse, and the command that starts them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig, PeftConfig

from lorachord.runs.use import open_run
from lorachord.tuner.trained_parts import OF_TASK_TYPE

VLLM_HEADS = OF_TASK_TYPE["SEQ_CLS"]
"""What vLLM takes in `modules_to_save`."""
VLLM_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Its `init_lora_weights`, which leave the base as it is."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


def refusals(folder: str | Path) -> list[str]:
    """What vLLM refuses of a plain LoRA, in sentences; none where it takes it."""
    config = _config(folder)
    found = []
    others = sorted(set(config.modules_to_save or ()) - set(VLLM_HEADS))
    if others:
        found.append(
            f"vLLM refuses modules_to_save other than a head, and this has {', '.join(others)}: serve the merged model "
            "(`lorachord merge`) there."
        )
    if config.bias != "none":
        found.append(
            f"vLLM refuses trained biases (bias={config.bias!r}): serve the merged model (`lorachord merge`) there."
        )
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower() not in VLLM_STARTS:
        found.append(
            f"vLLM refuses init_lora_weights={config.init_lora_weights!r}, which changes the base: serve the merged "
            "model (`lorachord merge`) there, or convert the LoRA (PEFT's path_initial_model_for_weight_conversion)."
        )
    if config.use_dora:
        found.append("vLLM refuses DoRA (use_dora): serve the merged model (`lorachord merge`) there.")
    if config.trainable_token_indices:
        found.append("vLLM reads no trainable_token_indices: serve the merged model (`lorachord merge`) there.")
    if largest_rank(config) > VLLM_RANKS[-1]:
        found.append(
            f"vLLM takes ranks up to {VLLM_RANKS[-1]}, and this has {largest_rank(config)}: distil it smaller."
        )
    return found


def largest_rank(config: LoraConfig) -> int:
    """Over all layers."""
    largest: int = max([config.r, *(config.rank_pattern or {}).values()])
    return largest


def check_server(run: str | Path) -> None:
    """Raise a ValueError where a run's LoRAs are none that a server of language models takes."""
    if open_run(run).recipe.model.kind != "decoder":
        raise ValueError(
            f"{run} is no decoder, and vLLM, LoRAX and SGLang serve LoRAs of decoders. Export without --for and load "
            "with PEFT, or serve the model that `lorachord merge` writes."
        )


def serve_command(server: str, folders: Sequence[str | Path]) -> str:
    """The command that serves plain LoRAs of one base, each under the name of its folder.

    Args:
        server: vllm, lorax or sglang.
        folders: of the LoRAs.
    """
    paths = [Path(folder).absolute() for folder in folders]
    configs = [_config(path) for path in paths]
    base = shlex.quote(str(configs[0].base_model_name_or_path))
    rank = max(largest_rank(config) for config in configs)
    named = " ".join(shlex.quote(f"{path.name}={path}") for path in paths)
    if server == "vllm":
        allowed = next((known for known in VLLM_RANKS if known >= rank), VLLM_RANKS[-1])
        # One place more than LoRAs: on a CPU, vLLM 0.32 gives a request for the base what is in the last one.
        return (
            f"vllm serve {base} --enable-lora --max-loras {len(paths) + 1} --max-lora-rank {allowed} "
            f"--lora-modules {named}"
        )
    if server == "sglang":
        return (
            f"python -m sglang.launch_server --model-path {base} --enable-lora --max-loras-per-batch {len(paths)} "
            f"--max-lora-rank {rank} --lora-paths {named}"
        )
    assert server == "lorax", server
    ids = ", ".join(str(path) for path in paths)
    return (
        f"lorax-launcher --model-id {base} --adapter-source local\n"
        f"# Each request names its LoRA, as adapter_id with adapter_source local: {ids}"
    )


def _config(folder: str | Path) -> LoraConfig:
    config = PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    return config
