"""The tokens of prompts, as masks.

Shapes: B samples, L tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorachord.tuner.batches import first_input

IGNORED = -100
"""transformers' label of a token that no loss is taken of."""


def prompt_before(labels_BL: Tensor) -> Tensor:
    """The tokens before the first that a loss is taken of: (B, L), True for the prompt (padding before it included).

    The first token is never predicted, so it belongs to the prompt whatever its label.
    """
    counted_BL = labels_BL != IGNORED
    counted_BL[:, 0] = False
    return counted_BL.cumsum(1) == 0


def writes(model: nn.Module) -> bool:
    """Whether a model writes; in others all tokens are there from the start."""
    return isinstance(model, PreTrainedModel) and model.can_generate()


def has_answers(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the labels of a pass tell where its answers begin; those of an encoder's tokens do not."""
    labels, tokens = inputs.get("labels"), first_input(inputs)
    return writes(model) and isinstance(labels, Tensor) and tokens is not None and labels.shape == tokens.shape[:2]


def is_whole_text(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a pass of a model that writes may hold answers, and does not tell where they begin."""
    reads = inputs.get("use_cache") is True or inputs.get("past_key_values") is not None
    return writes(model) and not reads and not has_answers(model, inputs)


def warn_of_whole_text(names: list[str]) -> None:
    """Say that adapters take a whole text for the prompt.

    Warns:
        UserWarning: always.
    """
    warnings.warn(
        f"Adapter {', '.join(names)} chooses by the prompt, and this pass has no labels and names no prompt: the whole "
        "text is taken for it, so that later tokens change the outputs of earlier ones. For a perplexity or scores of "
        "answers, name the prompt: lorachord.on_task(model, tasks, prompt_mask=...). A pass that only reads a prompt "
        "says so by use_cache=True.",
        stacklevel=2,
    )


def attended(inputs: Mapping[str, Any], size: torch.Size) -> Tensor | None:
    """True for the tokens of a pass that are not padding (B, L); None where its mask does not tell.

    Of a mask over pairs of tokens, as static caches have it, the diagonal tells: a token sees itself unless it is
    padding.

    Args:
        inputs: the arguments of the pass, which does not go on from a cache, by name.
        size: (B, L).
    """
    mask = inputs.get("attention_mask")
    if isinstance(mask, Mapping):
        # One for each kind of layer.
        mask = next((one for one in mask.values() if one is not None), None)
    if mask is None:
        return torch.ones((), dtype=torch.bool).expand(size)
    if not isinstance(mask, Tensor):
        return None
    num_samples, length = size
    if mask.dim() in (3, 4) and mask.shape[-2] == length <= mask.shape[-1] and len(mask) in (1, num_samples):
        diagonal = mask.diagonal(dim1=-2, dim2=-1).flatten(1, -2)[:, 0] if mask.dim() == 4 else mask.diagonal(0, -2, -1)
        mask = diagonal.expand(size)
    if mask.shape != size:
        return None
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() and mask.min() < 0 else mask.bool()


def repeated(values: Tensor, num_samples: int, what: str) -> Tensor:
    """Values of samples for a batch that has each of them several times in place, as beams do."""
    if not len(values) or num_samples % len(values):
        raise ValueError(f"{len(values)} samples have {what}, but the batch has {num_samples}.")
    return values.repeat_interleave(num_samples // len(values), dim=0)


def fitted(mask_BL: Tensor, size: torch.Size) -> Tensor:
    """A given mask of prompts for a batch of a size (B, L)."""
    num_samples, length = size
    if mask_BL.dim() != 2 or mask_BL.shape[1] > length:
        raise ValueError(
            f"The prompt mask has shape {tuple(mask_BL.shape)}, but the input ({num_samples}, {length}). One pass must "
            "read the whole prompt, and not a chunk of it."
        )
    # What lies beyond the mask was written later.
    return F.pad(repeated(mask_BL, num_samples, "a prompt mask"), (0, length - mask_BL.shape[1]))
