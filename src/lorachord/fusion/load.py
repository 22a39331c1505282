"""Finished adapters, or whole models, read from their folders as task vectors.

Adapters are loaded by PEFT itself onto copies of the base that share its weights: what a rank pattern, an alpha or a
regex of targets means is PEFT's to say.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorachord.core.matrix import factors
from lorachord.core.tasks import TaskNames
from lorachord.fusion.checkpoints import Checkpoint
from lorachord.fusion.factors import LowRank
from lorachord.fusion.saved_heads import Heads, head_path, head_widths, missing_parts, own_state, with_heads
from lorachord.fusion.skeleton import skeleton
from lorachord.fusion.task_vectors import Dense, Layer, Stacked, TaskVectors
from lorachord.heads import add_heads, keep_head
from lorachord.tuner import LorachordConfig
from lorachord.tuner.adapter_files import check_adapter, load_onto
from lorachord.tuner.layer import LorachordLinear, linear_features


def load_task_vectors(base: nn.Module, folders: Mapping[str, str | Path]) -> TaskVectors:
    """Read finished adapters as task vectors.

    Args:
        base: the plain model that they were trained on; it is left as it is.
        folders: by task, a folder with a plain LoRA (PEFT's), a LoRAchord adapter (a static one, or the same one for
            several of its tasks), or a whole model that was finely tuned from `base`. Ranks, scales and targets may
            differ.

    Returns:
        The task vectors, over a model of their own that shares the weights of `base`.

    Raises:
        ValueError: fewer than two, a folder that holds none of these, an adapter that is no low-rank update (DoRA, an
            input-routed method) or that was made for another base.
    """
    if isinstance(base, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise ValueError("The base has adapters already; give the plain model that the adapters were trained on.")
    tasks = TaskNames(tuple(folders)).names
    check_number(tasks)
    paths = {task: Path(folder) for task, folder in folders.items()}
    configs = {task: _config(task, path) for task, path in paths.items()}
    _check_names(configs)

    heads: Heads = {}
    parts = missing_parts(base)
    members: list[dict[str, LowRank] | Checkpoint] = []
    member: dict[str, LowRank] | Checkpoint
    for task, path in paths.items():
        if configs[task] is None:
            checkpoint = Checkpoint.open(task, base, path)
            member, state = checkpoint, checkpoint.head()
        else:
            model, headed = load_adapter(task, base, path)
            member, state = factors_of(model, task), own_state(task, model.unload(), (*parts, *headed))
        members.append(member)
        if state:
            heads[task] = state
    return assemble(with_heads(skeleton(base), tasks, heads, parts), tasks, members)


def check_number(tasks: tuple[str, ...]) -> None:
    """Raise a ValueError unless there is something to fuse."""
    if len(tasks) < 2:
        found = f"only one, {tasks[0]}" if tasks else "none"
        raise ValueError(f"Fusion makes one adapter of several, so name at least two; there is {found}.")


def assemble(base: nn.Module, tasks: tuple[str, ...], members: list[dict[str, LowRank] | Checkpoint]) -> TaskVectors:
    """Task vectors of what each task has: factors by layer, or a checkpoint.

    Args:
        base: see `TaskVectors`.
    """
    paths = [name for name, module in base.named_modules() if any(name in member for member in members)]
    layers: dict[str, Layer] = {}
    for path in paths:
        found = [member.get(path) if isinstance(member, dict) else None for member in members]
        if any(isinstance(member, Checkpoint) for member in members):
            d_in, d_out = linear_features(base.get_submodule(path)) or (0, 0)
            absent = torch.zeros((), device=base.get_parameter(f"{path}.weight").device).expand(d_out, d_in)
            layers[path] = Dense(_reader(members, path, absent), (d_out, d_in), len(tasks))
        else:
            layers[path] = Stacked.of(found)
    others = {}
    names = dict.fromkeys(name for member in members if isinstance(member, Checkpoint) for name in member.others)
    for name in names:
        parameter = base.get_parameter(name)
        absent = torch.zeros((), device=parameter.device).expand(parameter.shape)
        others[name] = Dense(_reader(members, name, absent), tuple(absent.shape), len(tasks))
    return TaskVectors(base, tasks, layers, others)


def _reader(members: list[dict[str, LowRank] | Checkpoint], name: str, absent: Tensor) -> Callable[[int], Tensor]:
    def read(task: int) -> Tensor:
        member = members[task]
        if isinstance(member, Checkpoint):
            return member.delta(name)
        return member[name].dense() if name in member else absent

    return read


def _config(task: str, folder: Path) -> PeftConfig | None:
    """The config of an adapter that can be fused, or None for a whole model."""
    if not folder.is_dir():
        raise ValueError(f"{task}: there is no folder {folder}.")
    if not (folder / "adapter_config.json").is_file():
        if (folder / "config.json").is_file():
            return None
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"{task}: {folder} holds neither an adapter nor a model; found {found}.")
    check_adapter(folder)
    config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    if isinstance(config, (LorachordConfig, LoraConfig)) and config.trainable_token_indices:
        raise ValueError(
            f"{task}: {folder} has trained tokens (trainable_token_indices) beside its low-rank updates. Merge it into "
            "its base, save that model, and fuse the folder of the whole model."
        )
    if isinstance(config, LorachordConfig):
        return config
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{task}: {folder} is a {config.peft_type} adapter; fusion takes LoRA and LoRAchord adapters.")
    if config.use_dora:
        raise ValueError(
            f"{task}: {folder} is a DoRA adapter, which rescales the columns of the base weight and so is no low-rank "
            "update. Merge it into its base, save that model, and fuse the folder of the whole model."
        )
    if config.bias != "none" or config.lora_bias or config.target_parameters:
        raise ValueError(
            f"{task}: {folder} has trained biases or parameters beside its low-rank updates (bias, lora_bias or "
            "target_parameters). Merge it into its base, save that model, and fuse the folder of the whole model."
        )
    return config


def _check_names(configs: Mapping[str, PeftConfig | None]) -> None:
    """Names of bases that contradict each other; folders may have moved, so their last parts are compared."""
    named = {}
    for task, config in configs.items():
        if config is not None and config.base_model_name_or_path:
            named[task] = config.base_model_name_or_path
    if len({PurePath(name).name for name in named.values()}) > 1:
        listed = ", ".join(f"{task}: {name}" for task, name in named.items())
        raise ValueError(
            f"The adapters were made for different bases ({listed}). Adapters of different bases cannot be fused; if "
            "these are one model, say so in their adapter_config.json (base_model_name_or_path)."
        )


def load_adapter(task: str, base: nn.Module, folder: Path) -> tuple[PeftModel, tuple[str, ...]]:
    """An adapter on a skeleton of its base, and the name of the head, if it came with one or several.

    Raises:
        ValueError: it does not fit the base.
    """
    widths = head_widths(base, folder)
    plain = skeleton(base)
    if widths:
        add_heads(plain, {name or task: width for name, width in widths.items()})
        if None in widths:
            keep_head(plain, task)
    try:
        with warnings.catch_warnings():
            # PEFT says that it corrects the transposed weights of GPT-2's layers.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = load_onto(plain, folder)
    except (UserWarning, ValueError) as error:
        raise ValueError(f"{task}: {folder} does not fit the base model: {error}") from error
    head = head_path(base)
    return model.eval(), (head,) if widths and head is not None else ()


def factors_of(model: PeftModel, task: str) -> dict[str, LowRank]:
    """The active adapter's factors by layer, for one task; on the CPU or wherever the adapter is.

    Raises:
        ValueError: an adapter that is no low-rank update of linear layers, or that does not know the task.
    """
    name = model.active_adapter
    config = model.peft_config[name]
    index = None
    if isinstance(config, LorachordConfig) and config.tasks:
        index = config.task_names.index(task) if task in config.tasks or len(config.tasks) > 1 else 0
    found = {}
    inner: nn.Module = model.get_base_model()
    for path, layer in inner.named_modules():
        if isinstance(layer, LorachordLinear) and name in layer.lorachord_adapter:
            found[path] = LowRank(*factors(layer.lorachord_adapter[name], index))  # type: ignore[arg-type]
        elif isinstance(layer, LoraLayer):
            lora: Any = layer
            if name not in lora.lora_A or linear_features(lora.get_base_layer()) is None:
                raise ValueError(f"{task}: the adapter of {path} is none of a linear layer, which alone are fused.")
            down, up = (part[name].weight.detach().float() for part in (lora.lora_A, lora.lora_B))
            found[path] = LowRank(down, lora.scaling[name] * up)
    if not found:
        raise ValueError(f"{task}: the adapter has no low-rank update of a linear layer.")
    return found
