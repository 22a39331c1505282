"""An adapter's folder, checked before anything is built or allocated: a file may be damaged, or somebody else's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lorachord.core.config import LARGEST
from lorachord.whole import read_json

CONFIG = "adapter_config.json"
SIZES = re.compile(r"r|r\d|num_\w+|\w+_rank")
"""Options that say how large tensors are."""


def check_adapter(folder: Path) -> dict[str, Any]:
    """Whether a folder holds an adapter's config and whole weights of floating-point numbers.

    Returns:
        What the config holds.

    Raises:
        ValueError: a file is missing, damaged or no JSON, or the config's ranks are larger than any tensor.
    """
    check_weights(folder)
    config = read_json(_in(folder, CONFIG), ("peft_type",))
    if config["peft_type"] not in list(PEFT_TYPE_TO_CONFIG_MAPPING):
        raise ValueError(f"{folder / CONFIG}: there is no kind of adapter {config['peft_type']!r}.")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise ValueError(f"{folder / CONFIG}: base_model_name_or_path is {base!r}, and no name of a model.")
    options = config.get("options")
    if isinstance(options, Mapping):
        largest = _largest(folder / SAFETENSORS_WEIGHTS_NAME)
        for name, value in options.items():
            for size in _numbers(value) if SIZES.fullmatch(str(name)) else ():
                if size > largest:
                    raise ValueError(
                        f"{folder / CONFIG}: {name} is {size}, but no tensor of the weights has more than {largest} "
                        "entries. The files do not belong together, or are damaged."
                    )
    return config


def load_onto(base: nn.Module, folder: Path, *, is_trainable: bool = False) -> PeftModel:
    """A saved adapter on its base, checked before anything is built.

    Args:
        base: without adapters.
        is_trainable: whether its parameters are to be trained. Default False.

    Raises:
        ValueError: as `check_adapter`; the files do not fit each other or the base.
    """
    check_adapter(folder)
    try:
        return PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)
    except (KeyError, RuntimeError, TypeError) as error:
        # PEFT's own, of heads and fields that it does not check.
        raise ValueError(f"{folder} is damaged, or does not fit the base model: {error}") from error


def check_weights(folder: Path) -> None:
    """Raise a ValueError unless `folder` holds a whole weights file."""
    path = _in(folder, SAFETENSORS_WEIGHTS_NAME)
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); copy or download it again.") from error


def _in(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise ValueError(f"{folder} has no {name}; found {', '.join(found) or 'nothing'}.")
    return folder / name


def check_fields(config: Any) -> None:
    """Whether the fields of a `LorachordConfig` have their types.

    Raises:
        ValueError: one has another; it is named.
    """
    lists = ("tasks", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
    for name in lists:
        value = getattr(config, name)
        item = int if name == "layers_to_transform" else str
        if name == "tasks" and isinstance(value, (str, list, tuple)):
            # A string, and what is in a list, have their own words.
            continue
        several = value if isinstance(value, (list, tuple, set)) else [] if value is None else [value]
        if name == "modules_to_save" and several == [value]:
            # PEFT adds to it.
            raise ValueError(f"{name} is {value!r}; it must be a list of names.")
        if any(not isinstance(one, item) or isinstance(one, bool) for one in several):
            raise ValueError(f"{name} is {value!r}; it must be a list of {'numbers' if item is int else 'names'}.")
    if config.target_modules is None:
        raise ValueError("target_modules names no module: give names, or all-linear.")
    if config.target_parameters is not None:
        raise ValueError("target_parameters is of PEFT's LoRA; name modules in target_modules.")
    for name in ("target_modules", "exclude_modules"):
        value = getattr(config, name)
        if isinstance(value, str):
            try:
                re.compile(value)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{name} is {value!r}, which is no regular expression ({error}).") from None
    for name, kind in (("method", str), ("options", Mapping), ("format_version", int)):
        if not isinstance(getattr(config, name), kind):
            raise ValueError(f"{name} is {getattr(config, name)!r}, and no {kind.__name__.lower()}.")
    for name in ("base_fingerprint", "centroids"):
        if not isinstance(getattr(config, name), Mapping | None):
            raise ValueError(f"{name} is {getattr(config, name)!r}, and no mapping that this library has written.")
    tokens = config.trainable_token_indices
    for chosen in tokens.values() if isinstance(tokens, Mapping) else [tokens or []]:
        if not isinstance(chosen, list) or any(type(index) is not int or index < 0 for index in chosen):
            raise ValueError(f"trainable_token_indices is {tokens!r}; it must hold lists of token ids.")
    found = config.base_fingerprint
    if found is not None:
        outside = found.get("outside", {})
        samples = [found.get("sample", 0), *(outside.values() if isinstance(outside, Mapping) else [0])]
        if not isinstance(found.get("shapes"), str) or not all(_is_sample(sample) for sample in samples):
            raise ValueError("base_fingerprint is damaged: it holds no shapes, or a sample that is no list of numbers.")


def check_tensors(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Whether saved tensors can take the places of an adapter's.

    Args:
        expected: the adapter's own, of which `saved` has all.

    Raises:
        ValueError: another shape, integers in the place of numbers, NaN or infinity; the tensor is named.
    """
    for name, value in expected.items():
        found = saved[name]
        if found.shape != value.shape:
            raise ValueError(
                f"The saved adapter does not fit its config or this base: {name} has the shape {tuple(found.shape)} "
                f"there and {tuple(value.shape)} here."
            )
        if found.is_floating_point() != value.is_floating_point():
            raise ValueError(f"The saved adapter is damaged: {name} is of type {found.dtype}, not {value.dtype}.")
    for name, found in saved.items():
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise ValueError(f"The saved adapter is damaged: {name} holds NaN or infinity.")
        if found.is_floating_point() and found.numel() and float(found.abs().max()) > LARGEST:
            raise ValueError(f"The saved adapter is damaged: {name} holds {float(found.abs().max()):.3g}.")


def _largest(path: Path) -> int:
    """The entries of the largest tensor; the header alone is read."""
    with safe_open(path, framework="pt") as file:
        return max((math.prod(file.get_slice(name).get_shape()) for name in file.keys()), default=0)  # noqa: SIM118


def _numbers(value: Any) -> Iterable[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    several = value if isinstance(value, (list, tuple)) else [value]
    return [one for one in several if isinstance(one, int) and not isinstance(one, bool)]


def _is_sample(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(_is_finite(one) for one in value))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
