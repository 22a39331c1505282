"""What methods have in common that choose once for each prompt.

Shapes: B samples, L rows of one sample, N = B * L rows; X features of a row.
"""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from lorachord.core.adapter import Adapter, laid_out
from lorachord.core.context import Context, Mixing
from lorachord.core.precision import without_autocast
from lorachord.core.reading import Reading, shares_of


class PromptLevel(Adapter):
    """An adapter whose core depends on a sample's prompt, the same for all tokens that follow.

    The prompt decides once: in passes that go on from a cache, what the pass over the prompt has read of it is used
    again. So no choice depends on a token that is still to be written. Its methods write `cores`.

    Attributes:
        embeds: whether it looks at the embedding of the prompt (`ctx.cosines_BC`), or at its tokens' inputs alone.
    """

    mixing = Mixing.INPUT
    embeds: ClassVar[bool] = False

    @property
    def goes_in_groups(self) -> bool:
        return True

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        return self.cores([self], h_BLR, x_BLX, ctx)[0]

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
    def prompt_mean(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """x (..., D), and its mean over the prompt (B, D) in at least float32.

        A layer that does not see the tokens one by one (a pooler) takes the mean over all rows of a sample. Of a sample
        without a prompt it is 0.
        """
        mask_BL = ctx.prompt_mask_BL
        num_samples = self.num_samples(x, ctx) if mask_BL is None else len(mask_BL)
        rows_BLD = self.by_sample(x, num_samples)
        if ctx.recalled is not None:
            recalled_BD = ctx.recalled[self.layer.name]
            return x, recalled_BD.repeat_interleave(len(rows_BLD) // len(recalled_BD), dim=0)
        # A compiled graph does what is the same once by itself.
        reading = None if torch.compiler.is_compiling() else ctx.reading
        mean_BD = None if reading is None else reading.mean_of(x)
        if mean_BD is None:
            with without_autocast(x):
                x_BLD, mean_BD = _WithSum.apply(rows_BLD, self._shares(rows_BLD, mask_BL, reading))
            if reading is not None:
                reading.keep(x, mean_BD)
            x = laid_out(x_BLD, x.shape[:-1])
        if ctx.kept is not None:
            ctx.kept[self.layer.name] = mean_BD
        return x, mean_BD

    @staticmethod
    def _shares(rows_BLD: Tensor, mask_BL: Tensor | None, reading: Reading | None) -> Tensor:
        wide = torch.promote_types(rows_BLD.dtype, torch.float32)
        if mask_BL is None or mask_BL.shape != rows_BLD.shape[:2]:
            return rows_BLD.new_full(rows_BLD.shape[:2], 1 / max(rows_BLD.shape[1], 1), dtype=wide)
        return shares_of(mask_BL, wide) if reading is None else reading.shares(mask_BL, wide)


class _WithSum(torch.autograd.Function):
    """Rows, and `sum_l share_l rows_l` of each sample.

    The gradient of that sum is as large as the rows, and is added to theirs in the pass that makes it.
    """

    @staticmethod
    def forward(ctx: Any, rows_BLD: Tensor, share_BL: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(share_BL)
        return rows_BLD.view_as(rows_BLD), torch.bmm(share_BL.unsqueeze(1), rows_BLD.to(share_BL.dtype)).squeeze(1)

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor, grad_BD: Tensor) -> tuple[Tensor, None]:
        share_BL1 = ctx.saved_tensors[0].unsqueeze(2).to(grad_BLD.dtype)
        # In place: the product with A', the rows' only use, has made this gradient for this node alone.
        return grad_BLD.addcmul_(share_BL1, grad_BD.unsqueeze(1).to(grad_BLD.dtype)), None
