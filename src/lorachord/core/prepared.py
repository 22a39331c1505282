"""The weights of an adapter as passes over single tokens use them: made once, and again when anything has changed.

Generation calls every layer for each token, and what a method makes of its parameters (casts, matrices of the tasks)
stays the same from token to token. A store of these belongs to one `on_task` block of one caller, and is emptied by
every pass that is not over single tokens behind a cache. So it lives no longer than the text that is being written, and
within that time each use compares the parameters with those that it was made of.

Shapes: B samples; D inputs and O outputs of the layer; R rows of A', S columns of B', K the fewer of them; E rows of a
router.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lorachord.core.steps import optimizer_steps
from lorachord.kernels.products import Runs


@dataclass(frozen=True, slots=True)
class Prepared:
    """One adapter's, in the dtype to compute in.

    Attributes:
        made_of: the parameters and buffers at that time, beside aliases of their memory, which therefore is given to
            nothing else.
        versions: how often each of them had been written to; None where that is not counted, as of tensors made in
            inference mode.
        steps: the optimizer steps that had been taken: fused optimizers write without being counted.
        runs: the tasks of the samples.
        inner_XD: A' with the router's weight below it; A' alone where there is no router.
        matrix_BRS: the core of each sample, where these differ; else None.
        up_SO: B', with the core in it where all samples have the same.
        scale: s.
        num_down: R.
        routed: whether the core depends on the input, so that it must be asked.
        core_1C: the core's shared weight, once such a core has asked for it: an empty list, or it alone.
    """

    made_of: tuple[tuple[Tensor, Tensor], ...]
    versions: tuple[int, ...] | None
    steps: int
    runs: Runs | None
    inner_XD: Tensor
    matrix_BRS: Tensor | None
    up_SO: Tensor
    scale: float
    num_down: int
    routed: bool
    core_1C: list[Tensor] = field(default_factory=list)

    def holds(self, adapter: nn.Module, dtype: torch.dtype, runs: Runs | None) -> bool:
        """Whether it is what would be made now."""
        if self.versions is None or self.steps != optimizer_steps() or self.inner_XD.dtype != dtype:
            return False
        if self.runs is not runs and self.runs != runs:
            return False
        now = weights_of(adapter)
        return len(now) == len(self.made_of) and all(
            tensor is was and tensor._version == version and tensor.data_ptr() == memory.data_ptr()
            for tensor, (was, memory), version in zip(now, self.made_of, self.versions, strict=True)
        )


Store = dict[nn.Module, Prepared]
"""Those of one `on_task` block."""


def weights_of(adapter: nn.Module) -> list[Tensor]:
    """The parameters and buffers of an adapter, in a tenth of the time of `parameters()`: once a layer and token."""
    found: list[Tensor] = [tensor for tensor in adapter._parameters.values() if tensor is not None]
    if adapter._buffers:
        found += [tensor for tensor in adapter._buffers.values() if tensor is not None]
    for child in adapter._modules.values():
        if child is not None:
            found += weights_of(child)
    return found


def prepare(
    adapter: nn.Module,
    dtype: torch.dtype,
    runs: Runs | None,
    inner: tuple[Tensor, Tensor | None],
    up_OS: Tensor,
    scale: float,
    core: Callable[[Tensor], Tensor] | None,
) -> Prepared:
    """What passes over single tokens need of an adapter.

    Args:
        adapter: whose parameters all is made of.
        dtype: to compute in.
        runs: the tasks of the samples.
        inner: A' (R, D), and the router's weight (E, D) or None.
        up_OS: B'.
        scale: s.
        core: applied to (B or 1, L, R); None where it depends on the input.
    """
    tensors = weights_of(adapter)
    made_of = tuple((tensor, tensor.detach()) for tensor in tensors)
    counted = not any(tensor.is_inference() for tensor in tensors)
    versions = tuple(tensor._version for tensor in tensors) if counted else None
    (down_RD, router_ED), matrix_BRS = inner, None
    num_down = len(down_RD)
    if core is not None:
        count = 1 if runs is None else runs[-1][2]
        eye_BRR = torch.eye(num_down, dtype=down_RD.dtype, device=down_RD.device).expand(count, -1, -1)
        mixed_BRS = core(eye_BRR)
        if mixed_BRS is eye_BRR:
            # The identity.
            pass
        elif count > 1:
            matrix_BRS = mixed_BRS.to(dtype).contiguous()
        elif num_down <= up_OS.shape[1]:
            up_OS = up_OS @ mixed_BRS[0].to(up_OS.dtype).t()
        else:
            down_RD = mixed_BRS[0].to(down_RD.dtype).t() @ down_RD
    inner_XD = down_RD if router_ED is None else torch.cat([down_RD, router_ED])
    up_SO = up_OS.to(dtype).t().contiguous()
    return Prepared(
        made_of,
        versions,
        optimizer_steps(),
        runs,
        inner_XD.to(dtype),
        matrix_BRS,
        up_SO,
        scale,
        num_down,
        routed=core is None,
    )
