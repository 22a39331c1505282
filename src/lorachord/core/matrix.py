"""An adapter as the plain LoRA that it equals, if it does: what merging and exporting are made of.

Shapes: D inputs and O outputs of the layer; R rows of A', S columns of B'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from lorachord.core.context import NO_CONTEXT, Context, Mixing


class AsMatrix(nn.Module, ABC):
    """The part of `Adapter` that is about its matrix: a core that is linear is its image of the identity."""

    method: ClassVar[str]
    mixing: ClassVar[Mixing]

    @property
    @abstractmethod
    def scale(self) -> float: ...

    @abstractmethod
    def down_weight(self) -> Tensor: ...

    @abstractmethod
    def up_weight(self) -> Tensor: ...

    @abstractmethod
    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor: ...

    @final
    def factors(self, task: int | None = None) -> tuple[Tensor, Tensor]:
        """The plain LoRA that this adapter equals: `(A', s B' M)` with M the core's matrix.

        Args:
            task: index of the task; needed by TASK methods, ignored by STATIC ones.

        Returns:
            down (R, D) and up (O, R), float32 or wider, detached; the update is `up @ down`, the scale is in `up`.

        Raises:
            ValueError: an INPUT method, or a TASK method without a task.
        """
        self.require_matrix(task)
        was_training = self.training
        with torch.no_grad():
            self.eval()
            down_RD, up_OS = self.down_weight(), self.up_weight()
            identity_1RR = torch.eye(len(down_RD), dtype=down_RD.dtype, device=down_RD.device)[None]
            ctx = NO_CONTEXT if task is None else Context.of_tasks([task], down_RD.device)
            matrix_RS = self.core(identity_1RR, None, ctx)[0]
            self.train(was_training)
            return down_RD.clone(), self.scale * up_OS @ matrix_RS.t()

    @classmethod
    def require_matrix(cls, task: int | None) -> None:
        """Raise the ValueError of `factors` if the update is no fixed matrix, or not without a task."""
        if cls.mixing is Mixing.INPUT:
            raise ValueError(
                f"{cls.method} routes by its input, so it equals no single LoRA and can be neither merged nor exported "
                "as one. Serve it as it is (save_pretrained, then PeftModel.from_pretrained with lorachord imported), "
                "or train a method whose core is static or per task: see `lorachord methods`."
            )
        if cls.mixing is Mixing.TASK and task is None:
            raise ValueError(
                f"{cls.method} has one weight per task, so say which: lorachord.merge(model, task=...), "
                "lorachord.export_lora(model, out, task=...), or merge inside `with lorachord.on_task(model, task):`."
            )

    @final
    def delta(self, task: int | None = None) -> Tensor:
        """The dense update (O, D) that merging adds to W0; arguments and errors as in `factors`."""
        down_RD, up_OR = self.factors(task)
        return up_OR @ down_RD
