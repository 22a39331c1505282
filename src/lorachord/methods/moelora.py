"""MoELoRA: a top-k mixture of LoRAs for each token, whose experts a contrastive loss keeps apart.

    y = W0 x + s * sum_{e in top k} g_e(x) B_e A_e drop(x),  s = alpha / r

with g the renormalised gates of a softmax router. Beside the task's loss, each layer has the Switch balance loss and

    contrastive * mean over q of -log( sum_{k+} exp(q . k+ / tau) / sum_{k != q} exp(q . k / tau) )

over the outputs q = B_e A_e x of the experts that each token has chosen, divided by sqrt(|q|^2 + 1e-6); within a
sequence, outputs of the same expert are positives k+, those of other experts negatives.

Luo et al., "MoELoRA: Contrastive Learning Guided Mixture of Experts on Parameter-Efficient Fine-Tuning for Large
Language Models" (arXiv 2402.12851). A_e is Kaiming-uniform, B_e zero.

Differs from the authors' code, of which no release was at hand: written from the paper's description, and the defaults
of both losses' weights, tau and the rank are ours. The contrastive loss is computed from the A_e x and the Gram matrix
of the B_e (`core/contrast.py`), on at most `contrastive_tokens` tokens of each sequence, evenly spaced.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lorachord.core.context import Context
from lorachord.core.contrast import contrastive_loss, spread_tokens
from lorachord.core.precision import without_autocast
from lorachord.core.registry import register
from lorachord.core.routed import RoutedAdapter, require_top_k
from lorachord.core.routing import Router, RouterConfig, mask_of
from lorachord.core.settings import RankConfig, option

LAYERS_AT_ONCE = 2
"""Whose contrastive losses are made in one go: few enough for their pairs to stay in a cache."""


class Kept(NamedTuple):
    """What a layer's contrastive loss is made of: rows and logits of the sampled tokens, True for those that count."""

    h_BMR: Tensor
    logits_BME: Tensor
    valid_BM: Tensor
    gram_XRR: Tensor


@register
@final
class MoELoRA(RoutedAdapter):
    """`down` stacks the A_e (E r, d_in), `up` the B_e (d_out, E r), `router.weight` is W (E, d_in)."""

    method = "moelora"
    paper = "MoELoRA (arXiv 2402.12851)"
    parameters_formula = "num_experts*r*(d_in + d_out) + num_experts*d_in"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig, RankConfig):
        """
        Args:
            num_experts: E. Default 8; per layer.
            top_k: K, how many experts a token uses. Default 2.
            balance: weight of the Switch balance loss of each layer. Default 0.01.
            contrastive: weight of the contrastive loss of each layer. Default 0.01.
            temperature: tau, at least 0.025. Default 0.1.
            contrastive_tokens: the most tokens of a sequence that the contrastive loss looks at. Default 64.
        """

        num_experts: int = option(8, low=2, per_layer=True)
        top_k: int = option(2, low=2)
        balance: float = option(0.01, low=0)
        contrastive: float = option(0.01, low=0)
        temperature: float = option(0.1, low=0.025)
        contrastive_tokens: int = option(64, low=2)

        def __post_init__(self) -> None:
            super().__post_init__()
            require_top_k(self, self.top_k)

    config: Config

    def build(self) -> None:
        config, layer = self.config, self.layer
        width = config.num_experts * config.r
        self.down = nn.Parameter(torch.empty(width, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, width))
        self.router = Router(layer.d_in, config.num_experts, config, top_k=config.top_k, own_blocks=True)
        self.kept: Kept | None = None

    def core_weight(self) -> Tensor | None:
        """The Gram matrix of the B_e, of which the contrastive loss is made."""
        if not self.config.contrastive:
            return None
        with without_autocast(self.up):
            return self.up.t() @ self.up

    def watch(self, h_BLR: Tensor, logits_BLX: Tensor, ctx: Context) -> None:
        kept = self._sample(h_BLR, logits_BLX, ctx) if self.training and self.config.contrastive > 0 else None
        # A recompute does as the pass did, and leaves what that has kept.
        if ctx.recording:
            self.kept = kept

    def _sample(self, h_BLR: Tensor, logits_BLE: Tensor, ctx: Context) -> Kept:
        mask_BL = mask_of(ctx, h_BLR)
        if mask_BL is None:
            mask_BL = torch.ones(h_BLR.shape[:2], dtype=torch.bool, device=h_BLR.device)
        # The samples as the mask has them: a layer may see rows alone.
        h_BLR, logits_BLE = h_BLR.reshape(*mask_BL.shape, -1), logits_BLE.reshape(*mask_BL.shape, -1)
        place_BM, valid_BM = spread_tokens(mask_BL, self.config.contrastive_tokens)
        if place_BM is not None:
            h_BLR, logits_BLE = (
                rows.gather(1, place_BM.unsqueeze(2).expand(-1, -1, rows.shape[2])) for rows in (h_BLR, logits_BLE)
            )
        # Here, where the weights are at hand; the graph of the choice is nobody's.
        return Kept(h_BLR, logits_BLE.detach(), valid_BM, self.shared_core(ctx))

    def penalty(self) -> Tensor | None:
        terms = self.penalties([self])
        return torch.stack(terms).sum() if terms else None

    @classmethod
    def penalties(cls, adapters: Sequence[Self]) -> list[Tensor]:
        terms = [term for one in adapters if (term := RoutedAdapter.penalty(one)) is not None]
        alike: dict[Any, list[Kept]] = {}
        for one in adapters:
            if one.kept is not None:
                shapes = tuple((part.shape, part.dtype, part.device) for part in one.kept)
                alike.setdefault((one.config, shapes), []).append(one.kept)
        for (config, _), kept in alike.items():
            for start in range(0, len(kept), LAYERS_AT_ONCE):
                terms.append(config.contrastive * _contrast(config, kept[start : start + LAYERS_AT_ONCE]))
        return terms

    def __getstate__(self) -> dict[str, Any]:
        # As a router does not.
        return {**self.__dict__, "kept": None}

    @property
    def records_penalty(self) -> bool:
        return super().records_penalty or self.config.contrastive > 0


def _contrast(config: MoELoRA.Config, layers: Sequence[Kept]) -> Tensor:
    """The sum of the contrastive losses of layers."""
    h_YBMR, logits_YBME, valid_YBM, gram_YXRR = (torch.stack(parts) for parts in zip(*layers, strict=True))
    experts_E = torch.arange(config.num_experts, device=h_YBMR.device)
    own_YBMKE = logits_YBME.topk(config.top_k).indices.unsqueeze(4) == experts_E
    own_YBMKE = (own_YBMKE & valid_YBM[..., None, None]).to(gram_YXRR.dtype)
    h_YBMER = h_YBMR.to(gram_YXRR.dtype).unflatten(3, (config.num_experts, config.r))
    q_YBMKER = own_YBMKE.unsqueeze(5) * h_YBMER.unsqueeze(3)
    outputs, owners = q_YBMKER.flatten(4).flatten(2, 3), own_YBMKE.flatten(2, 3)
    return contrastive_loss(outputs, gram_YXRR, owners, config.temperature)
