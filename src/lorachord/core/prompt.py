"""What methods have in common that choose once for each prompt.

Shapes: B samples, L rows of one sample, N = B * L rows; X features of a row.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from lorachord.core.adapter import Adapter
from lorachord.core.context import Context, Mixing


class PromptLevel(Adapter):
    """An adapter whose core depends on a sample's prompt, the same for all tokens that follow.

    The prompt decides once: in passes that go on from a cache, what the pass over the prompt has read of it is used
    again. So no choice depends on a token that is still to be written.

    Attributes:
        embeds: whether it looks at the embedding of the prompt (`ctx.cosines_BC`), or at its tokens' inputs alone.
    """

    mixing = Mixing.INPUT
    embeds: ClassVar[bool] = False

    @final
    def by_sample(self, rows_BLX: Tensor, num_samples: int) -> Tensor:
        """The same rows, by the samples of the pass: several may have been taken as one whose task is common.

        Raises:
            ValueError: the rows do not divide among the samples.
        """
        num_rows = rows_BLX.shape[0] * rows_BLX.shape[1]
        if num_rows % num_samples:
            raise ValueError(
                f"{self.method} chooses for each sample, but {self.layer.name} got {num_rows} rows for {num_samples} "
                "samples. Leave out layers that see the tokens in another order (exclude_modules)."
            )
        return rows_BLX.reshape(num_samples, num_rows // num_samples, rows_BLX.shape[-1])

    @final
    def prompt_mean(self, rows_BLX: Tensor, ctx: Context) -> Tensor:
        """The mean of the rows over the prompt: (B, X), in at least float32.

        A layer that does not see the tokens one by one (a pooler) takes the mean over all rows of a sample. Of a sample
        without a prompt it is 0.
        """
        mask_BL = ctx.prompt_mask_BL
        if mask_BL is not None:
            rows_BLX = self.by_sample(rows_BLX, len(mask_BL))
        if ctx.recalled is not None:
            mean_BX = ctx.recalled[self.layer.name]
            return mean_BX.repeat_interleave(len(rows_BLX) // len(mean_BX), dim=0)
        rows_BLX = rows_BLX.to(torch.promote_types(rows_BLX.dtype, torch.float32))
        if mask_BL is None or mask_BL.shape != rows_BLX.shape[:2]:
            mean_BX = rows_BLX.mean(1)
        else:
            share_BL = mask_BL.to(rows_BLX)
            share_BL = share_BL / share_BL.sum(1, keepdim=True).clamp_min(1)
            mean_BX = (share_BL.unsqueeze(1) @ rows_BLX).squeeze(1)
        if ctx.kept is not None:
            ctx.kept[self.layer.name] = mean_BX
        return mean_BX
