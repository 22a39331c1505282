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
of the B_e (`kernels/contrast.py`), on at most `contrastive_tokens` tokens of each sequence, evenly spaced, and at most
`contrastive_sequences` sequences of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from lorachord.core.config import RankConfig, option
from lorachord.core.context import Context, PenaltyFrom
from lorachord.core.registry import register
from lorachord.core.rows import mask_of
from lorachord.families.routed import RoutedAdapter, require_top_k
from lorachord.families.router import Router, RouterConfig, router_losses
from lorachord.kernels.contrast import contrastive_loss, grams_of, spread_tokens

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

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        assert x_BLX is not None
        kept = None
        if not self.training or not self.config.contrastive:
            mixed_BLS = self.router.gate(h_BLR, x_BLX, ctx).mixed_BLS
        else:
            picked_C, rows_CM, valid_CM = self._places(h_BLR, ctx)
            found, gram_XSS = self.router.gate(h_BLR, x_BLX, ctx, rows_CM), self.shared_core(ctx)
            assert found.sampled_BMR is not None
            assert found.choices_EGN is not None
            mixed_BLS, gram_XSS = found.mixed_BLS, gram_XSS if len(gram_XSS) == 1 else gram_XSS[picked_C]
            kept = Kept(found.sampled_BMR, found.choices_EGN.squeeze(1), gram_XSS, valid_CM)
        # A recompute does as the pass did, and leaves what that has kept.
        if ctx.recording:
            self.kept = kept
        return mixed_BLS

    def _places(self, h_BLR: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """The sequences (C,) and rows (C, M) that the contrastive loss looks at, and which of these count."""
        mask_BL = mask_of(ctx, h_BLR)
        if mask_BL is None:
            mask_BL = torch.ones(h_BLR.shape[:2], dtype=torch.bool, device=h_BLR.device)
        return spread_tokens(mask_BL, self.config.contrastive_tokens, self.config.contrastive_sequences)

    @classmethod
    def penalties(cls, layers: Sequence[Self]) -> Mapping[str, Tensor]:
        alike: dict[Any, list[Kept]] = {}
        for one in layers:
            if one.kept is not None:
                shapes = tuple((part.shape, part.dtype, part.device) for part in one.kept)
                alike.setdefault((one.config, shapes), []).append(one.kept)
        terms: list[Tensor] = []
        for (config, _), kept in alike.items():
            num_sequences, num_tokens = kept[0].valid_CM.shape
            num_layers = max(PAIRS_AT_ONCE // (num_sequences * (num_tokens * config.top_k) ** 2), 1)
            for start in range(0, len(kept), num_layers):
                terms.append(config.contrastive * _contrast(config, kept[start : start + num_layers]))
        contrastive = {"contrastive": torch.stack([term.to(terms[0].device) for term in terms]).sum()} if terms else {}
        return {**router_losses([one.router for one in layers]), **contrastive}

    def __getstate__(self) -> dict[str, Any]:
        # As a router does not.
        return {**self.__dict__, "kept": None}

    @property
    def penalty_from(self) -> PenaltyFrom:
        return PenaltyFrom.PASS if self.config.contrastive else super().penalty_from


def _contrast(config: MoELoRA.Config, layers: Sequence[Kept]) -> Tensor:
    """The sum of the contrastive losses of layers."""
    h_YCMS, choices_YEN, gram_YXSS, valid_YCM = (torch.stack(parts) for parts in zip(*layers, strict=True))
    dtype = gram_YXSS.dtype
    choices_YCME = choices_YEN.mT.unflatten(1, valid_YCM.shape[1:]) * valid_YCM.unsqueeze(3)
    # The k-th of a row's choices.
    nth_K1 = torch.arange(1, config.top_k + 1, device=choices_YEN.device).unsqueeze(1)
    own_YCMKE = choices_YCME.unsqueeze(3) * (choices_YCME.cumsum(3).unsqueeze(3) == nth_K1)
    return contrastive_loss(h_YCMS.to(dtype), gram_YXSS, own_YCMKE.to(dtype), config.temperature)
