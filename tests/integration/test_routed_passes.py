"""Passes of routed methods: several before one backward pass, checkpointed or not, and the gradients of each task."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorachord as lc
from tests.integration.helpers import METHODS, NO_DROPOUT, close, gradients, layers
from tests.tiny_models import perturb, tiny, token_ids

ROUTED = pytest.mark.parametrize(
    ("method", "options"),
    [
        ("hydralora", {"balance": 0.1, "z": 0.1}),
        ("mosld", {}),
        ("mode", {"r": 4, "block": 2}),
        ("malora", {}),
        ("moelora", {"contrastive": 0.1, "contrastive_tokens": 4}),
        ("mixlora", {}),
        ("mor1e", {}),
    ],
)
MASK = torch.ones(4, 7, dtype=torch.long)
MASK[1, 4:] = 0


def in_training(architecture: str, method: str, **options: Any) -> nn.Module:
    settings = {"mor1e": {"r1": 2, "r2": 2}, **METHODS}[method]
    # In float32 the order of sums would show.
    model = lc.attach(tiny(architecture, **NO_DROPOUT[architecture]).double(), method, **{**settings, **options})
    perturb(model, 0.3)
    if method == "mor1e":
        lc.fit_intuition(model, [{"input_ids": token_ids(num_samples=12, length=5, seed=4)}])
        for layer in layers(model).values():
            # The switches are a hundred times as steep as what else is perturbed.
            for switch in (layer.lorachord_adapter["default"].gate, layer.lorachord_adapter["default"].share):
                switch.data /= 100
    return model.train()


def step(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """The answers, the penalty and all gradients of a pass, and the routers' loads."""
    model.zero_grad()
    answers = model(input_ids=token_ids(seed=seed), attention_mask=MASK).logits
    penalty = lc.penalty(model)
    (answers.square().sum() + penalty).backward()
    return {"answers": answers, "penalty": penalty, **gradients(model), **lc.router_load(model, forget=True)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert close(value, expected[name], 1e-9 * float(expected[name].detach().abs().max())), name


@ROUTED
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_passes_before_one_backward_pass(method: str, options: dict[str, Any], checkpointing: bool) -> None:
    model = in_training("llama", method, **options)

    def both() -> dict[str, Tensor]:
        model.zero_grad()
        losses = []
        for seed in (1, 2):
            losses.append(model(input_ids=token_ids(seed=seed)).logits.square().sum() + lc.penalty(model))
        torch.stack(losses).sum().backward()
        return gradients(model)

    expected = both()
    if checkpointing:
        model.enable_input_require_grads()
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    assert_same(both(), expected)


def test_gradients_per_task_have_those_of_the_contrastive_loss_in_them() -> None:
    model = in_training("llama", "moelora", contrastive=0.1, tasks=["a", "b"])
    step(model)
    expected = gradients(model)
    surgeon = lc.Surgeon(model)
    with lc.on_task(model, [0, 0, 1, 1]):
        step(model)
    found = surgeon.gradients.collect()
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {key: parameters[id(parameter)] for key, parameter in surgeon.gradients.parameters.items()}
    assert_same(
        {name: found[key].sum(0) for key, name in names.items()}, {name: expected[name] for name in names.values()}
    )
