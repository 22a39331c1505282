"""An adapter writes its result over what the base layer has made, unless somebody else may have kept that."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
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


@pytest.mark.parametrize("kind", ["forward_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_base_layer_with_a_hook_is_left_alone(kind: str) -> None:
    layer, out = next(iter(layers(adapted("llama", "lora")).values())), torch.ones(2, 3)
    assert layer._owns(out)
    assert not layer._owns(torch.ones(3, 2).t())
    getattr(layer.base_layer, f"register_{kind}")(lambda *arguments: None)
    assert not layer._owns(out)


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
