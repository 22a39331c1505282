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

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lorachord.core.context import Context
from lorachord.core.contrast import contrastive_loss, spread_tokens
from lorachord.core.precision import without_autocast
from lorachord.core.registry import register
from lorachord.core.routed import RoutedAdapter, require_top_k
from lorachord.core.routing import Router, RouterConfig, mask_of
from lorachord.core.settings import RankConfig, option


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

    def core_weight(self) -> Tensor | None:
        """The Gram matrix of the B_e, of which the contrastive loss is made."""
        if not self.config.contrastive:
            return None
        with without_autocast(self.up):
            return self.up.t() @ self.up

    def watch(self, h_BLR: Tensor, logits_BLX: Tensor, ctx: Context) -> None:
        if self.training and self.config.contrastive > 0:
            loss = self._contrast(h_BLR, logits_BLX, ctx)
            if loss is not None:
                assert self.router is not None
                self.router.record(self.config.contrastive * loss)

    def _contrast(self, h_BLR: Tensor, logits_BLE: Tensor, ctx: Context) -> Tensor | None:
        config, mask_BL = self.config, mask_of(ctx, h_BLR)
        if mask_BL is None:
            mask_BL = torch.ones(h_BLR.shape[:2], dtype=torch.bool, device=h_BLR.device)
        # The samples as the mask has them: a layer may see rows alone.
        h_BLR, logits_BLE = h_BLR.reshape(*mask_BL.shape, -1), logits_BLE.reshape(*mask_BL.shape, -1)
        place_BM, valid_BM = spread_tokens(mask_BL, config.contrastive_tokens)
        if place_BM is not None:
            h_BLR, logits_BLE = (
                rows.gather(1, place_BM.unsqueeze(2).expand(-1, -1, rows.shape[2])) for rows in (h_BLR, logits_BLE)
            )
        expert_BMK = logits_BLE.topk(config.top_k).indices
        gram_BRR = self.shared_core(ctx)
        experts_E = torch.arange(config.num_experts, device=h_BLR.device)
        own_BMKE = (expert_BMK.unsqueeze(3) == experts_E) & valid_BM[:, :, None, None]
        own_BMKE = own_BMKE.to(gram_BRR.dtype)
        h_BMER = h_BLR.to(gram_BRR.dtype).unflatten(2, (config.num_experts, config.r))
        q_BMKER = own_BMKE.unsqueeze(4) * h_BMER.unsqueeze(2)
        outputs, owners = q_BMKER.flatten(3).flatten(1, 2), own_BMKE.flatten(1, 2)
        return contrastive_loss(outputs, gram_BRR, owners, config.temperature, ctx.recording)

    @property
    def records_penalty(self) -> bool:
        return super().records_penalty or self.config.contrastive > 0
