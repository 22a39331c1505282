"""Which layers of a model a config targets, and where they sit; errors that name what is near."""

from __future__ import annotations

import re
import warnings
from difflib import get_close_matches
from typing import Any

from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lorachord.core.config import LayerSpec
from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.tuner.layer import LorachordLinear, linear_features
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.state import HEADS, SharedState
from lorachord.tuner.trained_parts import add_parts, inside, trained_in_full, warn_of_lost_parts
from lorachord.tuner.uncalled import uncalled, warn_of_uncalled


def plan(model: nn.Module, config: LorachordConfig) -> list[LayerSpec]:
    """The layers that `config` targets, in model order. Resolves `all-linear` in the config.

    A layer outside the numbered blocks (a pooler, a stem) counts to the block before it. Parts that the base's
    checkpoint lacks are put into a new config's `modules_to_save`, and are no targets.

    Raises:
        ValueError: a target that matches nothing (the message names what is near), that is no linear layer, that is
            never called, or that mixes the rows of several samples where the method needs to know their tasks; or a
            checkpoint that lacks weights of the blocks.
    """
    if config.base_fingerprint is None:
        add_parts(model, config)
    else:
        warn_of_lost_parts(model, config)
    parts = trained_in_full(model, config)
    all_linear = config.target_modules == "all-linear"
    _maybe_include_all_linear_layers(config, model)
    modules = _outer_modules(model)
    never = uncalled(model, modules)
    features = {name: linear_features(module) for name, module in modules.items()}
    if all_linear:
        # PEFT's expansion goes into the heads that another adapter has wrapped.
        found = set(config.target_modules or ()) & modules.keys()
        chosen = {name for name in found - never if features[name] and not inside(name, parts)}
        config.target_modules = chosen  # type: ignore[assignment]
        warn_of_uncalled(found & never)
    blocks = _blocks([name for name, size in features.items() if size is not None])
    num_blocks = 1 + max(blocks.values(), default=0)
    _check_names(config, modules, features)

    layers, heads = [], _heads(model)
    for name, size in features.items():
        if inside(name, parts) or name.startswith(heads) or not check_target_module_exists(config, name):
            continue
        if size is None:
            kind = type(modules[name]).__name__
            raise ValueError(f"Target {name!r} is a {kind}; LoRAchord adapts linear layers. {_near(name, features)}")
        if name in never:
            raise ValueError(
                f"Target {name!r} is never called: nn.MultiheadAttention uses its weight without that, so an adapter "
                f"there would do nothing. Leave it out, as in exclude_modules=[{name!r}]."
            )
        layers.append(LayerSpec(name, blocks[name], num_blocks, *size))
    if not layers:
        raise ValueError(f"The targets {_targets(config)} leave no layer to adapt. {_near('', features)}")

    mixed = [layer.name for layer in layers if re.search(r"(^|\.)experts\.", layer.name)]
    if mixed and get_method(config.method).mixing is Mixing.TASK:
        raise ValueError(
            f"{mixed[0]} sees tokens of several samples in its own order, so {config.method} cannot know their tasks. "
            "Leave such layers out, as in exclude_modules=r'.*experts.*'."
        )
    if all_linear:
        _warn_of_fused_experts(model)
    return layers


def target_layers(
    model: nn.Module, target_modules: list[str] | str = "all-linear", **selection: Any
) -> list[LayerSpec]:
    """The layers of a plain model that an adapter would sit on: what `fit_rank` and `count_parameters` count.

    Args:
        model: the base model; it is not changed, and may be on the meta device.
        target_modules: as in `LorachordConfig`. Default `all-linear`.
        selection: `exclude_modules`, `layers_to_transform`, `layers_pattern`, as in `LorachordConfig`.

    Raises:
        ValueError: as for `attach`.
    """
    task_type = infer_task_type(model)
    return plan(model, LorachordConfig(target_modules=target_modules, task_type=task_type, **selection))


_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def infer_task_type(model: nn.Module) -> str | None:
    """PEFT's task type, from the name of the model's class, where that is unambiguous."""
    suffix = re.search("|".join(_TASK_TYPES), type(model).__name__)
    return _TASK_TYPES[suffix[0]] if suffix else None


def _outer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by name: adapted layers as what they wrap, and nothing from inside them or inside trained heads."""
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        if isinstance(module, LorachordLinear):
            inside += (name + ".",)
            found[name] = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            inside += (name + ".",)
        else:
            found[name] = module
    return found


def _heads(model: nn.Module) -> tuple[str, ...]:
    """What the names of modules inside heads per task begin with: heads are trained in full."""
    shared = {name: vars(module).get("shared") for name, module in model.named_modules()}
    return tuple(
        f"{name}." for name, state in shared.items() if isinstance(state, SharedState) and HEADS in state.task_names
    )


def _blocks(names: list[str]) -> dict[str, int]:
    blocks, last = {}, 0
    for name in names:
        number = re.search(r"\.(\d+)\.", f".{name}.")
        last = int(number[1]) if number else last
        blocks[name] = last
    return blocks


def _targets(config: LorachordConfig) -> str:
    targets = config.target_modules
    shown = repr(targets) if isinstance(targets, str) else ", ".join(sorted(targets or ()))
    return shown if config.layers_to_transform is None else f"{shown} (in layers {config.layers_to_transform})"


def _check_names(
    config: LorachordConfig, modules: dict[str, nn.Module], features: dict[str, tuple[int, int] | None]
) -> None:
    targets = () if isinstance(config.target_modules, str) else sorted(config.target_modules or ())
    for target in targets:
        if not any(name == target or name.endswith("." + target) for name in modules):
            raise ValueError(f"Target {target!r} matches no module of the model. {_near(target, features)}")


def _near(target: str, features: dict[str, tuple[int, int] | None]) -> str:
    suffixes = sorted({name.rpartition(".")[2] for name, size in features.items() if size is not None})
    near = get_close_matches(target.rpartition(".")[2], suffixes, n=3, cutoff=0.4)
    return f"Its linear layers are called {', '.join(suffixes)}." + (
        f" Did you mean {' or '.join(near)}?" if near else ""
    )


def _warn_of_fused_experts(model: nn.Module) -> None:
    fused = [p for name, p in model.named_parameters() if p.dim() == 3 and "lorachord_adapter" not in name]
    if fused:
        millions = sum(parameter.numel() for parameter in fused) / 1e6
        warnings.warn(
            f"all-linear misses {len(fused)} three-dimensional parameters ({millions:.1f} M weights), as fused experts "
            "are: they are no linear modules and stay frozen without an adapter.",
            stacklevel=2,
        )
