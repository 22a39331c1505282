"""A frozen linear layer with adapters on it: PEFT's layer protocol around `core.Adapter`."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from transformers.pytorch_utils import Conv1D

from lorachord.core.adapter import Adapter
from lorachord.core.context import NO_CONTEXT, Context, Mixing
from lorachord.core.forward import Frozen
from lorachord.core.matrix import delta, require_matrix
from lorachord.tuner.state import SharedState


def linear_features(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a layer that can be adapted: Linear, GPT-2's Conv1D, a quantised linear; None for others.

    Of transformers' own kinds of Linear, some compute something else: the choice of a router, a grouped product.
    """
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_in, d_out
    cls = type(module)
    if cls.__module__.startswith("transformers.models.") and cls.forward is not nn.Linear.forward:
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    backend = resolve_quantization_backend(module, get_apply_tensor_subclass=None)
    if backend is not None and backend.layer_type == "linear":
        return module.in_features, module.out_features  # type: ignore[return-value]
    return None


def _called(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    out: Tensor = layer(x, *args, **kwargs)
    return out


def _around(adapter: nn.Module, layer: Frozen, ctx: Context, alone: bool, x: Tensor) -> Tensor:
    out: Tensor = adapter(x, layer, ctx, alone=alone)
    return out


class LorachordLinear(nn.Module, BaseTunerLayer):
    """The adapters of one linear layer by name.

    Args:
        base_layer: the frozen layer.
        shared: what the layers of this model share.
        adapter_name: the adapter to be active at first.
        get_apply_tensor_subclass: what PEFT passes for torchao layers; None for all others.
    """

    adapter_layer_names = ("lorachord_adapter",)
    other_param_names = ()

    def __init__(
        self, base_layer: nn.Module, shared: SharedState, adapter_name: str, get_apply_tensor_subclass: Any = None
    ) -> None:
        super().__init__()
        self._active_adapter = [adapter_name]
        self.base_layer = base_layer
        self.shared = shared
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=get_apply_tensor_subclass
        )
        self.lorachord_adapter = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.merged_tasks: dict[str, int | None] = {}

    def update_layer(self, adapter_name: str, adapter: Adapter, inference_mode: bool = False) -> None:
        """Add an adapter under a name."""
        self.lorachord_adapter[adapter_name] = adapter
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # Unlike PEFT's, this keeps adapters at least float32, also under a bfloat16 base.
        if adapter_name not in self.lorachord_adapter:
            return
        adapter = self.lorachord_adapter[adapter_name]
        base_device, base_dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        target = device or base_device
        if target is None or any(parameter.is_meta for parameter in adapter.parameters()):
            return
        dtype = torch.float64 if base_dtype == torch.float64 else torch.float32
        adapter.to(target, dtype=dtype)

    def active(self) -> list[Adapter]:
        """The active adapters that this layer has."""
        names = [name for name in self.active_adapters if name in self.lorachord_adapter]
        return [self.lorachord_adapter[name] for name in names]  # type: ignore[misc]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output plus the update of every active adapter.

        Raises:
            ValueError: the weights hold an adapter merged for another task.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.merged:
            self.check_merged()
        passing = self.shared.caller.passing
        if self.disable_adapters or self.merged or passing.embedding:
            out: Tensor = self.base_layer(x, *args, **kwargs)
            return out
        layer: Frozen = partial(_called, self.base_layer, args, kwargs) if args or kwargs else self.base_layer
        alone, adapters = self._alone(x), self.lorachord_adapter
        contexts = self.shared.contexts if passing.contexts is None else passing.contexts
        for name in self.active_adapters:
            if name in adapters:
                layer = partial(_around, adapters[name], layer, contexts.get(name, NO_CONTEXT), alone)
        return layer(x)

    def _alone(self, x: Tensor) -> bool:
        """Whether nobody but the adapters can have what goes into the base layer, what comes out, or their gradients.

        The adapters then write over these.
        """
        base = self.base_layer
        return (
            type(base) in (nn.Linear, Conv1D)
            and type(x) is Tensor
            and type(base.weight) in (Tensor, nn.Parameter)
            and not (base._forward_pre_hooks or base._forward_hooks)
            and not (base._backward_pre_hooks or base._backward_hooks)
            and "forward" not in base.__dict__
            and not _has_any_global_hook()
            # A mode that sees all operations may keep what they return, as selective checkpointing does.
            and not is_in_torch_dispatch_mode()
            and not torch.compiler.is_compiling()
        )

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The dense update of an adapter, in the orientation of the base weight, at least float32.

        For a method with one weight per task, that of the task which `on_task` has named.
        """
        return self._delta(adapter, self._named_task(adapter))

    def require_matrix(self, adapter: str) -> None:
        """Raise a ValueError if `get_delta_weight` would: an input-routed method, or a task needed and not named."""
        require_matrix(type(self._adapter(adapter)), self._named_task(adapter))

    def require_readable(self) -> None:
        """Raise a ValueError if the base weight is in a layout that nothing can be added to.

        On a CPU, bitsandbytes packs a weight of 4 bits in the first pass in eval mode, and cannot read it any more.
        """
        state = getattr(self.get_base_layer().weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(
                "A pass in eval mode on the CPU has packed the 4-bit weights, which bitsandbytes cannot read back: "
                "load the base anew and merge before any pass, or export a LoRA, which needs no weights of the base."
            )

    def _named_task(self, name: str) -> int | None:
        return self.shared.named.get(name, NO_CONTEXT).single_task

    def _delta(self, name: str, task: int | None) -> Tensor:
        update_OD = delta(self._adapter(name), task)
        return update_OD.t() if isinstance(self.get_base_layer(), Conv1D) else update_OD

    def _adapter(self, name: str) -> Adapter:
        adapter = self.lorachord_adapter[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def check_merged(self) -> None:
        """Raise a ValueError if another task is named than the one that the weights were merged for."""
        for name, task in self.merged_tasks.items():
            context = self.shared.contexts.get(name, NO_CONTEXT)
            if self._adapter(name).mixing is Mixing.TASK and context.runs is not None and context.single_task != task:
                names = self.shared.task_names[name].names
                assert task is not None
                # An unknown task is one after the last.
                merged, *others = [(*names, "another")[one] for one in (task, *(run[0] for run in context.runs))]
                raise ValueError(
                    f"The weights hold adapter {name!r} merged for the task {merged!r}, but a pass or merge is asked "
                    f"for {', '.join(dict.fromkeys(others))}: call unmerge_adapter() first."
                )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of the named (default: the active) adapters to the base weight.

        Args:
            safe_merge: refuse, with the weight unchanged, if the result is not finite.
            adapter_names: which adapters; None for the active ones.

        Raises:
            ValueError: merged for another task already, or a result that is not finite.
        """
        self.check_merged()
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.lorachord_adapter:
                continue
            task = self._named_task(name)
            self._add_to_base(self._delta(name, task), require_finite=name if safe_merge else None)
            self.merged_adapters.append(name)
            self.merged_tasks[name] = task

    def unmerge(self) -> None:
        """Subtract what was merged."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            self._add_to_base(-self._delta(name, self.merged_tasks.pop(name)))

    @torch.no_grad()
    def _add_to_base(self, delta: Tensor, require_finite: str | None = None) -> None:
        self.require_readable()
        weight = self.get_base_weight()
        # The sum is taken in the wider dtype: a bfloat16 sum would lose small updates twice.
        merged = weight.to(torch.promote_types(weight.dtype, delta.dtype)) + delta.to(weight.device)
        if require_finite is not None and not torch.isfinite(merged).all():
            raise ValueError(f"Merging adapter {require_finite} would put NaN or infinity into the weights.")
        self.set_base_weight(merged.to(weight.dtype))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT may turn the adapter into a plain LoRA: all but input-routed ones."""
        adapter = self.lorachord_adapter[adapter_name]
        return isinstance(adapter, Adapter) and adapter.mixing is not Mixing.INPUT
