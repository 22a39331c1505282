"""Clusters of training prompts, for methods that route by them (mor1e).

Shapes: B samples, L tokens, N prompts, F features of an embedding, C clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lorachord.tuner.callers import Given, Named, naming
from lorachord.tuner.passes import passes_of
from lorachord.tuner.state import SharedState
from lorachord.tuner.walk import active_adapters, states_of


def fit_intuition(model: nn.Module, prompts: Iterable[Mapping[str, Tensor]] | Tensor, *, seed: int = 0) -> Tensor:
    """Cluster the training prompts of the active adapter, and keep the centroids with it: in its config.

    Recipes and `MultiTaskTrainer` do this by themselves. From then on a forward pass without embeddings makes them with
    one extra pass of the frozen base, and keeps them through decoding.

    Args:
        model: with an adapter of a method that looks at embeddings of prompts (mor1e), however wrapped.
        prompts: batches of the model's inputs (`input_ids`, `attention_mask`, ...), as `embed_prompts` takes them; or
            embeddings (N, F) that were made otherwise, and are then given to every pass by `on_task(embedding=...)`.
        seed: of k-means. Default 0.

    Returns:
        The centroids (C, F), of length one, on the CPU.

    Raises:
        ValueError: the method needs none, or there are fewer prompts than clusters.
    """
    state, name = _looking(model)
    if not isinstance(prompts, Tensor):
        prompts = torch.cat([embed_prompts(model, batch).cpu() for batch in prompts])
    return state.prompts.fit(name, prompts, seed)


def embed_prompts(model: nn.Module, inputs: Mapping[str, Tensor], prompt_mask: Tensor | None = None) -> Tensor:
    """The embeddings of a batch of prompts by the frozen base: (B, F), float32, of length one.

    Args:
        model: with an adapter; it does not act here.
        inputs: of the model, as for a forward pass. With `labels` of a decoder, the prompt is what comes before the
            first that counts.
        prompt_mask: True for the tokens of the prompt (B, L). Default: by `labels`, or all that are not padding.
    """
    state, _ = _looking(model)
    root = next(module for module in model.modules() if passes_of(module) is not None)
    with naming({state.caller: Named(state.named, Given(prompt_mask))}):
        return state.prompts.embed(root, inputs, state.prompts.mask_of(root, inputs))


def encoder_of(model: nn.Module) -> str | None:
    """What embeds the prompts for the active adapter: `base` or another's name; None where nothing looks at it."""
    found = _embedding_adapter(model)
    return None if found is None else found[0].prompts.encoders[found[1]]


def has_centroids(model: nn.Module) -> bool:
    """Whether the prompts of the active adapter, which looks at their embeddings, have been clustered."""
    state, name = _looking(model)
    return name in state.prompts.centroids


def _embedding_adapter(model: nn.Module) -> tuple[SharedState, str] | None:
    names = active_adapters(model)
    pairs = ((state, name) for state in states_of(model) for name in names)
    return next((pair for pair in pairs if pair[0].prompts.encoders.get(pair[1]) is not None), None)


def _looking(model: nn.Module) -> tuple[SharedState, str]:
    found = _embedding_adapter(model)
    if found is None:
        raise ValueError(
            "The active adapter does not look at embeddings of prompts, as mor1e does: there is nothing to fit."
        )
    return found
