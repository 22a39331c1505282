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
from lorachord.core.contrast import contrastive_loss, grams_of, spread_tokens
from lorachord.core.registry import register
from lorachord.core.routed import RoutedAdapter, require_top_k
from lorachord.core.routing import Router, RouterConfig, mask_of
from lorachord.core.settings import RankConfig, option

PAIRS_AT_ONCE = 2**18
"""Of outputs, in the contrastive losses of layers that are made in one go: few enough to stay in a cache."""


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
            contrastive_tokens: the most tokens of a sequence that the contrastive loss looks at. Default 16. More make
                its gradient less noisy, and a step longer: with 64, of layers of 384 features by a fifth.
        """

        num_experts: int = option(8, low=2, per_layer=True)
        top_k: int = option(2, low=2)
        balance: float = option(0.01, low=0)
        contrastive: float = option(0.01, low=0)
        temperature: float = option(0.1, low=0.025)
        contrastive_tokens: int = option(16, low=2)

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
        return grams_of([self.up]).squeeze(0) if self.config.contrastive else None

    @classmethod
    def watch(cls, group: Sequence[Self], h_BLX: Tensor, logits_BLX: Tensor, ctx: Context) -> None:
        samples: Sequence[Kept | None] = [None] * len(group)
        if group[0].training and group[0].config.contrastive > 0:
            samples = cls._samples(group, h_BLX, logits_BLX.detach(), ctx)
        # A recompute does as the pass did, and leaves what that has kept.
        if ctx.recording:
            for one, kept in zip(group, samples, strict=True):
                one.kept = kept

    @classmethod
    def _samples(cls, group: Sequence[Self], h_BLX: Tensor, logits_BLX: Tensor, ctx: Context) -> list[Kept]:
        mask_BL, limit = mask_of(ctx, h_BLX), group[0].config.contrastive_tokens
        # The samples as the mask has them: a layer may see rows alone.
        shape = h_BLX.shape[:2] if mask_BL is None else mask_BL.shape

        def spread() -> tuple[Tensor | None, Tensor]:
            every_BL = torch.ones(shape, dtype=torch.bool, device=h_BLX.device) if mask_BL is None else mask_BL
            return spread_tokens(every_BL, limit)

        key = mask_BL, shape, limit, h_BLX.device
        row_S, valid_BM = spread() if ctx.neighbours is None else ctx.neighbours.once(key, spread)
        parts = []
        for rows_BLX in (h_BLX, logits_BLX):
            rows_NX = rows_BLX.reshape(-1, rows_BLX.shape[-1])
            rows_SX = rows_NX if row_S is None else rows_NX.index_select(0, row_S)
            parts.append(rows_SX.view(*valid_BM.shape, len(group), -1).unbind(2))
        # The Gram matrices here, where the weights are at hand.
        if group[0].probes is None and len({one.up.shape for one in group}) == 1:
            grams: Sequence[Tensor] = grams_of([one.up for one in group]).unsqueeze(1).unbind()
        else:
            grams = [one.shared_core(ctx) for one in group]
        return [Kept(h, logits, valid_BM, gram) for h, logits, gram in zip(*parts, grams, strict=True)]

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
            num_sequences, num_tokens = kept[0].valid_BM.shape
            num_layers = max(PAIRS_AT_ONCE // (num_sequences * (num_tokens * config.top_k) ** 2), 1)
            for start in range(0, len(kept), num_layers):
                terms.append(config.contrastive * _contrast(config, kept[start : start + num_layers]))
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
    return contrastive_loss(h_YBMR.to(gram_YXRR.dtype), gram_YXRR, own_YBMKE, config.temperature)
