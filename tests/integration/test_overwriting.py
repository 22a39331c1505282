"""Adapters write over what a base layer has made, forward and backward, unless somebody else may have kept that."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.checkpoint import checkpoint as checkpointed
from transformers.pytorch_utils import Conv1D

import lorachord as lc
from tests.integration.helpers import adapted, close, gradients, layers, task_logits
from tests.tiny_models import token_ids

Kept = list[tuple[Tensor, Tensor]]
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def keep(kept: Kept, out: Tensor) -> Tensor:
    kept.append((out.detach(), out.detach().clone()))
    return out


def keep_in_hook(kept: Kept, module: nn.Module, args: Any, out: Any) -> None:
    if isinstance(module, nn.Linear):
        keep(kept, out)


class Keeping(TorchDispatchMode):
    """Keeps what all products return."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        return keep(self.kept, out) if function in PRODUCTS else out


class Subclass(nn.Linear):
    """Keeps what it has made."""

    kept: Kept

    def forward(self, x: Tensor) -> Tensor:
        return keep(self.kept, super().forward(x))


def replace_forward(model: nn.Module, kept: Kept) -> None:
    for layer in layers(model).values():
        forward = layer.base_layer.forward
        layer.base_layer.forward = lambda x, forward=forward: keep(kept, forward(x))


def replace_class(model: nn.Module, kept: Kept) -> None:
    for layer in layers(model).values():
        layer.base_layer.__class__ = Subclass
        layer.base_layer.kept = kept


def hook_layers(model: nn.Module, kept: Kept) -> None:
    for layer in layers(model).values():
        layer.base_layer.register_forward_hook(partial(keep_in_hook, kept))


def watch_input(kept: Kept, module: nn.Module, args: tuple[Tensor]) -> None:
    def see(grad: Tensor) -> None:
        keep(kept, grad)

    args[0].register_hook(see)


def input_gradient(model: nn.Module) -> Tensor:
    """The gradient of the embeddings of tokens, in a pass of all layers."""
    embeddings = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    with lc.on_task(model, 0):
        logits = model(inputs_embeds=embeddings).logits
    return torch.autograd.grad((logits * torch.linspace(-1, 1, logits.shape[-1])).sum(), embeddings)[0]


@contextmanager
def keeper(name: str, model: nn.Module, kept: Kept) -> Iterator[None]:
    """Somebody who keeps what base layers make."""
    changes: dict[str, Callable[[nn.Module, Kept], None]] = {
        "hook": hook_layers,
        "forward": replace_forward,
        "class": replace_class,
    }
    with ExitStack() as stack:
        if name == "global hook":
            stack.callback(register_module_forward_hook(partial(keep_in_hook, kept)).remove)
        elif name == "mode":
            stack.enter_context(Keeping(kept))
        else:
            changes[name](model, kept)
        yield


@pytest.mark.parametrize("name", ["hook", "forward", "class", "global hook", "mode"])
@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_what_somebody_has_kept_stays_as_it_was(name: str, method: str) -> None:
    model, kept = adapted("llama", method), Kept()
    expected = task_logits(model)
    with keeper(name, model, kept):
        assert torch.equal(task_logits(model), expected)
    assert len(kept) >= len(layers(model))
    assert all(torch.equal(out, before) for out, before in kept)


HOOKS = ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.parametrize("kind", HOOKS)
def test_a_base_layer_with_a_hook_is_left_alone(kind: str) -> None:
    layer, x = next(iter(layers(adapted("llama", "lora")).values())), torch.ones(2, 3)
    assert layer._alone(x)
    assert not layer._alone(nn.Parameter(x))
    getattr(layer.base_layer, f"register_{kind}")(lambda *arguments: None)
    assert not layer._alone(x)


def test_so_is_one_whose_weight_is_of_another_kind() -> None:
    class Packed(nn.Parameter):
        pass

    layer = next(iter(layers(adapted("llama", "lora")).values()))
    layer.base_layer.weight = Packed(layer.base_layer.weight.data)
    assert not layer._alone(torch.ones(2, 3))


@pytest.mark.parametrize("kind", HOOKS)
def test_so_is_every_layer_while_there_is_a_hook_on_all_modules(kind: str) -> None:
    layer = next(iter(layers(adapted("llama", "lora")).values()))
    handle = getattr(module, f"register_module_{kind}")(lambda *arguments: None)
    try:
        assert not layer._alone(torch.ones(2, 3))
    finally:
        handle.remove()
    assert layer._alone(torch.ones(2, 3))


@pytest.mark.parametrize("kind", ["input", "full_backward_hook"])
@pytest.mark.parametrize("method", ["lora", "hydralora", "mixlora"])
def test_a_gradient_that_somebody_has_kept_stays_as_it_was(kind: str, method: str) -> None:
    model, kept = adapted("llama", method), Kept()
    expected = input_gradient(model)

    def keep_gradient(module: nn.Module, grads: Any, _: Any) -> None:
        keep(kept, grads[0])

    for layer in layers(model).values():
        if kind == "input":
            layer.base_layer.register_forward_pre_hook(partial(watch_input, kept))
        else:
            layer.base_layer.register_full_backward_hook(keep_gradient)
    assert close(input_gradient(model), expected, 1e-4 * float(expected.abs().max()))
    assert len(kept) >= len(layers(model))
    assert all(torch.equal(grad, before) for grad, before in kept)


@pytest.mark.parametrize("method", ["lora", "hydralora", "mixlora"])
def test_the_base_layer_reads_what_went_through_the_adapter(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = adapted("llama", method), set[str]()
    forward = nn.Linear.forward

    def note(base: nn.Module, x: Tensor) -> Tensor:
        if base in [layer.base_layer for layer in layers(model).values()]:
            read.add(type(x.grad_fn).__name__)
        return forward(base, x)

    monkeypatch.setattr(nn.Linear, "forward", note)
    input_gradient(model)
    assert read == {"_InnerBackward"}


@pytest.mark.parametrize("base_type", [nn.Linear, Conv1D])
@pytest.mark.parametrize("method", ["lora", "mtl_lora", "hydralora"])
def test_what_nobody_has_kept_is_written_over(
    base_type: type[nn.Module], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted("gpt2" if base_type is Conv1D else "bert", method)
    made, returned = {}, {}
    forward = base_type.forward

    def note(base: nn.Module, x: Tensor) -> Tensor:
        made[base] = forward(base, x)
        return made[base]

    monkeypatch.setattr(base_type, "forward", note)
    for layer in layers(model).values():
        layer.register_forward_hook(lambda module, args, out: returned.update({module.base_layer: out}))
    task_logits(model)
    found = {base: out for base, out in returned.items() if isinstance(base, base_type)}
    assert found
    assert all(out.data_ptr() == made[base].data_ptr() for base, out in found.items())


@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_a_checkpoint_that_saves_products_changes_no_gradient(method: str) -> None:
    def policy(context: Any, function: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if function in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE

    model = adapted("llama", method)
    embeddings = model.get_input_embeddings()(token_ids()).detach().requires_grad_()

    def loss(inputs: Tensor) -> Tensor:
        return model(inputs_embeds=inputs).logits.square().sum()

    found = []
    for run in (
        loss,
        lambda inputs: checkpointed(
            loss, inputs, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, policy)
        ),
    ):
        model.zero_grad()
        with lc.on_task(model, "a" if method == "mtl_lora" else 0):
            run(embeddings).backward()
        found.append(gradients(model))
    plain, saving = found
    assert plain.keys() == saving.keys() != set()
    assert all(close(saving[name], plain[name], 1e-4 * float(plain[name].abs().max())) for name in plain)
