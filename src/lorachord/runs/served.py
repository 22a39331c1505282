"""Models that answer tasks, wherever they lie: in a run folder, in an exported LoRA, in a merged model.

Only small files are read until a model is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lorachord.data.task import Source, Task
from lorachord.models.pretrained import load_decoder, load_encoder
from lorachord.runs.arguments import autocast_to
from lorachord.runs.folder import RunFolder
from lorachord.runs.usage import TASK_FILE
from lorachord.runs.use import load_run, open_run
from lorachord.training.kinds import MODEL_KINDS
from lorachord.training.model_kind import ModelKind
from lorachord.tuner.adapter_files import CONFIG, check_adapter, load_onto
from lorachord.whole import read_json

KEYS = ("model", "kind", "max_length", "tasks")
TASK_KEYS = ("name", "kind", "text", "prompt")


class Served(Protocol):
    """A model with the tasks that it answers.

    Attributes:
        path: where it lies.
        tasks: in the order of its kind's.
        batch_size, max_new_tokens, precision: how its run was scored.
    """

    path: Path
    tasks: tuple[Task, ...]
    batch_size: int
    max_new_tokens: int
    precision: str

    @property
    def loaded(self) -> tuple[nn.Module, ModelKind]:
        """The model in eval mode and its kind, read once."""


class ServedRun:
    """A finished joint run."""

    def __init__(self, folder: RunFolder) -> None:
        recipe = folder.recipe
        self.path, self.tasks = folder.path, recipe.tasks.chosen()
        self.batch_size, self.max_new_tokens = recipe.evaluation.batch_size, recipe.evaluation.max_new_tokens
        self.precision: str = recipe.training.precision

    @cached_property
    def loaded(self) -> tuple[nn.Module, ModelKind]:
        """The base with the run's adapter."""
        model, kind, _ = load_run(self.path)
        return model, kind


class ServedExport:
    """An exported LoRA or a merged model, described by the file that was written beside it.

    Raises:
        ValueError: the file is damaged, or of an older version that did not say enough.
    """

    def __init__(self, path: Path) -> None:
        file = path / TASK_FILE
        self.path, self.told = path, read_json(file, KEYS)
        if self.told["kind"] not in MODEL_KINDS or not isinstance(self.told["tasks"], list) or not self.told["tasks"]:
            raise ValueError(f"{file} is damaged: it has no kind of model, or no tasks.")
        self.tasks = tuple(_task(described, file) for described in self.told["tasks"])
        self.batch_size, self.max_new_tokens = self._whole("batch_size"), self._whole("max_new_tokens")
        self.max_length = self._whole("max_length")
        self.precision, self.dtype = self._word("precision"), self._word("dtype")

    @cached_property
    def loaded(self) -> tuple[nn.Module, ModelKind]:
        """The base with the LoRA, or the merged model."""
        is_lora = (self.path / CONFIG).is_file()
        base, tokenizer = self._base(self._base_name(check_adapter(self.path)) if is_lora else str(self.path))
        model = load_onto(base, self.path) if is_lora else base
        return model.eval(), MODEL_KINDS[self.told["kind"]](tokenizer, self.tasks, self.max_length)

    def _base(self, name: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        dtype = getattr(torch, self.dtype)
        if self.told["kind"] == "encoder":
            return load_encoder(
                name, num_labels=max(task.num_outputs for task in self.tasks), dtype=dtype, say_new=False
            )
        return load_decoder(name, dtype=dtype)

    def _base_name(self, config: Mapping[str, Any]) -> str:
        """What the LoRA itself names, unless that was a folder of another machine."""
        own = str(config.get("base_model_name_or_path") or self.told["model"])
        return own if Path(own).is_dir() or not Path(own).is_absolute() else str(self.told["model"])

    def _whole(self, key: str) -> int:
        value = self.told.get(key, 64)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{self.path / TASK_FILE} is damaged: its {key} is {value!r}.")
        return value

    def _word(self, key: str) -> str:
        known = {"precision": ("float32", "bf16", "fp16"), "dtype": ("float32", "bfloat16", "float16")}[key]
        value = self.told.get(key, "float32")
        if value not in known:
            raise ValueError(f"{self.path / TASK_FILE} is damaged: its {key} is {value!r}.")
        return str(value)


def find_served(path: str | Path) -> list[Served]:
    """The models in a folder, none of which is read yet.

    Args:
        path: a finished run of either mode or its `adapter` folder; an exported LoRA, or a folder with one a task; a
            merged model.

    Raises:
        ValueError: the folder is none of these, a run is not finished, or two of its models answer one task.
    """
    path = Path(path)
    inside = path.name == "adapter" and not (path / TASK_FILE).is_file() and (path.parent / "recipe.yaml").is_file()
    path = path.parent if inside else path
    if (path / "recipe.yaml").is_file():
        folder = open_run(path)
        if folder.recipe.mode == "joint":
            return [ServedRun(folder)]
        return [ServedRun(open_run(path / task.name)) for task in folder.recipe.tasks.chosen()]
    found: list[Served] = [ServedExport(file.parent) for file in sorted(path.rglob(TASK_FILE))] if path.is_dir() else []
    if not found:
        raise ValueError(_unknown(path))
    _refuse_repeated([task.name for served in found for task in served.tasks], path)
    return found


def _unknown(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is no folder; name a run, an exported LoRA or a merged model."
    if (path / CONFIG).is_file() or (path / "config.json").is_file():
        return (
            f"{path} does not say which tasks it answers: it has no {TASK_FILE}, as `lorachord export RUN` and "
            "`lorachord merge RUN` write it. Name the run itself, or export it again."
        )
    holds = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
    return f"{path} is no run, exported LoRA or merged model; it holds {holds or 'nothing'}."


def _refuse_repeated(names: Sequence[str], path: Path) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} has several models for {', '.join(repeated)}: name the folder of one of them.")


def _task(described: Any, file: Path) -> Task:
    lacking = [key for key in TASK_KEYS if not isinstance(described, dict) or key not in described]
    if lacking:
        raise ValueError(
            f"{file} does not say {', '.join(lacking)} of a task: it is damaged, or was written by an older version; "
            "export the run again."
        )
    names = described.get("id2label", {})
    try:
        return Task(
            described["name"],
            kind=described["kind"],
            text=tuple(described["text"]),
            source=Source(path="memory", columns=described.get("columns", {})),
            choices=described.get("choices", "choices"),
            labels=tuple(names[str(index)] for index in range(len(names))),
            answers=tuple(described.get("answers", ())),
            prompt=described["prompt"],
            prefix=described.get("prefix", ""),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def autocast_of(served: Served) -> torch.autocast:
    """The precision that a model's run was scored in."""
    return autocast_to(served.precision)
