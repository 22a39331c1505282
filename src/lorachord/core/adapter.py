"""The one equation that every training-time method fills in.

    y = W0 x + s * B' core(A' drop(x); x, ctx)

Shapes: B samples, L rows of one sample, N = B * L rows; D inputs and O outputs of the layer; R rows of A', S columns of
B'; T tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from lorachord.core import init
from lorachord.core.blocks import blocks_linear
from lorachord.core.context import NO_CONTEXT, Context, Mixing
from lorachord.core.layer import LayerSpec
from lorachord.core.lowrank import Runs, inner_products, rows_linear
from lorachord.core.matrix import AsMatrix
from lorachord.core.neighbours import Neighbours
from lorachord.core.probes import Probes
from lorachord.core.settings import MethodConfig, RankConfig
from lorachord.core.tasks import NO_TASKS, TaskNames

Frozen = Callable[[Tensor], Tensor]


def laid_out(rows: Tensor, leading: tuple[int, ...]) -> Tensor:
    """Rows (..., X) as (*leading, X); themselves if they are, since even such a view is a node of the graph."""
    return rows if rows.shape[:-1] == leading else rows.reshape(*leading, rows.shape[-1])


class Adapter(AsMatrix):
    """One layer's adapter. A method is one final subclass; this class is never used on its own.

    A method sets the class attributes, creates its parameters in `build`, and overrides the hooks that it needs:
    `reset`, `down_weight`, `up_weight`, `core`, `penalty`. Everything else (merge, export, saving, the command line,
    the contract tests) follows from these.

    Attributes:
        method: the name on the command line and in saved files.
        paper: title and arXiv id.
        mixing: what `core` may look at.
        parameters_formula: trainable parameters of one layer, in terms of `d_in`, `d_out`, `T` and the config's fields.
        Config: the config class, a frozen keyword-only dataclass.
        no_decay: parameters that weight decay must not touch: it would pull them back to a start that means "off".
        neighbourly: whether adapters with the same input make things for each other.
        rows_last: whether `core` is faster at an `h` that lies in memory with its rows last.
        probes: None, or the leaves that receive the factors' gradients per task instead of the factors.

    Args:
        layer: where the adapter sits.
        config: the method's config; per-layer values are resolved for `layer`.
        tasks: the ordered task names; T is their number.
    """

    paper: ClassVar[str]
    parameters_formula: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    no_decay: ClassVar[tuple[str, ...]] = ()
    neighbourly: ClassVar[bool] = False
    rows_last: ClassVar[bool] = False

    down: nn.Parameter
    up: nn.Parameter

    def __init__(self, layer: LayerSpec, config: MethodConfig, tasks: TaskNames = NO_TASKS) -> None:
        super().__init__()
        self.layer = layer
        self.config = config.at(layer)
        self.num_tasks = len(tasks)
        self.probes: Probes | None = None
        if self.mixing is Mixing.TASK:
            # Saved beside the stacked parameters, whose order it fixes.
            self.register_buffer("task_digest", torch.tensor(tasks.digest()))
        self.build()
        self.reset()

    def extra_repr(self) -> str:
        """Sizes and options, for `print(model)`."""
        options = ", ".join(f"{key}={value}" for key, value in self.config.to_dict().items())
        return f"{self.layer.d_in} -> {self.layer.d_out}, {options}"

    @classmethod
    def possible_ranks(cls, options: Mapping[str, Any], num_tasks: int, width: int) -> range:
        """The values of `r` that go with the other options in layers that are `width` wide. Default: all from 1 on."""
        return range(1, width + 1)

    @abstractmethod
    def build(self) -> None:
        """Create the parameters: at least `down` (R, D) and `up` (O, S)."""

    def reset(self) -> None:
        """Initialise the parameters so that the update is zero. Default: `down` Kaiming-uniform, `up` zero."""
        init.kaiming_uniform_(self.down, fan_in=self.layer.d_in)
        nn.init.zeros_(self.up)

    @property
    def scale(self) -> float:
        """s. Default alpha / r; methods without these fields override it."""
        assert isinstance(self.config, RankConfig), "a method without r and alpha overrides scale"
        return self.config.alpha / self.config.r

    def down_weight(self) -> Tensor:
        """A' (R, D), a pure function of the parameters. Default: `down`."""
        return self.down

    def up_weight(self) -> Tensor:
        """B' (O, S), a pure function of the parameters. Default: `up`."""
        return self.up

    def router_weight(self) -> Tensor | None:
        """W (E, D) of a linear router on the layer's raw input, which shares one product with A'. Default: None."""
        return None

    def core_weight(self) -> Tensor | None:
        """What of the core's parameters all tasks share, in one tensor of any shape (*C). Default: None."""
        return None

    @classmethod
    def core_weights(cls, adapters: Sequence[Self]) -> Sequence[Tensor] | None:
        """`core_weight()` of each, (1, *C), made in one go; None, the default, where each is to make its own.

        Asked for before each pass in training, of adapters that are `neighbourly` and alike in their config.
        """
        return None

    @final
    def shared_core(self, ctx: Context) -> Tensor:
        """`core_weight()` as `core` must use it: (1, *C), or (B, *C) while gradients per task are collected."""
        if ctx.prepared is not None and self in ctx.prepared:
            return ctx.prepared[self]
        weight_C, probe_BC = self.core_weight(), self.core_probe(ctx)
        assert weight_C is not None, "there is no core_weight"
        return weight_C.unsqueeze(0) if probe_BC is None else weight_C.detach() + probe_BC

    @final
    def core_probe(self, ctx: Context) -> Tensor | None:
        """Zeros (B, *C) that receive each sample's gradient of `core_weight()`; None where these are not collected."""
        return None if self.probes is None or not torch.is_grad_enabled() else self.probes.core_of_samples(ctx)

    def look(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """x for A' (..., D), and what the core is to see of it: x itself, the default, or anything else."""
        return x, x

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        """The mixing between the factors: (B, L, S), linear in `h`. Default: the identity.

        Args:
            h_BLR: `A' drop(x)`, in the dtype to compute in; may be non-contiguous.
            x_BLX: what an INPUT method looks at: the router's logits `W x` (B, L, E) if there is a `router_weight`;
                else what `look` returns, by default the layer's raw input (B, L, D). None when the core's matrix is
                read off.
            ctx: tasks and masks of this pass; a TASK method always finds `task_ids_B` set, with B or 1 entries.
        """
        return h_BLR

    @property
    def goes_in_groups(self) -> bool:
        """Whether `cores` takes groups of several adapters with the same input. Default: False."""
        return False

    def cores(self, group: Sequence[Self], h_BLX: Tensor, x_BLX: Tensor | None, ctx: Context) -> Sequence[Tensor]:
        """`core` of each adapter in a group, this one being the first; by default it is the only one.

        Args:
            group: adapters with this one's config.
            h_BLX, x_BLX: what `core` takes, that of all of the group side by side.
            ctx: as in `core`.
        """
        return [self.core(h_BLX, x_BLX, ctx)]

    def folded_up(self, ctx: Context, num_rows: int) -> Tensor | None:
        """Core and B' in one, (U, R, O) for U equal blocks of the rows, where that is cheaper; else None, the default.

        The core is then passed over. Never asked for while gradients per task are collected.
        """
        return None

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss, already weighted, or None. Default: None."""
        return None

    @classmethod
    def penalties(cls, adapters: Sequence[Self]) -> list[Tensor]:
        """Scalars that add up to the penalties of adapters, for a method that makes some of them in one go."""
        return [term for one in adapters if (term := one.penalty()) is not None]

    @property
    def records_penalty(self) -> bool:
        """Whether `penalty` is made of what the last forward recorded (so that it needs that forward's graph)."""
        return False

    def forward(self, x: Tensor, frozen: Frozen, ctx: Context = NO_CONTEXT, *, alone: bool = False) -> Tensor:
        """`frozen(x) + s * B' core(A' drop(x))`.

        Args:
            x: (..., D), the layer's input.
            frozen: the frozen layer, from (..., D) to (..., O); or it with other adapters around it.
            ctx: tasks and masks of this pass.
            alone: whether nobody but `frozen` and this adapter has what goes in there and what comes out, nor the
                gradients of these. On a CPU the update and its gradient are then added in place. Default False.

        Raises:
            ValueError: a TASK method without task ids, or ids that do not fit the rows.
        """
        num_rows = x.numel() // self.layer.d_in
        ctx = self._checked(ctx, x, num_rows)
        # Under autocast the frozen layer computes in autocast's dtype; so does the adapter.
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        # Where nothing is differentiated, no gradients are collected.
        probes = self.probes if torch.is_grad_enabled() else None
        up_TOS, runs = (None, None) if probes is None else (probes.up_TOS, probes.row_runs(ctx, num_rows))

        h, folded_URO, x = self._inside(x, ctx, dtype, runs, through=alone)
        out = frozen(x)
        overwrite = alone and out.is_contiguous()
        # One product adds to the output in place of two passes over it; but the layer may have a dtype of its own.
        onto = out if out.dtype == dtype else None
        if folded_URO is not None:
            onto = torch.zeros_like(out, dtype=dtype) if onto is None else onto
            y = blocks_linear(h, folded_URO.to(dtype), onto, self.scale, overwrite=overwrite)
        else:
            up_OS = self.up_weight().to(dtype)
            y = rows_linear(h, up_OS, out=onto, scale=self.scale, probe_TOI=up_TOS, row_runs=runs, overwrite=overwrite)
        return y if out.dtype == dtype else out + y.to(out.dtype)

    def _inside(
        self, given: Tensor, ctx: Context, dtype: torch.dtype, runs: Runs | None, through: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """What comes out of the core, or out of A' with core and B' in one; and x for the frozen layer."""
        drops = self.training and self.config.dropout > 0
        near = self.neighbours(ctx) if self.goes_in_groups and not drops else None
        found = None if near is None else near.found(self, given)
        if found is not None:
            return found, None, given
        x, seen = self.look(given.to(dtype), ctx)
        dropped = F.dropout(x, self.config.dropout) if drops else x
        group = [self] if near is None else near.group(self)
        routers = [one.router_weight() for one in group]
        weights = [one.down_weight() for one in group], [router_ED for router_ED in routers if router_ED is not None]
        leaf_TXD = None if runs is None or self.probes is None else self.probes.inner_TXD
        through = through and given.dtype == dtype
        h, logits, passed = inner_products(
            dropped, x, *weights, leaf_TXD, runs, through=through, rows_last=self.rows_last
        )
        passed = given if passed is x else passed

        num_rows = x.numel() // self.layer.d_in
        folded_URO = self.folded_up(ctx, num_rows) if runs is None else None
        if folded_URO is not None or type(self).core is Adapter.core:
            return h, folded_URO, passed
        num_samples = self.num_samples(x, ctx)
        batch = (num_samples, num_rows // max(num_samples, 1))
        if logits is not None:
            seen = laid_out(logits, batch)
        elif seen is x:
            seen = laid_out(x, batch)
        h_BLX = laid_out(h, batch)
        mixed = self.cores(group, h_BLX, seen, ctx) if len(group) > 1 else [self.core(h_BLX, seen, ctx)]
        # Autocast makes some sums wide, and which ones depends on the device.
        h, *others = (laid_out(rows.to(dtype), x.shape[:-1]) for rows in mixed)
        if near is not None:
            near.keep(dict(zip(group[1:], others, strict=True)))
        return h, None, passed

    @final
    def neighbours(self, ctx: Context) -> Neighbours | None:
        """Where adapters with the same input make things for each other; None where each makes its own."""
        return ctx.neighbours if torch.is_grad_enabled() and not torch.compiler.is_compiling() else None

    @final
    def _checked(self, ctx: Context, x: Tensor, num_rows: int) -> Context:
        if self.mixing is Mixing.TASK and ctx.task_ids_B is None:
            raise ValueError(
                f"{self.method} needs the task of each sample, and none was named. Wrap the call in "
                "`with lorachord.on_task(model, tasks):`, or pass `lorachord_tasks=` to the model."
            )
        num_samples = ctx.num_samples
        if num_samples is not None and num_rows % num_samples:
            raise ValueError(
                f"{num_samples} samples have a task, but {self.layer.name} got {num_rows} rows, which is not a "
                "multiple of that. Name one task per sample of the batch, or one for all."
            )
        return ctx.to(x.device) if num_samples is not None else ctx

    @final
    def num_samples(self, x: Tensor, ctx: Context) -> int:
        """B, of which x (..., D) are the rows."""
        named = ctx.num_samples or 1
        # Where no task was named, or one for all, the first axis is that of the samples.
        return len(x) if named == 1 and x.dim() > 2 else named

    @final
    def attach_probes(self, num_tasks: int, *, halves: bool = False) -> Probes:
        """From now on collect gradients per task, in the returned leaves, and not on the parameters.

        Args:
            num_tasks: T.
            halves: collect those of two halves of each task's samples apart, on an axis of 2 T.
        """
        down_RD, router_ED, core_C = self.down_weight(), self.router_weight(), self.core_weight()
        inner_XD = down_RD if router_ED is None else torch.cat([down_RD, router_ED])

        def zeros(like: Tensor) -> Tensor:
            shape = (2 * num_tasks if halves else num_tasks, *like.shape)
            return torch.zeros(shape, dtype=like.dtype, device=like.device, requires_grad=True)

        core_TC = None if core_C is None else zeros(core_C)
        self.probes = Probes(zeros(inner_XD), zeros(self.up_weight()), core_TC, halves)
        return self.probes

    @final
    def detach_probes(self) -> None:
        """Back to ordinary gradients."""
        self.probes = None
