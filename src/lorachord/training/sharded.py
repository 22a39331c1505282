"""A sharded base under replicated adapters (FSDP2), and what cannot be trained with surgery.

Sharding saves the memory of what is large, the frozen base. Adapters are small, and the leaves that collect their
gradients per task must lie beside them on every rank; so they are left out of the sharding. Then nothing makes them
equal on all ranks, or averages their gradients, but what is in here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from lorachord.distributed import is_sharded
from lorachord.surgery.surgeon import Surgeon


def check_ranks(accelerator: Accelerator, *, surgery: bool) -> None:
    """Refuse launchers under which adapters cannot be trained, or their gradients not be reached.

    Raises:
        ValueError: surgery under DeepSpeed, which reduces and shards gradients inside its own backward pass; FSDP
            version 1, which flattens adapters and base into one parameter; weights that one rank alone has read.
    """
    sharding = getattr(accelerator.state, "fsdp_plugin", None)
    if getattr(accelerator.state, "deepspeed_plugin", None) is not None and surgery:
        raise ValueError(
            "Surgery needs the gradients of each task before they are reduced, and DeepSpeed reduces and shards them "
            "in its own backward pass. Launch with torchrun (DDP) or FSDP2 (--fsdp_version 2), or leave out surgery."
        )
    if sharding is not None and sharding.fsdp_version != 2:
        raise ValueError(
            "FSDP version 1 flattens adapters and frozen weights into one parameter. Use version 2: "
            '`accelerate launch --use_fsdp --fsdp_version 2`, or fsdp_config={"version": 2, ...}.'
        )
    if sharding is not None and sharding.cpu_ram_efficient_loading:
        raise ValueError(
            "With cpu_ram_efficient_loading the first rank alone reads the weights, and accelerate then sends them all "
            "as sharded ones, which adapters are not. Let every rank read them: "
            '`accelerate launch --fsdp_cpu_ram_efficient_loading false`, or fsdp_config={"cpu_ram_efficient_loading": '
            "False, ...}."
        )


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean of the gradients over the ranks, in one exchange, as a data-parallel reducer takes it.

    A parameter without a gradient counts as zero; one that has none on any rank stays without.
    """
    listed = list(parameters)
    if not listed:
        return
    found = [parameter.grad if parameter.grad is not None else torch.zeros_like(parameter) for parameter in listed]
    present = torch.tensor([float(parameter.grad is not None) for parameter in listed]).to(found[0])
    flat = torch.cat([present, *(gradient.flatten().to(found[0].dtype) for gradient in found)])
    dist.all_reduce(flat)
    present, *means = flat.split([len(listed), *(gradient.numel() for gradient in found)])
    for parameter, mean, ranks in zip(listed, means, present.tolist(), strict=True):
        if ranks:
            parameter.grad = (mean / dist.get_world_size()).view_as(parameter).to(parameter.dtype)


@torch.no_grad()
def send_from_first(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Give every rank the first rank's values, by way of the device that the ranks exchange tensors on."""
    for tensor in tensors:
        sent = tensor.detach().to(device, copy=True)
        dist.broadcast(sent, src=0)
        tensor.detach().copy_(sent)


class ShardedMixin:
    """The parts of a Trainer that know of sharding."""

    surgeon: Surgeon | None

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's, which settles how the ranks work together."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        trainer: Any = self
        check_ranks(trainer.accelerator, surgery=self.surgeon is not None)

    def _wrap_model(self, model: nn.Module, training: bool = True) -> nn.Module:
        # Just before accelerate shards it: everything trainable stays whole, and starts equal.
        trainer: Any = self
        plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and not is_sharded(model):
            plugin.ignored_modules = [
                module
                for module in model.modules()
                if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            ]
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            send_from_first(trained, trainer.accelerator.device)
        wrapped: nn.Module = super()._wrap_model(model, training)  # type: ignore[misc]
        return wrapped

    def average_the_rest(self, model: nn.Module) -> None:
        """Over a sharded base, average what the surgeon does not."""
        if is_sharded(model):
            collected = self.surgeon.gradients.parameters.values() if self.surgeon is not None else ()
            taken = {id(parameter) for parameter in collected}
            average_gradients(p for p in model.parameters() if p.requires_grad and id(p) not in taken)
