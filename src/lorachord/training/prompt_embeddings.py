"""Embeddings of prompts beside their rows, so that a training step pays nothing for them.

Only for adapters that look at them (mor1e); others' rows stay as they are.

Shapes: F features of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorachord.data.mixture import Rows
from lorachord.distributed import from_first
from lorachord.models.pretrained import load_encoder
from lorachord.training.model_kind import Example, ModelKind, to_device
from lorachord.tuner.embedding import base_embedding
from lorachord.tuner.prompt_clusters import embed_prompts, encoder_of, fit_intuition, has_centroids

EMBEDDING = "embedding"
Embedder = Callable[[Sequence[Example]], Sequence[Tensor]]


class Embedded:
    """Rows with one column more, `embedding`: one row of F numbers for each text that the model reads of an example.

    Args:
        rows: map-style.
        embeddings: of each row.
    """

    def __init__(self, rows: Rows, embeddings: Sequence[Tensor]) -> None:
        self.rows, self.embeddings = rows, embeddings

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {**self.rows[index], EMBEDDING: self.embeddings[index]}


def with_embeddings(
    model: nn.Module,
    kind: ModelKind,
    data: Sequence[Rows],
    indices: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
) -> Sequence[Rows]:
    """The rows of several tasks with their prompts' embeddings, if the active adapter looks at them.

    Args:
        model: with an adapter.
        kind: the model's.
        data: one map-style dataset a task; those that have embeddings keep them.
        indices: the tasks among `kind.tasks`. Default: all, in order.
        batch_size: examples at a time. Default 64.
    """
    encoder = encoder_of(model)
    if encoder is None or all(isinstance(rows, Embedded) for rows in data):
        return data
    embed = _by_base(model, kind) if encoder == "base" else _by_other(encoder, kind, next(model.parameters()).device)
    found: list[Rows] = []
    for index, rows in zip(indices or range(len(data)), data, strict=True):
        if isinstance(rows, Embedded):
            found.append(rows)
            continue
        made: list[Tensor] = []
        for start in range(0, len(rows), batch_size):
            some = [{**rows[row], "task": index} for row in range(start, min(start + batch_size, len(rows)))]
            # Of length one, so that half precision is enough.
            made += [embedding.half().cpu() for embedding in embed(some)]
        found.append(Embedded(rows, made))
    return found


def with_intuition(
    model: nn.Module,
    kind: ModelKind,
    train_data: Sequence[Rows],
    eval_data: Sequence[Rows],
    *,
    batch_size: int,
    seed: int,
) -> tuple[tuple[Rows, ...], tuple[Rows, ...]]:
    """`with_embeddings` of both; the training prompts are clustered if the adapter has no centroids yet."""
    train_data, eval_data = (
        tuple(with_embeddings(model, kind, data, batch_size=batch_size)) for data in (train_data, eval_data)
    )
    if encoder_of(model) is not None and not has_centroids(model):
        embeddings = [embedding for rows in train_data if isinstance(rows, Embedded) for embedding in rows.embeddings]
        fit_intuition(model, from_first(torch.cat(embeddings)).float(), seed=seed)
    return train_data, eval_data


def _by_base(model: nn.Module, kind: ModelKind) -> Embedder:
    def embed(examples: Sequence[Example]) -> Sequence[Tensor]:
        prompts, num_rows = kind.prompts(examples)
        return torch.split(embed_prompts(model, to_device(prompts, model)), num_rows)

    return embed


def _by_other(name: str, kind: ModelKind, device: torch.device) -> Embedder:
    encoder, tokenizer = _load(name)
    encoder.to(device)  # type: ignore[arg-type]

    def embed(examples: Sequence[Example]) -> Sequence[Tensor]:
        texts = [kind.texts(example) for example in examples]
        longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        flat = [text for some in texts for text in some]
        batch = tokenizer(flat, truncation=True, max_length=longest, padding=True, return_tensors="pt").to(device)
        found = base_embedding(encoder, batch, batch["attention_mask"].bool())
        return torch.split(found, [len(some) for some in texts])

    return embed


@lru_cache(maxsize=1)
def _load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    # Its head, which is drawn at random, is not used.
    with torch.random.fork_rng():
        encoder, tokenizer = load_encoder(name, num_labels=1, say_new=False)
    return encoder.eval(), tokenizer
