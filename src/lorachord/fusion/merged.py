"""The result of a fusion: one update, as a plain LoRA or in a whole model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorachord.export import short_names
from lorachord.fusion.factors import LowRank, Update, dense, norm, truncate
from lorachord.fusion.skeleton import skeleton
from lorachord.fusion.task_vectors import Stacked, TaskVectors
from lorachord.fusion.updates import owners, with_updates
from lorachord.heads import all_by_task, keep_head
from lorachord.tuner.targets import infer_task_type

DEFAULT_RANK = 64
"""Of a LoRA that is made of whole checkpoints."""


def check_plain(others: Mapping[str, object], rank: int | None) -> None:
    """Raise a ValueError unless a plain LoRA can hold the result, and has a rank."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; it must be at least 1.")
    if others:
        raise ValueError(
            f"{len(others)} parameters besides linear weights have changed ({next(iter(others))}, ...), which no LoRA "
            "holds: save the whole model (--full, or `Merged.as_model`)."
        )


@dataclass(frozen=True)
class Merged:
    """One update of the base.

    Attributes:
        vectors: what it was made of.
        layers: the update of each linear layer.
        others: of each other parameter, where whole checkpoints were fused.
        coefficients: by layer (or parameter), the lambda_t in the order of the tasks, where the method has them.
        summed: the task vectors that these coefficients weigh, where they are not `vectors` themselves.
        notes: what else the method has to tell; plain data.
        masks: of each linear layer, the mask over the entries of its update (O, D), where the method has one.
        errors: relative distance of each layer's update from what it was before `truncated`.
    """

    vectors: TaskVectors
    layers: Mapping[str, Update]
    others: Mapping[str, Tensor] = field(default_factory=dict)
    coefficients: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    summed: TaskVectors | None = None
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def low_rank(self) -> bool:
        """Whether every part of it is low-rank, so that it is one plain LoRA."""
        return not self.others and all(isinstance(update, LowRank) for update in self.layers.values())

    @property
    def error(self) -> float:
        """Relative distance of the whole update from what it was before `truncated`."""
        lost = total = 0.0
        for name, update in self.layers.items():
            # Truncation is a projection: |kept|^2 = (1 - e^2) |whole|^2.
            error = self.errors.get(name, 0.0) ** 2
            whole = norm(update) ** 2 / max(1 - error, 1e-12)
            lost, total = lost + error * whole, total + whole
        return math.sqrt(lost / total) if total else 0.0

    def truncated(self, rank: int | None = None) -> Merged:
        """The same at a rank of at most `rank` in each layer, by singular values, with the errors.

        Args:
            rank: None keeps factors exact, and gives dense updates as many ranks as all task vectors have together
                there, or `DEFAULT_RANK` where some are of whole checkpoints.

        Raises:
            ValueError: a rank below 1, or parameters other than linear layers' weights changed.
        """
        check_plain(self.others, rank)
        layers: dict[str, Update] = {}
        errors = {}
        for name, update in self.layers.items():
            vectors = self.vectors.layers[name]
            room = rank or (sum(vectors.ranks) if isinstance(vectors, Stacked) else DEFAULT_RANK)
            if isinstance(update, LowRank) and (rank is None or update.rank <= rank):
                layers[name] = update
            else:
                layers[name], errors[name] = truncate(update, room)
        return replace(self, layers=layers, errors=errors)

    @contextmanager
    def model(self) -> Iterator[nn.Module]:
        """Within this block, the base of the task vectors with this update, for evaluation."""
        with with_updates(self.vectors.base, self.layers, self.others) as model:
            yield model

    def as_lora(self, rank: int | None = None) -> PeftModel:
        """A model with this update as PEFT's own LoRA, over a base that shares its weights.

        Args:
            rank: see `truncated`.

        Raises:
            ValueError: as `truncated`, or the update is zero everywhere.
        """
        updates = {name: update for name, update in self.truncated(rank).layers.items() if isinstance(update, LowRank)}
        updates = {name: update for name, update in updates.items() if update.rank}
        if not updates:
            raise ValueError("The fused update is zero in every layer: the base itself is the result.")
        base = skeleton(self.vectors.base)
        ranks = {name: update.rank for name, update in updates.items()}
        common = Counter(ranks.values()).most_common(1)[0][0]
        pattern = {re.escape(name): rank for name, rank in ranks.items() if rank != common}
        config = LoraConfig(
            r=common,
            lora_alpha=common,
            rank_pattern=pattern,
            alpha_pattern=dict(pattern),
            target_modules=short_names(base, ranks),
            fan_in_fan_out=isinstance(base.get_submodule(next(iter(updates))), Conv1D),
            task_type=infer_task_type(base),
            modules_to_save=[path for path, _ in all_by_task(base)] or None,
            inference_mode=True,
        )
        model = get_peft_model(base, config)
        assert isinstance(model, PeftModel)
        with torch.no_grad():
            for name, update in updates.items():
                layer: Any = model.get_base_model().get_submodule(name)
                layer.lora_A["default"].weight.copy_(update.down_RD)
                layer.lora_B["default"].weight.copy_(update.up_OR)
        return model.eval()

    def as_model(self, task: str | None = None) -> nn.Module:
        """A plain model with this update in its weights.

        Args:
            task: whose head it gets; needed where there is one for each.

        Raises:
            ValueError: a task is needed, or the weight of a changed layer is another layer's, too.
        """
        model = skeleton(self.vectors.base)
        uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, update in self.layers.items():
                layer = model.get_submodule(name)
                if uses[id(layer.weight)] > 1:
                    raise ValueError(
                        f"{name} shares its weight with another layer, which would change as well: load the base with "
                        "tie_word_embeddings=False, or leave the layer out (protect)."
                    )
                delta = dense(update).t() if isinstance(layer, Conv1D) else dense(update)
                layer.weight = nn.Parameter((layer.weight + delta).to(layer.weight.dtype), requires_grad=False)
            for name, delta in self.others.items():
                old = model.get_parameter(name)
                new = nn.Parameter((old + delta).to(old.dtype), requires_grad=False)
                for module, own in owners(model, name):
                    setattr(module, own, new)
            return keep_head(model, task)
