"""Embeddings of prompts, and their clusters.

Shapes: B samples, L tokens, N prompts, F features of an embedding, C clusters.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

INPUTS = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids")


def base_embedding(model: PreTrainedModel, inputs: Mapping[str, Any], mask_BL: Tensor) -> Tensor:
    """The mean of a transformers model's last hidden states over the tokens of `mask_BL`, of length one: (B, F).

    Args:
        inputs: arguments of the model's forward.
        mask_BL: the only tokens that are attended to.
    """
    body = model.base_model
    given = {name: inputs[name] for name in INPUTS if inputs.get(name) is not None}
    training = [module for module in body.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            states_BLF: Tensor = body(**given, attention_mask=mask_BL.long()).last_hidden_state
    finally:
        for module in training:
            module.training = True
    # Not a product with the mask: what stands at padding may not be a number.
    states_BLF = states_BLF.masked_fill(~mask_BL.unsqueeze(-1), 0)
    return F.normalize(states_BLF.to(torch.promote_types(states_BLF.dtype, torch.float32)).sum(1), dim=-1)


def cluster(embeddings_NF: Tensor, num_clusters: int, seed: int) -> Tensor:
    """Centroids (C, F) of embeddings, by k-means on the unit sphere; of length one, rounded as they are saved.

    Raises:
        ValueError: fewer prompts than clusters.
    """
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]

    if len(embeddings_NF) < num_clusters:
        raise ValueError(
            f"{len(embeddings_NF)} prompts cannot make {num_clusters} clusters: give more, or lower r1, r2."
        )
    unit_NF = F.normalize(embeddings_NF.detach().float().cpu(), dim=-1)
    with warnings.catch_warnings():
        # With fewer different prompts than clusters, some centroids coincide, which does no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(num_clusters, random_state=seed).fit(unit_NF.numpy()).cluster_centers_
    return unpack(pack(F.normalize(torch.from_numpy(found).float(), dim=-1)))


def pack(centroids_CF: Tensor) -> dict[str, Any]:
    """Centroids as plain data for an adapter's config: half precision, in base64."""
    return {
        "shape": list(centroids_CF.shape),
        "float16": base64.b64encode(centroids_CF.half().numpy().tobytes()).decode("ascii"),
    }


def unpack(plain: Mapping[str, Any]) -> Tensor:
    """The centroids (C, F) that `pack` has packed, in float32."""
    found = np.frombuffer(base64.b64decode(plain["float16"]), dtype=np.float16).reshape(plain["shape"])
    return torch.from_numpy(found.astype(np.float32))
