"""Linear layers whose weights are used without a call of the layer: an adapter there would do nothing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorachord.tuner.layer import LorachordLinear


def uncalled(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """The names of those inside torch's own attention, which hands the weight of its `out_proj` to a function."""
    owners = {"": model, **modules}
    return {name for name in modules if isinstance(owners.get(name.rpartition(".")[0]), nn.MultiheadAttention)}


def warn_of_uncalled(names: set[str]) -> None:
    """Say what `all-linear` leaves out.

    Warns:
        UserWarning: there is something.
    """
    if names:
        warnings.warn(
            f"all-linear leaves out {len(names)} layers of nn.MultiheadAttention ({sorted(names)[0]}), which uses "
            "their weights without calling them: an adapter there would do nothing.",
            stacklevel=2,
        )


def have_linears_called(model: nn.Module) -> None:
    """Keep torch's own encoder layers from the fast path on which, in evaluation, they do not call their linears.

    A hook anywhere in such a layer keeps it from that.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and _has_adapters(module):
            # Nested tensors are for the fast path alone.
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer) and _has_adapters(module):
            hooked = _keep_slow in module._forward_pre_hooks.values()
            if not hooked:
                module.register_forward_pre_hook(_keep_slow)


def have_linears_left(model: nn.Module) -> None:
    """Take back what `have_linears_called` has done."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _keep_slow]:
                del module._forward_pre_hooks[key]


def _keep_slow(module: nn.Module, args: tuple[Any, ...]) -> None:
    pass


def _has_adapters(module: nn.Module) -> bool:
    return any(isinstance(layer, LorachordLinear) for layer in module.modules())


class FirstPass:
    """Watches which adapted layers are called in the first pass in training."""

    def __init__(self) -> None:
        self.over = False
        self.hooks: list[Any] = []
        self.left: dict[str, nn.Module] = {}

    def begin(self, model: nn.Module) -> None:
        """Watch the pass that begins, if it is the first."""
        if self.over or torch.compiler.is_compiling():
            return
        for name, layer in model.named_modules():
            # An expert is called when a token is sent to it.
            trains = isinstance(layer, LorachordLinear) and any(p.requires_grad for p in layer.parameters())
            if trains and "experts" not in name.split("."):
                self.left[name] = layer
                self.hooks.append(layer.register_forward_pre_hook(lambda _, args, name=name: self._called(name)))

    def _called(self, name: str) -> None:
        self.left.pop(name, None)

    def end(self, finished: bool) -> None:
        """The pass is over.

        Args:
            finished: whether it went through.

        Warns:
            UserWarning: some layers were not called.
        """
        for hook in self.hooks:
            hook.remove()
        left, watched = list(self.left), bool(self.hooks)
        self.hooks, self.left = [], {}
        self.over = self.over or (watched and finished)
        if left and finished:
            warnings.warn(
                f"{len(left)} adapted layers were not called in the first pass in training, among them {left[0]}: an "
                "adapter learns nothing where the model does not call the layer, or uses its weight without that. "
                "Leave such layers out by exclude_modules, unless other batches need them.",
                stacklevel=2,
            )
