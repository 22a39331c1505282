"""Whether a model can learn the tasks that it is given: asked before anything is made."""

from __future__ import annotations

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from lorachord.core.context import Mixing
from lorachord.core.registry import get_method
from lorachord.training.model_kind import ModelKind, base_of
from lorachord.training.positions import longest_row
from lorachord.tuner.peft_config import LorachordConfig


def check_model(kind: ModelKind, model: nn.Module) -> None:
    """Whether a model's lengths, adapters and heads fit the tasks.

    Raises:
        ValueError: `max_length` beyond the model's positions; a special token beyond its embeddings; an adapter with
            parameters for other tasks, or for these in another order; or as the kind's own `check`.
    """
    base = base_of(model)
    longest = longest_row(base)
    if longest is not None and kind.max_length > longest:
        raise ValueError(
            f"max_length is {kind.max_length}, but {type(base).__name__} takes at most {longest} tokens: give "
            f"max_length={longest} or less."
        )
    if isinstance(model, PeftModel):
        for name in model.active_adapters:
            config = model.peft_config[name]
            if isinstance(config, LorachordConfig) and get_method(config.method).mixing is Mixing.TASK:
                _check_tasks(config, [task.name for task in kind.tasks])
    check_special_tokens(kind.tokenizer, base)
    kind.check(base)


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, base: nn.Module) -> None:
    """Whether a model has embeddings for the tokens that its tokenizer adds to texts.

    Raises:
        ValueError: it has fewer; the message names the token.
    """
    table = base.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(table, nn.Embedding):
        return
    for name in ("pad", "eos", "bos", "cls", "sep", "unk"):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None and number >= table.num_embeddings:
            raise ValueError(
                f"The tokenizer's {name}_token {getattr(tokenizer, f'{name}_token')!r} is number {number}, and the "
                f"model has embeddings for {table.num_embeddings} tokens: call "
                f"model.resize_token_embeddings({len(tokenizer)}), or take the model's own tokenizer."
            )


def _check_tasks(config: LorachordConfig, names: list[str]) -> None:
    if config.tasks != names:
        raise ValueError(
            f"{config.method} has parameters for the tasks {', '.join(config.tasks or ())}, and is trained on "
            f"{', '.join(names)}: give both the same tasks in the same order, lc.attach(..., tasks={names})."
        )
