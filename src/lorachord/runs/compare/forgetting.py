"""What a decoder forgets: how much worse it predicts ordinary text than its base does.

The measure is the change of the loss per token on a page of plain English that belongs to no task. Encoders write no
text, so there is none of theirs.
"""

from __future__ import annotations

from importlib.resources import files

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.families.by_prompt import PromptLevel
from lorachord.runs.folder import RunFolder
from lorachord.runs.use import load_run
from lorachord.tuner import LorachordConfig, on_task

PAGE = "page.txt"
LENGTH = 256
"""Tokens of a piece of text at most."""


def forgetting(run: RunFolder) -> float | None:
    """The loss per token on the page, less that of the base; the mean over tasks where the adapter differs by task.

    None for encoders, for runs of tasks alone, and for methods whose adapter reads a prompt: a page has none.
    """
    if run.recipe.model.kind != "decoder" or run.recipe.mode == "single":
        return None
    model, kind, tasks = load_run(run.path)
    config = model.peft_config[model.active_adapter]
    by_task: list[str | None] = [None]
    if isinstance(config, LorachordConfig):
        method = get_method(config.method)
        if issubclass(method, PromptLevel):
            return None
        if method.mixing is Mixing.TASK:
            by_task = [task.name for task in tasks]
    pieces = pieces_of(kind.tokenizer, files("lorachord.runs.compare").joinpath(PAGE).read_text(encoding="utf-8"))
    with torch.no_grad():
        after = [_with_task(model, pieces, task) for task in by_task]
        with model.disable_adapter():
            before = text_loss(model, pieces)
    return sum(after) / len(after) - before


def pieces_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Tensor]:
    """A text's tokens in pieces (1, L) of at most `LENGTH`, each of at least two."""
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    return [piece for piece in ids.split(LENGTH, dim=1) if piece.shape[1] > 1]


def text_loss(model: nn.Module, pieces: list[Tensor]) -> float:
    """The mean cross-entropy per predicted token, in nats."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for ids in pieces:
        logits = model(input_ids=ids.to(device)).logits[:, :-1].float()
        total += float(nn.functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:].to(device), reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


def _with_task(model: PeftModel, pieces: list[Tensor], task: str | None) -> float:
    if task is None:
        return text_loss(model, pieces)
    with on_task(model, task):
        return text_loss(model, pieces)
