"""The base of methods that choose once for each prompt.

Shapes: B samples, L rows of one sample, N = B * L rows; U units of rows; X features of a row.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from lorachord.core.adapter import Adapter
from lorachord.core.config import MethodConfig
from lorachord.core.context import Context, Mixing
from lorachord.core.rows import laid_out
from lorachord.kernels.devices import moved, without_autocast


class PromptLevel(Adapter):
    """An adapter whose core depends on a sample's prompt, the same for all tokens that follow.

    The prompt decides once: passes that go on from a cache use again the mean that the pass over the prompt has made.
    So no choice depends on a token that is still to be written.

    Attributes:
        embeds: whether it looks at the embedding of the prompt (`ctx.cosines_BC`), or at its tokens' inputs alone.
        total: choices by expert and group (E, G) since `forget_load`; None before any.
    """

    mixing = Mixing.INPUT
    by_prompt = True
    embeds: ClassVar[bool] = False
    total: Tensor | None = None

    @classmethod
    def encoder(cls, config: MethodConfig) -> str:
        """The model that embeds the prompts, where `embeds` is true. Default: `base`, the frozen base itself."""
        return "base"

    @classmethod
    def num_clusters(cls, config: MethodConfig) -> int:
        """The number of clusters of the training prompts' embeddings, where `embeds` is true. Default: 32."""
        return 32

    @final
    def count(self, counts_EG: Tensor) -> None:
        """Add the choices of a pass by expert and group (E, G), as `router_load` tells their shares."""
        # A module's own way to set an attribute takes as long as an operation.
        vars(self)["total"] = counts_EG if self.total is None else self.total.to(counts_EG.device) + counts_EG

    @final
    def forget_load(self) -> None:
        """Count choices from here on."""
        vars(self)["total"] = None

    @final
    def by_sample(self, rows: Tensor, num_samples: int) -> Tensor:
        """Rows (..., X) by the samples of the pass, (B, L, X): several may have been taken as one whose task is common.

        Raises:
            ValueError: the rows do not divide among the samples.
        """
        num_rows = rows.numel() // rows.shape[-1]
        if num_rows % num_samples:
            raise ValueError(
                f"{self.method} chooses for each sample, but {self.layer.name} got {num_rows} rows for {num_samples} "
                "samples. Leave out layers that see the tokens in another order (exclude_modules)."
            )
        return laid_out(rows, (num_samples, num_rows // num_samples))

    @final
    def prompt_mean(self, x: Tensor, ctx: Context) -> Tensor:
        """The mean of x (B, L, D) over the prompt: (B, D), in at least float32.

        A layer that does not see the tokens one by one (a pooler, one of a vision tower) takes the mean over all rows
        of a sample; each unit of rows has its sample's. Of a sample without a prompt it is 0.
        """
        if ctx.recalled is not None:
            recalled_BD = ctx.recalled[self.layer.name]
            return recalled_BD.repeat_interleave(len(x) // len(recalled_BD), dim=0)
        with without_autocast(x):
            share_BL = _shares(x, ctx.prompt_mask_BL)
            mean_BD = torch.bmm(share_BL.unsqueeze(1), x.to(share_BL.dtype)).squeeze(1)
        if ctx.samples_U is not None:
            mean_BD = _shared(mean_BD, moved(ctx.samples_U, x.device))
        elif ctx.kept is not None:
            ctx.kept[self.layer.name] = mean_BD
        return mean_BD


def _shared(mean_UD: Tensor, samples_U: Tensor) -> Tensor:
    """The mean over each sample's units, for each of them: (U, D)."""
    alike_UU = (samples_U.unsqueeze(1) == samples_U).to(mean_UD.dtype)
    return alike_UU / alike_UU.sum(1, keepdim=True) @ mean_UD


def _shares(rows_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Each row's share in the mean over its sample's prompt; zeros for a sample without any."""
    wide = torch.promote_types(rows_BLD.dtype, torch.float32)
    if mask_BL is None or mask_BL.shape != rows_BLD.shape[:2]:
        return rows_BLD.new_full(rows_BLD.shape[:2], 1 / max(rows_BLD.shape[1], 1), dtype=wide)
    mask_BL = mask_BL.to(wide)
    return mask_BL / mask_BL.sum(1, keepdim=True).clamp_min(1)
