"""PEFT's own LoRA and DoRA under the names `peft_lora` and `peft_dora`, through PEFT's code, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from peft import LoraConfig

from lorachord.core.budget import Count, register_counter
from lorachord.core.config import LayerSpec, RankConfig, option
from lorachord.messages import suggest

BASELINES = {"peft_lora": "LoRA as PEFT computes it", "peft_dora": "DoRA (arXiv 2402.09353) as PEFT computes it"}

FORMULAS = {"peft_lora": "r*(d_in + d_out)", "peft_dora": "r*(d_in + d_out) + d_out"}
"""Trainable parameters of one layer."""

DOCSTRINGS = {
    "peft_lora": """PEFT computes LoRA with its own code, as a baseline.

    Equation:
        y = W0 x + s * B A drop(x),  s = alpha / r, or alpha / sqrt(r) with `rslora`

    Paper:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685). `rslora` is Kalajdzievski,
        "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA" (arXiv 2312.03732).

    Start:
        A is Kaiming-uniform and B is zero.

    Defaults:
        rslora false, r 8, alpha 16, dropout 0.

    Take it when:
        You check that `lora` here learns as PEFT's does. On four GLUE tasks it was 0.002 ± 0.006 behind `lora`: no
        difference that could be seen (docs/findings.md).

    Leave it when:
        You train for use: `lora` is the same function. On a GPU its step took 0.87x PEFT's with large batches.

    Differs from the authors' code:
        It is PEFT's code. The adapter is an ordinary `peft.LoraConfig` and takes one value for each option.

    Parameters:
        lora_A (r, d_in): A.
        lora_B (d_out, r): B.
    """,
    "peft_dora": """PEFT computes DoRA with its own code, as a baseline.

    Equation:
        y = m * ((W0 + s * B A) / |W0 + s * B A|) x,  s = alpha / r, or alpha / sqrt(r) with `rslora`

    Where:
        |.| is the norm of each row, of an output feature over its inputs. m has one magnitude for each of them.

    Paper:
        Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (arXiv 2402.09353).

    Start:
        A is Kaiming-uniform, B is zero, and m holds the norms of W0.

    Defaults:
        rslora false, r 8, alpha 16, dropout 0.

    Take it when:
        You compare with a strong single-task variant of LoRA.

    Leave it when:
        You look for a better score than joint LoRA's. On four GLUE tasks it was 0.004 ± 0.016 behind `lora` at equal
        parameters: no difference that could be seen (docs/findings.md).

    Differs from the authors' code:
        It is PEFT's code. The adapter is an ordinary `peft.LoraConfig` and takes one value for each option.

    Parameters:
        lora_A (r, d_in): A.
        lora_B (d_out, r): B.
        lora_magnitude_vector (d_out,): m.
    """,
}
"""In the form of a method's class docstring; `method_pages` shows them."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(RankConfig):
    """
    Args:
        rslora: scale by alpha / sqrt(r) in place of alpha / r. Default false.
    """

    rslora: bool = option(False)


def _count(name: str) -> Callable[[LayerSpec, Mapping[str, Any]], Count]:
    def count(layer: LayerSpec, options: Mapping[str, Any]) -> Count:
        r = BaselineConfig.from_dict(options).r
        # DoRA's magnitudes.
        return Count(r * (layer.d_in + layer.d_out), 0, layer.d_out if name == "peft_dora" else 0)

    return count


for _name in BASELINES:
    register_counter(_name, _count(_name))

SHARED = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "task_type")


def baseline_config(name: str, **keywords: Any) -> LoraConfig:
    """PEFT's config for a baseline, from the same keywords as for any method.

    Raises:
        ValueError: an unknown keyword, or a value out of range.
    """
    known = {spec.name for spec in fields(BaselineConfig)}
    for key in keywords:
        if key not in known | set(SHARED):
            raise ValueError(f"{name} has no option {key!r}. {suggest(key, known | set(SHARED))}")
    options = BaselineConfig.from_dict({key: value for key, value in keywords.items() if key in known})
    for field_name in ("r", "alpha"):
        if len(options.values_of(field_name)) > 1:
            raise ValueError(f"{name} takes one value for {field_name}; per-layer values are for LoRAchord's methods.")
    shared = {key: value for key, value in keywords.items() if key in SHARED}
    return LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=name == "peft_dora",
        **{"target_modules": "all-linear", **shared},
    )
