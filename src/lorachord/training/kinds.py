"""The kinds of models that can be trained, and the kind of a model."""

from __future__ import annotations

from torch import nn

from lorachord.training.decoder import DecoderBatches
from lorachord.training.encoder import EncoderBatches
from lorachord.training.model_kind import ModelKind, base_of

MODEL_KINDS: dict[str, type[ModelKind]] = {kind.name: kind for kind in (EncoderBatches, DecoderBatches)}
"""By the word for them in a recipe."""


def kind_of(model: nn.Module) -> type[ModelKind]:
    """The kind of a model, with an adapter or without.

    Raises:
        ValueError: it is of none.
    """
    base = base_of(model)
    for kind in MODEL_KINDS.values():
        if kind.takes(base):
            return kind
    known = "; ".join(f"{kind.name}: {kind.classes}" for kind in MODEL_KINDS.values())
    raise ValueError(f"A {type(base).__name__} is no kind of model that can be trained here. Supported are {known}.")
