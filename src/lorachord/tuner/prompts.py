"""What a forward pass tells methods that choose once for each prompt: which tokens are the prompt, and its embedding.

A pass that goes on from a cache sees no prompt any more. So what the layers have read of the prompt is put on the cache
itself: it lives as long, is copied with it, and interleaved generations cannot take each other's.

Shapes: B samples, L tokens, F features of an embedding, C clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput

from lorachord.core.adapter import Adapter
from lorachord.core.context import NO_CONTEXT, Context
from lorachord.core.registry import get_method
from lorachord.families.by_prompt import PromptLevel
from lorachord.kernels.devices import moved
from lorachord.tuner.batches import first_input, is_packed
from lorachord.tuner.callers import Caller, Given
from lorachord.tuner.embedding import base_embedding, cluster, pack, unpack
from lorachord.tuner.peft_config import LorachordConfig
from lorachord.tuner.prompt_masks import (
    attended,
    fitted,
    has_answers,
    is_whole_text,
    prompt_before,
    repeated,
    warn_of_whole_text,
)

ON_CACHE = "_lorachord_prompts"


class Prompts:
    """The prompts of the passes through one model.

    Args:
        caller: who says what they are, in `on_task`.

    Attributes:
        encoders: what embeds them, by adapter; None for an adapter that needs no embedding. Only adapters that choose
            by prompt are in here.
        centroids: (C, F) by adapter, once they are fitted.
        configs: of all adapters; the centroids are saved in them.
        warned: whether it was said that a pass takes a whole text for the prompt.
    """

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.encoders: dict[str, str | None] = {}
        self.centroids: dict[str, Tensor] = {}
        self.configs: dict[str, LorachordConfig] = {}
        self.warned = False

    def add_adapter(self, name: str, adapters: list[Adapter], config: LorachordConfig) -> None:
        """Take up an adapter, which may choose by prompt or not; the name may have been another's before."""
        self.forget(name)
        self.configs[name] = config
        looking = next((adapter for adapter in adapters if isinstance(adapter, PromptLevel)), None)
        if looking is not None:
            self.encoders[name] = looking.encoder(config.method_config) if looking.embeds else None
        if config.centroids is not None:
            self.centroids[name] = unpack(config.centroids)

    def forget(self, name: str) -> None:
        """Drop what is known of an adapter."""
        self.encoders.pop(name, None)
        self.centroids.pop(name, None)
        self.configs.pop(name, None)

    def fit(self, name: str, embeddings_NF: Tensor, seed: int) -> Tensor:
        """Cluster the embeddings of an adapter's training prompts; the centroids are saved with its config."""
        config = self.configs[name]
        method = get_method(config.method)
        assert issubclass(method, PromptLevel)
        self.centroids[name] = cluster(embeddings_NF, method.num_clusters(config.method_config), seed)
        config.centroids = pack(self.centroids[name])
        return self.centroids[name]

    def settle(
        self, model: nn.Module, inputs: Mapping[str, Any], names: list[str], contexts: Mapping[str, Context]
    ) -> dict[str, Context]:
        """The contexts of a pass with all that the adapters called `names` need to know of the prompts.

        Args:
            inputs: the arguments of the pass, by name.

        Raises:
            ValueError: a mask or embeddings that do not fit the batch, no centroids, a cache of unknown prompts, or
                several prompts in a row.
        """
        if is_packed(inputs) or any(contexts.get(name, NO_CONTEXT).tokens is not None for name in names):
            raise ValueError(
                f"Adapter {', '.join(names)} chooses once for each prompt, but the rows of this batch hold several "
                "texts one after another (packing). Give each text a row of its own, or take a method that chooses by "
                "token or by task."
            )
        size = _given(inputs).shape[:2]
        cache = inputs.get("past_key_values")
        contexts = dict(contexts)
        if isinstance(cache, Cache) and cache.get_seq_length() > 0:
            before: Mapping[str, Context] = vars(cache).get(ON_CACHE, {})
            for name in names:
                contexts[name] = _recalled(contexts.get(name, NO_CONTEXT), before.get(name), size, name)
            return contexts
        mask_BL = self.mask_of(model, inputs)
        if not self.warned and self.caller.named.given.mask_BL is None and is_whole_text(model, inputs):
            self.warned = True
            warn_of_whole_text(names)
        # A graph must not hold on to what holds on to it: checkpoints remember contexts.
        keeps = not (model.training and torch.is_grad_enabled())
        embeddings: dict[str, Tensor] = {}
        for name in names:
            encoder, cosines_BC = self.encoders[name], None
            if encoder is not None:
                if encoder not in embeddings:
                    embeddings[encoder] = self._embedding(name, model, inputs, mask_BL)
                cosines_BC = self._cosines(name, embeddings[encoder])
            contexts[name] = replace(
                contexts.get(name, NO_CONTEXT),
                prompt_mask_BL=mask_BL,
                cosines_BC=cosines_BC,
                kept={} if keeps else None,
                recalled=None,
            )
        kept = {name: contexts[name] for name in names} if keeps else {}
        if isinstance(cache, Cache):
            vars(cache)[ON_CACHE] = kept
        else:
            self.caller.passing.pending = kept
        return contexts

    def finish(self, output: Any) -> None:
        """After a pass: put what it has kept on the cache that it has made, if any."""
        passing = self.caller.passing
        kept, passing.pending = passing.pending, {}
        values = output.values() if isinstance(output, ModelOutput) else output if isinstance(output, tuple) else ()
        cache = next((value for value in values if isinstance(value, Cache)), None)
        if kept and cache is not None:
            vars(cache)[ON_CACHE] = kept

    def mask_of(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """True for the tokens of the prompts (B, L): as given, or before the labels of a decoder, or all.

        Raises:
            ValueError: the attention mask does not tell what is padding.
        """
        tokens, labels, given_BL = _given(inputs), inputs.get("labels"), self.caller.named.given.mask_BL
        mask_BL = attended(inputs, tokens.shape[:2])
        if given_BL is not None:
            fitted_BL = fitted(moved(given_BL.bool(), tokens.device), tokens.shape[:2])
            return fitted_BL if mask_BL is None else fitted_BL & moved(mask_BL, tokens.device)
        if mask_BL is None:
            raise ValueError(
                "The attention mask of this pass does not tell the padding, so the prompts are not known: give a mask "
                "of shape (B, L), or name their tokens, with lorachord.on_task(model, tasks, prompt_mask=...)."
            )
        mask_BL = moved(mask_BL, tokens.device)
        return prompt_before(labels) & mask_BL if has_answers(model, inputs) else mask_BL  # type: ignore[arg-type]

    def given_to_write(self, inputs: Mapping[str, Any]) -> Given:
        """What `generate` is given is the prompt, and what it writes is not, whatever its cache.

        Args:
            inputs: the arguments of `generate`, by name.
        """
        given, tokens, mask_BL = self.caller.named.given, first_input(inputs), inputs.get("attention_mask")
        if not self.encoders or given.mask_BL is not None or tokens is None:
            return given
        whole = isinstance(mask_BL, Tensor) and mask_BL.shape == tokens.shape[:2]
        return replace(given, mask_BL=mask_BL if whole else torch.ones(1, tokens.shape[1]))

    def _embedding(self, name: str, model: nn.Module, inputs: Mapping[str, Any], mask_BL: Tensor) -> Tensor:
        given = self.caller.named.given.embedding_BF
        if given is not None:
            return repeated(moved(given, mask_BL.device), len(mask_BL), "an embedding")
        if self.encoders[name] != "base":
            raise ValueError(
                f"The prompts of adapter {name!r} are embedded by {self.encoders[name]!r}: give their embeddings, "
                "with lorachord.on_task(model, tasks, embedding=...)."
            )
        return self.embed(model, inputs, mask_BL)

    def embed(self, model: nn.Module, inputs: Mapping[str, Any], mask_BL: Tensor) -> Tensor:
        """The frozen base's embeddings of prompts: (B, F), in one pass in which no adapter acts."""
        if not isinstance(model, PreTrainedModel):
            raise ValueError(
                f"A {type(model).__name__}, which is no transformers model, cannot embed its prompts: give their "
                "embeddings, with lorachord.on_task(model, tasks, embedding=...)."
            )
        passing = self.caller.passing
        passing.embedding = True
        try:
            return base_embedding(model, inputs, mask_BL)
        finally:
            passing.embedding = False

    def _cosines(self, name: str, embedding_BF: Tensor) -> Tensor:
        if name not in self.centroids:
            raise ValueError(
                f"Adapter {name!r} routes by clusters of prompts, and has none yet: call "
                "lorachord.fit_intuition(model, batches) with the training prompts first."
            )
        embedding_BF = embedding_BF.to(torch.promote_types(embedding_BF.dtype, torch.float32))
        centroids_CF = moved(self.centroids[name].to(embedding_BF.dtype), embedding_BF.device)
        if embedding_BF.shape[-1] != centroids_CF.shape[1]:
            raise ValueError(
                f"The embeddings have {embedding_BF.shape[-1]} features, but those that adapter {name!r} was fitted on "
                f"had {centroids_CF.shape[1]}."
            )
        return F.normalize(embedding_BF, dim=-1) @ F.normalize(centroids_CF, dim=-1).t()


def _recalled(context: Context, before: Context | None, size: torch.Size, name: str) -> Context:
    if before is None or before.prompt_mask_BL is None:
        raise ValueError(
            f"Adapter {name!r} chooses by the prompt, but this pass goes on from a cache whose prompt it has not seen: "
            "let one pass with the adapter read the whole prompt first (in eval mode, or without gradients)."
        )
    cosines_BC = before.cosines_BC
    mask_BL = repeated(before.prompt_mask_BL[:, :1], size[0], "a prompt in the cache")
    return replace(
        context,
        prompt_mask_BL=torch.zeros_like(mask_BL).expand(size),
        cosines_BC=None if cosines_BC is None else repeated(cosines_BC, size[0], "a prompt in the cache"),
        recalled=before.kept,
    )


def _given(inputs: Mapping[str, Any]) -> Tensor:
    tokens = first_input(inputs)
    assert tokens is not None, "a pass without any input"
    return tokens
