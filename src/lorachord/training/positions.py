"""Bounds of a model's rows: how many tokens one may have, and with which it ends."""

from __future__ import annotations

from torch import nn


def longest_row(base: nn.Module) -> int | None:
    """Tokens of a row that a transformers model takes at most; None if it sets no bound."""
    table = position_table(base)
    stated: int | None = getattr(base.config, "max_position_embeddings", None)
    bounds = [bound for bound in (table, stated) if bound is not None and bound > 0]
    return min(bounds, default=None)


def position_table(base: nn.Module) -> int | None:
    """Tokens of a row for which a model has learned positions; None if it computes them.

    RoBERTa and its kin count from the row after the padding's, so that their tables have rows that no token takes.
    """
    for path, module in base.named_modules():
        if path.rpartition(".")[2] in NAMES and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            # OPT's and BART's tables begin two rows later, and say so.
            return module.num_embeddings - max(unused, getattr(module, "offset", 0))
    return None


NAMES = ("position_embeddings", "embed_positions", "wpe")
"""Of tables of positions, in transformers."""


def ends_of(base: nn.Module) -> list[int]:
    """The tokens at which a model's own generate stops."""
    settings = getattr(base, "generation_config", None)
    ends: int | list[int] | None = getattr(settings, "eos_token_id", None)
    return [ends] if isinstance(ends, int) else list(ends or [])
