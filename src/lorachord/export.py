"""From an adapter to something that runs without this package: merged weights, or an ordinary LoRA."""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorachord.core.matrix import factors
from lorachord.heads import heads_of, keep_head, only_head
from lorachord.tuner.card import write_export_card
from lorachord.tuner.layer import LorachordLinear
from lorachord.tuner.lorachord_model import LorachordModel, tied_targets
from lorachord.tuner.on_task import on_task
from lorachord.tuner.peft_config import LorachordConfig


def merge(model: PeftModel, task: str | int | None = None, *, untie: bool = False, inplace: bool = False) -> nn.Module:
    """The base model with the active adapter merged into its weights: a plain model, without any trace of PEFT.

    Args:
        model: a PeftModel with a static or per-task adapter, or one of PEFT's own.
        task: name or index; needed by methods with one weight per task.
        untie: give adapted layers that share a weight with others (a tied `lm_head`) a weight of their own first.
        inplace: use `model`'s own weights, and with that end it, rather than a copy of the whole model.

    Raises:
        ValueError: an input-routed method, a missing or unknown task, or a tied weight without `untie`. The model is
            then as it was.
    """
    _require_peft_model(model)
    with on_task(model, task) if task is not None else nullcontext():
        # What cannot be merged is refused before the copy.
        tuner = _tuner(model)
        if isinstance(tuner, LorachordModel) and not untie:
            tuner.check_merge()
        target = model if inplace else copy.deepcopy(model)
        if untie:
            _untie(target)
        merged: nn.Module = target.merge_and_unload()
    return keep_head(merged, task)


def export_lora(model: PeftModel, out: str | Path, task: str | int | None = None) -> Path:
    """Write the active adapter as a plain LoRA folder, which loads with PEFT alone (and serves wherever LoRAs do).

    The factors are exact, `(A', s B' M)` with M the core's matrix, saved with `lora_alpha = r`. Heads and other
    `modules_to_save` go with it; of heads per task, that of the task, as the classifier that the plain model has.

    Args:
        model: a PeftModel with a static or per-task adapter, or one of PEFT's own.
        out: the folder to make; it must not hold anything.
        task: name or index; needed by methods with one weight per task, and where there is a head per task.

    Returns:
        The folder.

    Raises:
        ValueError: an input-routed method, a missing or unknown task, several active adapters, or a folder that holds
            something. Nothing is then written.
    """
    _require_peft_model(model)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: name a new folder, or remove it first.")
    name = _one_active(model)
    config = model.peft_config[name]
    if not isinstance(config, LorachordConfig):
        with tempfile.TemporaryDirectory() as scratch:
            model.save_pretrained(scratch, selected_adapters=[name])
            folder = Path(scratch, "" if name == "default" else name)
            if heads_of(model) is not None:
                saved = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
                kept = only_head(_tuner(model).model, saved, task)
                save_file(_separate(kept), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
            write_export_card(folder, config, f"PEFT's own, {config.peft_type}", None)
            return move(folder, out)

    tuner = _tuner(model)
    if task is not None:
        # An unknown one is refused before anything is written.
        config.task_names.index(task)
    saved = get_peft_model_state_dict(model, adapter_name=name)
    others = {key: value for key, value in saved.items() if ".lorachord_adapter." not in key}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, out.name)
        write_lora(folder, tuner.model, name, config, task, only_head(tuner.model, others, task))
        return move(folder, out)


def write_lora(
    folder: Path,
    base: nn.Module,
    name: str,
    config: LorachordConfig,
    task: str | int | None = None,
    others: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an adapter in `base` as a plain LoRA.

    Args:
        folder: is made if it is missing.
        base: the adapted model, without PEFT's wrapper.
        name: of the adapter.
        task: name or index; needed by methods with one weight per task.
        others: what is saved besides, by PEFT's keys. Default: nothing.

    Raises:
        ValueError: an input-routed method, a missing or unknown task. Nothing is then written.
    """
    index = None if task is None else config.task_names.index(task)
    pairs, tensors = {}, dict(others or {})
    for path, layer in base.named_modules():
        if isinstance(layer, LorachordLinear) and name in layer.lorachord_adapter:
            pairs[path] = factors(layer.lorachord_adapter[name], index)  # type: ignore[arg-type]
    for path, (down_RD, up_OR) in pairs.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = down_RD
        tensors[f"base_model.model.{path}.lora_B.weight"] = up_OR
    lora = _lora_config(base, config, {path: len(down_RD) for path, (down_RD, _) in pairs.items()})
    lora.save_pretrained(str(folder))
    save_file(_separate(tensors), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    write_export_card(folder, lora, config.method, None if index is None else str(task))


def _lora_config(base: nn.Module, config: LorachordConfig, ranks: Mapping[str, int]) -> LoraConfig:
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {re.escape(path): rank for path, rank in ranks.items() if rank != common}
    conv1d = any(isinstance(base.get_submodule(path).get_base_layer(), Conv1D) for path in ranks)  # type: ignore[operator]
    return LoraConfig(
        r=common,
        lora_alpha=common,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=short_names(base, ranks),
        modules_to_save=config.modules_to_save,
        trainable_token_indices=config.trainable_token_indices,
        fan_in_fan_out=conv1d,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )


def short_names(base: nn.Module, adapted: Mapping[str, int]) -> list[str]:
    """Last name parts (`q_proj`), as servers want them, where only adapted layers have them; else whole names."""
    inside = tuple(path + "." for path in adapted)
    others = {path for path, _ in base.named_modules() if path not in adapted and not path.startswith(inside)}
    taken = {path.rpartition(".")[2] for path in others}
    return sorted({path if path.rpartition(".")[2] in taken else path.rpartition(".")[2] for path in adapted})


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory, as safetensors wants them."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}


def move(folder: Path, out: Path) -> Path:
    """Put a finished folder in its place, so that `out` is never half written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    shutil.move(folder, out)
    return out


def _untie(model: PeftModel) -> None:
    base = _tuner(model).model
    for path in tied_targets(base):
        layer = base.get_submodule(path).get_base_layer()
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False


def _tuner(model: PeftModel) -> BaseTuner:
    assert isinstance(model.base_model, BaseTuner)
    return model.base_model


def _one_active(model: PeftModel) -> str:
    # The tuner's own: `model.base_model.set_adapter` leaves the PeftModel's name of it behind.
    name, *others = _tuner(model).active_adapters
    if others:
        raise ValueError(
            f"{name}, {', '.join(others)} are active, and an export is of one adapter: call set_adapter(name) first, "
            "or merge them all, with lorachord.merge(model)."
        )
    return name


def _require_peft_model(model: nn.Module) -> None:
    if not isinstance(model, PeftModel):
        raise ValueError(f"Expected a PeftModel, as lorachord.attach returns it; got {type(model).__name__}.")
