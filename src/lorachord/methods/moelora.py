"""The method `moelora`: a mixture of LoRAs with a contrastive loss."""

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
from lorachord.kernels.contrast import contrastive_loss, gram_of, spread_tokens

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
    """A router picks LoRA experts for each token; a contrastive loss keeps experts apart.

    Equation:
        y = W0 x + s * sum_{e in top K} g_e(x) B_e A_e drop(x),  e = 1..E,  s = alpha / r

        contrastive loss of a layer:
        mean over q of -log( sum_{k+} exp(q . k+ / tau) / sum_{k != q} exp(q . k / tau) )

    Where:
        The g_e are the renormalised gates of a softmax router W. Beside the task's loss, each layer has the Switch
        balance loss and the contrastive loss, with the weights `balance` and `contrastive`. A q is an output B_e A_e x
        of an expert that a token has chosen, divided by sqrt(|q|^2 + 1e-6). Within a sequence, outputs of the same
        expert are positives k+, and outputs of other experts are negatives.

    Paper:
        Luo et al., "MoELoRA: Contrastive Learning Guided Mixture of Experts on Parameter-Efficient Fine-Tuning for
        Large Language Models" (arXiv 2402.12851).

    Start:
        The A_e and W are Kaiming-uniform, and the B_e are zero.

    Defaults:
        num_experts 8, top_k 2, balance 0.01, contrastive 0.01, temperature 0.1, contrastive_tokens 16,
        contrastive_sequences 8, z 0, noise 0, r 8, alpha 16, dropout 0.

    Take it when:
        You want a full mixture of LoRAs, in which experts share nothing. With `contrastive: 0` it is the plain mixture
        that others are compared with.

    Leave it when:
        The adapter must merge or export: it equals no single weight. On four GLUE tasks it was 0.027 ± 0.012 behind
        joint LoRA at equal parameters (docs/findings.md). A learning rate of 1e-3, with 64 tokens in the contrastive
        loss, brought it to 0.756, beside LoRA's 0.765. It cannot solve tasks that contradict each other on the same
        inputs. It is the slowest method: with 64 tokens a step on a GPU took 4.62x that of PEFT's LoRA with small
        batches, and 0.97x with large ones.

    Differs from the authors' code:
        No release was at hand: this follows the paper's description. The weights of both losses, tau and the rank are
        our defaults. The contrastive loss is computed from the A_e x and the Gram matrix of the B_e
        (`kernels/contrast.py`). It looks at `contrastive_tokens` tokens of a sequence at most, evenly spaced, and at
        `contrastive_sequences` sequences of a batch at most.

    Parameters:
        down (E r, d_in): the A_e, stacked.
        up (d_out, E r): the B_e side by side.
        router.weight (E, d_in): W.
    """

    method = "moelora"
    paper = "MoELoRA (arXiv 2402.12851)"
    parameters_formula = "num_experts*r*(d_in + d_out) + num_experts*d_in"

    @dataclass(frozen=True, kw_only=True)
    class Config(RouterConfig, RankConfig):
        """
        Args:
            num_experts: E, the number of experts. Default 8; per layer.
            top_k: K, the experts that a token uses. Default 2.
            balance: weight of the Switch balance loss of each layer. Default 0.01.
            contrastive: weight of the contrastive loss of each layer. Default 0.01.
            temperature: tau of the contrastive loss, at least 0.025. Default 0.1.
            contrastive_tokens: the most tokens of a sequence that the contrastive loss looks at. Default 16. More make
                its gradient less noisy, and a step longer: with 64, on layers of 384 features, by 0.04x to 0.14x of
                PEFT's LoRA.
            contrastive_sequences: the most sequences of a batch that it looks at. Default 8. More make its gradient
                less noisy, and a step longer: with 16, on layers of 384 features, by about 0.02x.
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
        return gram_of(self.up) if self.config.contrastive else None

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
