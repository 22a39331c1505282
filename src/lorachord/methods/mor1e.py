"""The method `mor1e`: rank-one experts, gated by token and prompt."""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorachord.core.config import MethodConfig, option
from lorachord.core.context import Context
from lorachord.core.registry import register
from lorachord.core.rows import mask_of
from lorachord.families.by_prompt import PromptLevel
from lorachord.kernels.rank_one import gate_rank_one

STEEPNESS = 100.0
COSINES = 4.0


@register
@final
class MoR1E(PromptLevel):
    """Token and prompt gate rank-one experts, the pairs of A's rows and B's columns.

    Equation:
        y = W0 x + sigmoid(100 g) B (R^T (A drop(x)))
        R = r1 r2 w softmax(W_r x) + 4 (1 - w) c,  w = sigmoid(100 omega),  as a row-major (r1, r2) matrix

    Where:
        c holds the cosines of the prompt's embedding to r1 r2 centroids, those of the training prompts' embeddings.
        There is no alpha / r: s = 1.

    Paper:
        Liu et al., "Intuition-aware Mixture-of-Rank-1-Experts for Parameter Efficient Finetuning" (arXiv 2404.08985).
        Its second version is "T-REX: Mixture-of-Rank-One-Experts with Semantic-aware Intuition for Multi-task Large
        Language Model Finetuning".

    Start:
        A is Kaiming-uniform. B, W_r, g and omega are 0.

    Defaults:
        r1 4, r2 8, encoder base, dropout 0.

    Take it when:
        Tasks differ in the meaning of their prompts, and few factors are wanted: r1 + r2 vectors make r1 r2 experts.

    Leave it when:
        The adapter must merge or export: it equals no single weight. On four GLUE tasks it was 0.033 ± 0.014 behind
        joint LoRA at equal parameters (docs/findings.md). With a learning rate of 1e-3 two of three runs failed there.
        It cannot solve tasks that contradict each other on the same inputs. The rank of its update is at most
        min(r1, r2). Its router outweighs its factors: `count_parameters` counts them apart. Each prompt needs an
        embedding, which costs a pass of the frozen base. On a GPU a step took 2.28x that of PEFT's LoRA with small
        batches, and 0.92x with large ones.

    Differs from the authors' code:
        The embedding is by default the mean of the frozen base's last hidden states over the prompt, so that no second
        model is needed. The authors' constant 32 is r1 r2 here, its value there. Weight decay never touches g and
        omega.

    Parameters:
        down (r1, d_in): A.
        up (d_out, r2): B.
        router (r1 r2, d_in): W_r.
        gate (1,): g.
        share (1,): omega.

    Shapes:
        r1 rows of A, r2 columns of B; B samples, L rows of one sample; C = r1 r2 experts and clusters.
    """

    method = "mor1e"
    paper = "Intuition-MoR1E, T-REX (arXiv 2404.08985)"
    embeds = True
    rows_last = True
    parameters_formula = "(r1 + r1*r2)*d_in + r2*d_out + 2"
    no_decay = ("gate", "share")

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        """
        Args:
            r1: rows of A. Default 4.
            r2: columns of B. Default 8; prompts fall into r1 r2 clusters.
            encoder: the model that embeds prompts: `base` (default), the frozen base itself; or the name of another
                model. Recipes load that; elsewhere its embeddings are given to `on_task(..., embedding=...)`.
        """

        r1: int = option(4, low=1)
        r2: int = option(8, low=1)
        encoder: str = option("base", names_model=True)

    config: Config

    def build(self) -> None:
        (r1, r2), layer = (self.config.r1, self.config.r2), self.layer
        self.down = nn.Parameter(torch.empty(r1, layer.d_in))
        self.up = nn.Parameter(torch.empty(layer.d_out, r2))
        self.router = nn.Parameter(torch.empty(r1 * r2, layer.d_in))
        self.gate = nn.Parameter(torch.empty(1))
        self.share = nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        super().reset()
        for parameter in (self.router, self.gate, self.share):
            nn.init.zeros_(parameter)

    @property
    def scale(self) -> float:
        return 1.0

    def router_weight(self) -> Tensor:
        return self.router

    def core_weight(self) -> Tensor:
        """The factors of the token's and the prompt's part of R (2,), sigmoid(100 g) among them."""
        gate, share = torch.sigmoid(STEEPNESS * torch.cat([self.gate, self.share])).unbind()
        return gate * torch.stack([self.config.r1 * self.config.r2 * share, COSINES * (1 - share)])

    @classmethod
    def encoder(cls, config: MethodConfig) -> str:
        assert isinstance(config, cls.Config)
        return config.encoder

    @classmethod
    def num_clusters(cls, config: MethodConfig) -> int:
        assert isinstance(config, cls.Config)
        return config.r1 * config.r2

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        assert x_BLX is not None
        if ctx.cosines_BC is None:
            raise ValueError(
                f"{self.layer.name}: mor1e looks at the embeddings of the prompts. Call the whole model, not a layer."
            )
        h_BLR, logits_BLC = (self.by_sample(rows, len(ctx.cosines_BC)) for rows in (h_BLR, x_BLX))
        mask_BL, recording = mask_of(ctx, logits_BLC), ctx.recording
        if mask_BL is not None:
            mask_BL = mask_BL.reshape(logits_BLC.shape[:2])
        weights_X2 = self.shared_core(ctx)
        gated_BLS, load_C = gate_rank_one(h_BLR, logits_BLC, ctx.cosines_BC, weights_X2, mask_BL, recording=recording)
        if load_C is not None:
            counts_C2 = F.pad(load_C.detach().unsqueeze(1), (0, 1))
            # A prompt's cluster counts once, in the pass over the prompt.
            if ctx.recalled is None:
                nearest_B = ctx.cosines_BC.argmax(1)
                counts_C2[:, 1].index_add_(0, nearest_B, counts_C2.new_ones(len(nearest_B)))
            self.count(counts_C2)
        return gated_BLS
