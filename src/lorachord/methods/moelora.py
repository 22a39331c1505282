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
of the B_e (`core/contrast.py`), on at most `contrastive_tokens` tokens of each sequence, evenly spaced, and at most
`contrastive_sequences` sequences of a batch.
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
from lorachord.core.router_losses import losses_of
from lorachord.core.routing import Router, RouterConfig, mask_of, mix
from lorachord.core.settings import RankConfig, option

PAIRS_AT_ONCE = 2**20
"""Of outputs, in the contrastive losses of layers that are made in one go: few enough to stay in a large cache."""


class Kept(NamedTuple):
    """What a layer's contrastive loss is made of: h and choices (0 and 1) of the sampled rows, and if they count.

    Shapes: N = C M sampled rows.
    """

    h_CMS: Tensor
    choices_EN: Tensor
    gram_XSS: Tensor
    valid_CM: Tensor


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
                its gradient less noisy, and a step longer: with 64, of layers of 384 features by .1 to .2.
            contrastive_sequences: the most sequences of a batch that it looks at. Default 8. More make its gradient
                less noisy, and a step longer: with 16, of layers of 384 features by about .02.
        """

        num_experts: int = option(8, low=2, per_layer=True)
        top_k: int = option(2, low=2)
        balance: float = option(0.01, low=0)
        contrastive: float = option(0.01, low=0)
        temperature: float = option(0.1, low=0.025)
        contrastive_tokens: int = option(16, low=2)
        contrastive_sequences: int = option(8, low=1)

        def __post_init__(self) -> None:
            super().__post_init__()
            require_top_k(self, self.top_k)

    config: Config
    router: Router

    def build(self) -> None:
        config, layer = self.config, self.layer
        width = config.num_experts * config.r
        self.down = nn.Parameter(torch.empty(width, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, width))
        self.router = Router(layer.d_in, config.num_experts, config, top_k=config.top_k, own_blocks=True)
        self.kept: Kept | None = None

    def core_weight(self) -> Tensor | None:
        """The Gram matrix of the B_e, of which the contrastive loss is made."""
        return grams_of([self.up])[0] if self.config.contrastive else None

    @classmethod
    def core_weights(cls, adapters: Sequence[Self]) -> Sequence[Tensor] | None:
        if not adapters[0].config.contrastive:
            return None
        return [gram_SS.unsqueeze(0) for gram_SS in grams_of([one.up for one in adapters])]

    def cores(self, group: Sequence[Self], h_BLX: Tensor, x_BLX: Tensor | None, ctx: Context) -> Sequence[Tensor]:
        assert x_BLX is not None
        logits_BLX, routers = self.router.noisy(x_BLX), [one.router for one in group]
        kept: Sequence[Kept | None] = [None] * len(group)
        if not self.training or not self.config.contrastive:
            mixed, *_ = mix(routers, h_BLX, logits_BLX, ctx)
        else:
            picked_C, rows_CM, valid_CM = self._places(h_BLX, ctx)
            mixed, h, choices = mix(routers, h_BLX, logits_BLX, ctx, rows_CM)
            choices = [choices_E1N.squeeze(1) for choices_E1N in choices]
            grams = [one.shared_core(ctx) for one in group]
            grams = [gram_XSS if len(gram_XSS) == 1 else gram_XSS[picked_C] for gram_XSS in grams]
            kept = [Kept(*parts, valid_CM) for parts in zip(h, choices, grams, strict=True)]
        # A recompute does as the pass did, and leaves what that has kept.
        if ctx.recording:
            for one, own in zip(group, kept, strict=True):
                one.kept = own
        return mixed

    def _places(self, h_BLX: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Which sequences (C,) and which rows (C, M) the contrastive loss looks at, and which of these count."""
        mask_BL, limits = mask_of(ctx, h_BLX), (self.config.contrastive_tokens, self.config.contrastive_sequences)
        # The samples as the mask has them: a layer may see rows alone.
        shape = h_BLX.shape[:2] if mask_BL is None else mask_BL.shape

        def spread() -> tuple[Tensor, Tensor, Tensor]:
            every_BL = torch.ones(shape, dtype=torch.bool, device=h_BLX.device) if mask_BL is None else mask_BL
            return spread_tokens(every_BL, *limits)

        near, key = ctx.neighbours, (mask_BL, shape, limits, h_BLX.device)
        return spread() if near is None else near.once(key, spread)

    def penalty(self) -> Tensor | None:
        terms = self.penalties([self])
        return torch.stack(terms).sum() if terms else None

    @classmethod
    def penalties(cls, adapters: Sequence[Self]) -> list[Tensor]:
        terms = losses_of([one.router for one in adapters])
        alike: dict[Any, list[Kept]] = {}
        for one in adapters:
            if one.kept is not None:
                shapes = tuple((part.shape, part.dtype, part.device) for part in one.kept)
                alike.setdefault((one.config, shapes), []).append(one.kept)
        for (config, _), kept in alike.items():
            num_sequences, num_tokens = kept[0].valid_CM.shape
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
    h_YCMS, choices_YEN, gram_YXSS, valid_YCM = (torch.stack(parts) for parts in zip(*layers, strict=True))
    dtype = gram_YXSS.dtype
    choices_YCME = choices_YEN.mT.unflatten(1, valid_YCM.shape[1:]) * valid_YCM.unsqueeze(3)
    # The k-th of a row's choices.
    nth_K1 = torch.arange(1, config.top_k + 1, device=choices_YEN.device).unsqueeze(1)
    own_YCMKE = choices_YCME.unsqueeze(3) * (choices_YCME.cumsum(3).unsqueeze(3) == nth_K1)
    return contrastive_loss(h_YCMS.to(dtype), gram_YXSS, own_YCMKE.to(dtype), config.temperature)
