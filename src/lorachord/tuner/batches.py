"""The rows that a pass begins with: its samples, their lengths, and whose images it has.

Shapes: B samples, L tokens, I images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from lorachord.core.context import Batch, Images
from lorachord.core.prepared import Store

# What a model is given, and the names of the token that stands for it in its config.
MODALITIES = {
    "pixel_values": ("image_token_id", "image_token_index"),
    "pixel_values_videos": ("video_token_id", "video_token_index"),
    "input_features": ("audio_token_id", "audio_token_index"),
    "input_values": ("audio_token_id", "audio_token_index"),
}
TOKENS_FIRST = ("xlnet", "longformer", "led", "fsmt", "bridgetower")
"""transformers' types of models in which some layers have inputs of shape (L, B, X)."""
GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}


def first_input(inputs: Mapping[str, Any]) -> Tensor | None:
    """The tensor whose first axis is that of the samples: the tokens, or the first there is."""
    values = (inputs.get("input_ids"), inputs.get("inputs_embeds"), *inputs.values())
    return next((value for value in values if isinstance(value, Tensor) and value.dim()), None)


def batch_of(model: nn.Module, inputs: Mapping[str, Any], *, look: bool) -> Batch | None:
    """The rows of a pass.

    Args:
        inputs: the arguments of the pass, by name.
        look: whether to find out whose images are whose, for which a GPU is waited for.
    """
    given = first_input(inputs)
    if given is None:
        return None
    lengths = [given.shape[1]] if given.dim() > 1 else []
    decoder = inputs.get("decoder_input_ids")
    if isinstance(decoder, Tensor):
        lengths.append(decoder.shape[1])
    tokens_first = isinstance(model, PreTrainedModel) and model.config.model_type in TOKENS_FIRST
    images = _images(model, inputs) if look else None
    return Batch(len(given), tuple(lengths), images, tokens_first, given.new_empty(*given.shape[:2], 0))


def _images(model: nn.Module, inputs: Mapping[str, Any]) -> Images | None:
    if not isinstance(model, PreTrainedModel):
        return None
    tokens: dict[str, int] = {}
    for name, keys in MODALITIES.items():
        found = [getattr(model.config, key, None) for key in keys]
        token = next((token for token in found if isinstance(token, int)), None)
        if token is not None and isinstance(inputs.get(name), Tensor):
            tokens[name] = token
    if not tokens:
        return None
    shares = [_share(model, inputs, name, token) for name, token in tokens.items()]
    known = tuple(share for share in shares if share is not None)
    return Images(known if len(known) == len(shares) else (), *_scopes(model))


def _share(model: PreTrainedModel, inputs: Mapping[str, Any], name: str, token: int) -> tuple[int, ...] | None:
    """How the rows of one kind of images fall to the samples, by the tokens that stand for them."""
    ids_BL, values = inputs.get("input_ids"), inputs[name]
    if not isinstance(ids_BL, Tensor) or name not in GRIDS:
        return None
    tokens_B: list[int] = (ids_BL == token).sum(1).tolist()
    total, grid_I3 = sum(tokens_B), inputs.get(GRIDS[name])
    if isinstance(grid_I3, Tensor):
        merged = model.config.vision_config.spatial_merge_size**2
        sizes = iter((grid_I3.prod(1) // merged).tolist())
        # Each sample's tokens are those of the images that are next, and none is left.
        if all(_taken(sizes, count) for count in tokens_B) and next(sizes, None) is None:
            return tuple(tokens_B)
        return None
    if values.dim() == 5 and len(values) == len(ids_BL):
        # Padding images are all zeros, and the model leaves them out.
        images_B: list[int] = (values != 0).flatten(2).any(2).sum(1).tolist()
    elif values.dim() == 4 and total and total % len(values) == 0:
        # Every image has as many tokens.
        images_B = [count * len(values) // total for count in tokens_B]
    else:
        return None
    alike = all(count * sum(images_B) == images * total for count, images in zip(tokens_B, images_B, strict=True))
    return tuple(images_B) if alike else None


def _taken(sizes: Any, count: int) -> bool:
    while count > 0:
        count -= next(sizes, count + 1)
    return count == 0


def _scopes(model: PreTrainedModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the modules that see images (or sounds) alone, and of those that see text alone.

    Beside a language model lie towers, and connectors from them.
    """
    decoder, output = model.get_decoder(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    text: tuple[nn.Module | None, ...] = (output,)
    if decoder is model or decoder not in names:
        towers = [module for module in names if module is not model and _sees_no_text(module)]
    else:
        text, parent = (decoder, output), model.get_submodule(names[decoder].rpartition(".")[0])
        towers = [module for module in parent.children() if module is not decoder and module is not output]
    return tuple(names[tower] for tower in towers), tuple(names[one] for one in text if one in names)


def _sees_no_text(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel) and "text" not in module.input_modalities


def is_packed(inputs: Mapping[str, Any]) -> bool:
    """Whether rows hold several texts one after another: by their lengths, or by positions that begin anew."""
    if isinstance(inputs.get("cu_seq_lens_q"), Tensor):
        return True
    positions_BL, mask_BL = inputs.get("position_ids"), inputs.get("attention_mask")
    if not isinstance(positions_BL, Tensor) or positions_BL.dim() != 2 or positions_BL.shape[1] < 2:
        return False
    anew_BL = positions_BL[:, 1:] < positions_BL[:, :-1]
    if isinstance(mask_BL, Tensor) and mask_BL.shape == positions_BL.shape:
        # The positions of padding mean nothing.
        anew_BL = anew_BL & mask_BL[:, 1:].bool() & mask_BL[:, :-1].bool()
    return bool(torch.any(anew_BL))


def store_of(inputs: Mapping[str, Any], batch: Batch, store: Store | None) -> Store | None:
    """The store of a block in a pass over one token of each sample behind a cache, without gradients; else None."""
    if store is None:
        return None
    cache = inputs.get("past_key_values")
    behind_cache = isinstance(cache, Cache) and batch.lengths[-1:] == (1,) and cache.get_seq_length() > 0
    if torch.is_grad_enabled() or not behind_cache:
        # What is read anew is read by the weights of now.
        store.clear()
        return None
    return store
