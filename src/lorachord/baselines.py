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
