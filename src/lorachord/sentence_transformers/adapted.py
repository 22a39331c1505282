"""The adapter of a SentenceTransformer, and its export as a folder that the stock library loads."""

from __future__ import annotations

import tempfile
from pathlib import Path

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from sentence_transformers import SentenceTransformer
from torch import nn

from lorachord.export import move, write_lora
from lorachord.tuner.peft_config import LorachordConfig


def adapter_of(model: SentenceTransformer) -> tuple[nn.Module, str, PeftConfig]:
    """The transformers model inside, with the name and the config of its active adapter.

    Raises:
        ValueError: there is no transformers model, or no adapter.
    """
    base = model.transformers_model
    if base is None:
        raise ValueError(f"{type(model[0]).__name__} is no transformers model, and takes no adapter.")
    configs = getattr(base, "peft_config", None)
    if not configs:
        raise ValueError(
            "The model has no adapter: give peft_config=lorachord.LorachordConfig.build('mtl_lora', tasks=[...]), or "
            "call model.add_adapter(...) with it."
        )
    name = str(base.active_adapters()[0])
    return base, name, configs[name]


def export_lora(model: SentenceTransformer, out: str | Path, task: str | int | None = None) -> Path:
    """Write the active adapter as a plain LoRA in a folder that stock sentence-transformers loads.

    `SentenceTransformer(folder)` loads it on its base, and `model.load_adapter(folder)` onto a model that is there.

    Args:
        model: with an adapter of a method that does not route by its input.
        out: the folder to make; it must not hold anything.
        task: name or index; needed by methods with one weight per task.

    Returns:
        The folder.

    Raises:
        ValueError: no adapter or one of PEFT's own, an input-routed method, a missing or unknown task, or a folder that
            holds something. Nothing is then written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not empty: name a new folder, or remove it first.")
    base, name, config = adapter_of(model)
    if not isinstance(config, LorachordConfig):
        raise ValueError("The adapter is PEFT's own: model.save_pretrained(...) writes it as it is.")
    with tempfile.TemporaryDirectory() as scratch:
        lora, folder = Path(scratch, "lora"), Path(scratch, out.name)
        write_lora(lora, base, name, config, task)
        model.save_pretrained(str(folder), create_model_card=False)
        for file in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, "README.md"):
            (lora / file).replace(folder / file)
        return move(folder, out)
