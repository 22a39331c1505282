"""The one equation, and the hooks by which a method fills it in.

    y = W0 x + s * B' core(A' drop(x); x, ctx)

`core/forward.py` has the pass that calls the hooks, `core/matrix.py` the plain LoRA that a fixed core equals.

Shapes: B samples, L rows of one sample, N = B * L rows; D inputs and O outputs of the layer; R rows of A', S columns of
B'; T tasks; E rows of a router; C the entries of a core's shared weight; U blocks of rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from lorachord.core import init
from lorachord.core.config import LayerSpec, MethodConfig, RankConfig
from lorachord.core.context import Context, Mixing, PenaltyFrom
from lorachord.core.forward import Pass
from lorachord.core.tasks import NO_TASKS, TaskNames


class Adapter(Pass):
    """One layer's adapter. A method is one final subclass; this class is never used on its own.

    A method sets the class attributes, creates its parameters in `build`, and overrides the hooks that it needs.
    Merging, export, saving, the command line and the contract tests follow from these.

    Attributes:
        method: the name on the command line and in saved files.
        paper: title and arXiv id.
        mixing: the things that `core` may look at.
        parameters_formula: trainable parameters of one layer, in terms of `d_in`, `d_out`, `T` and the config's fields.
        Config: the config class, a frozen keyword-only dataclass.
        no_decay: parameters that weight decay must not touch: it would pull them back to a start that means "off".
        rows_last: whether `core` is faster at an `h` that lies in memory with its rows last.

    Args:
        layer: where the adapter sits.
        config: the method's config; per-layer values are resolved for `layer`.
        tasks: the ordered task names; T is their number.
    """

    paper: ClassVar[str]
    parameters_formula: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    no_decay: ClassVar[tuple[str, ...]] = ()
    rows_last: ClassVar[bool] = False

    down: nn.Parameter
    up: nn.Parameter

    def __init__(self, layer: LayerSpec, config: MethodConfig, tasks: TaskNames = NO_TASKS) -> None:
        super().__init__()
        self.layer = layer
        self.config = config.at(layer)
        self.num_tasks = len(tasks)
        self.probes = self.aligned = None
        if self.mixing is Mixing.TASK:
            # Saved beside the stacked parameters, whose order it fixes.
            self.register_buffer("task_digest", torch.tensor(tasks.digest()))
        self.build()
        self.reset()

    def extra_repr(self) -> str:
        """Sizes and options, for `print(model)`."""
        options = ", ".join(f"{key}={value}" for key, value in self.config.to_dict().items())
        return f"{self.layer.d_in} -> {self.layer.d_out}, {options}"

    # The parameters and their start.

    @abstractmethod
    def build(self) -> None:
        """Create the parameters: at least `down` (R, D) and `up` (O, S)."""

    def reset(self) -> None:
        """Initialise the parameters so that the update is zero. Default: `down` Kaiming-uniform, `up` zero."""
        init.kaiming_uniform_(self.down, fan_in=self.layer.d_in)
        nn.init.zeros_(self.up)

    # The equation.

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

    def core(self, h_BLR: Tensor, x_BLX: Tensor | None, ctx: Context) -> Tensor:
        """The mixing between the factors: (B, L, S), linear in `h`. Default: the identity.

        Args:
            h_BLR: `A' drop(x)`, in the dtype to compute in; may be non-contiguous.
            x_BLX: the input that an INPUT method looks at: the router's logits `W x` (B, L, E) if there is a
                `router_weight`, else the layer's raw input (B, L, D). None when the core's matrix is read off.
            ctx: tasks and masks of this pass; a TASK method always finds `task_ids_B` set, with B or 1 entries.
        """
        return h_BLR

    def router_weight(self) -> Tensor | None:
        """W (E, D) of a linear router on the layer's raw input, which shares one product with A'. Default: None."""
        return None

    def core_weight(self) -> Tensor | None:
        """The part of the core's parameters that all tasks share, in one tensor of any shape (*C). Default: None.

        `core` uses it as `self.shared_core(ctx)`, through which its gradient is collected by task.
        """
        return None

    # Promises beside the equation.

    def penalty(self) -> Tensor | Mapping[str, Tensor] | None:
        """A scalar to add to the loss, already weighted; or several by name; or None, the default."""
        return None

    @property
    def penalty_from(self) -> PenaltyFrom:
        """The source of `penalty`: NOTHING (there is none, the default), the WEIGHTS, or the last PASS in training."""
        return PenaltyFrom.NOTHING

    @classmethod
    def accepts_unknown_tasks(cls, config: MethodConfig) -> bool:
        """Whether a task that was not trained is served, as task id T, instead of an error. Default: False."""
        return False

    # Speed.

    def folded_up(self, ctx: Context, num_rows: int) -> Tensor | None:
        """Core and B' in one, (U, R, O) for U equal blocks of the rows, where that is cheaper; else None, the default.

        The core is then passed over. Never asked for while gradients per task are collected.
        """
        return None
