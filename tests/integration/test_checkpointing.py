"""Gradient checkpointing changes no gradient: under changing tasks, of penalties, under a mask of the weights."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

import lorachord as lc
from lorachord.tuner.checkpointing import TaskCheckpoint
from lorachord.tuner.passes import Passes
from tests.integration.helpers import METHODS, NO_DROPOUT, close, differ, gradients, layers, logits
from tests.tiny_models import perturb, tiny, token_ids

FIRST, SECOND = token_ids(seed=1), token_ids(seed=2)
reentrant = pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])


def in_training(architecture: str, method: str, base: PreTrainedModel | None = None, **settings: Any) -> PeftModel:
    base = tiny(architecture, **NO_DROPOUT[architecture]) if base is None else base
    model = lc.attach(base, method, **{**METHODS[method], **settings})
    perturb(model, 0.3)
    return model.train()


def checkpoint(model: nn.Module, use_reentrant: bool) -> None:
    """Enable checkpointing as Trainer does, whatever the method is called in this version of transformers."""
    name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": use_reentrant}})
    # A reentrant checkpoint passes gradients on only if one of its inputs asks for them.
    model.enable_input_require_grads()


def two_tasks_one_backward(model: PeftModel, backward_under: str | None = "b") -> dict[str, Tensor]:
    """Gradients of a pass under task a plus one under task b, with the backward pass under any task or none."""
    model.zero_grad()
    with lc.on_task(model, "a"):
        loss = model(input_ids=FIRST).logits.square().sum()
    with lc.on_task(model, "b"):
        loss = loss + model(input_ids=SECOND).logits.square().sum()
    if backward_under is None:
        loss.backward()
    else:
        with lc.on_task(model, backward_under):
            loss.backward()
    return gradients(model)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = float(expected[name].abs().max()) + 1e-6
        assert close(gradient, expected[name], 1e-4 * scale), name


# Tasks


@reentrant
@pytest.mark.parametrize("backward_under", [None, "a", "b"])
def test_each_recompute_runs_under_the_task_of_its_own_forward(architecture, use_reentrant, backward_under):
    expected = two_tasks_one_backward(in_training(architecture, "mtl_lora"))
    model = in_training(architecture, "mtl_lora")
    checkpoint(model, use_reentrant)
    assert_same(two_tasks_one_backward(model, backward_under), expected)


@reentrant
def test_without_the_hook_the_gradients_would_be_wrong(architecture, use_reentrant, monkeypatch):
    expected = two_tasks_one_backward(in_training(architecture, "mtl_lora"))
    monkeypatch.setattr(Passes, "_prepare_checkpointing", lambda self, model: None)
    model = in_training(architecture, "mtl_lora")
    checkpoint(model, use_reentrant)
    found = two_tasks_one_backward(model)
    stacked = [name for name in expected if name.endswith(".transform")]
    assert stacked
    assert any(differ(found[name], expected[name], 0.1 * float(expected[name].abs().max())) for name in stacked)


@reentrant
def test_layers_are_in_fact_recomputed(architecture, use_reentrant):
    model = in_training(architecture, "mtl_lora")
    checkpoint(model, use_reentrant)
    calls: Counter[str] = Counter()
    for name, layer in layers(model).items():
        layer.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with lc.on_task(model, "a"):
        loss = model(input_ids=FIRST).logits.square().sum()
    assert set(calls.values()) == {1}
    loss.backward()
    # The last layers of a block may be spared, and a pooler is in no block.
    assert sum(count == 2 for count in calls.values()) > len(calls) / 2
    assert max(calls.values()) == 2


@reentrant
def test_checkpointing_may_be_enabled_before_attaching(architecture, use_reentrant):
    expected = two_tasks_one_backward(in_training(architecture, "mtl_lora"))
    base = tiny(architecture, **NO_DROPOUT[architecture])
    checkpoint(base, use_reentrant)
    assert_same(two_tasks_one_backward(in_training(architecture, "mtl_lora", base)), expected)


@reentrant
def test_checkpointing_may_be_enabled_and_disabled_between_steps(use_reentrant):
    model = in_training("llama", "mtl_lora")
    expected = two_tasks_one_backward(model)
    for other in (use_reentrant, not use_reentrant):
        checkpoint(model, other)
        assert_same(two_tasks_one_backward(model), expected)
        model.base_model.model._set_gradient_checkpointing(enable=False)
        assert_same(two_tasks_one_backward(model), expected)


@reentrant
def test_mixed_tasks_by_the_forward_keyword_are_remembered(architecture, use_reentrant):
    def run(model: PeftModel) -> dict[str, Tensor]:
        loss = model(input_ids=FIRST, lorachord_tasks=["a", "b", "b", "a"]).logits.square().sum()
        loss = loss + model(input_ids=SECOND, lorachord_tasks="b").logits.square().sum()
        loss.backward()
        return gradients(model)

    expected = run(in_training(architecture, "mtl_lora"))
    model = in_training(architecture, "mtl_lora")
    checkpoint(model, use_reentrant)
    assert_same(run(model), expected)


@reentrant
def test_a_model_adapted_by_transformers_remembers_its_tasks_too(use_reentrant):
    def build() -> PreTrainedModel:
        model = tiny("llama")
        model.add_adapter(lc.LorachordConfig.build("mtl_lora", **METHODS["mtl_lora"]))
        perturb(model, 0.3)
        return model.train()

    expected = two_tasks_one_backward(build())
    model = build()
    checkpoint(model, use_reentrant)
    assert_same(two_tasks_one_backward(model), expected)


@reentrant
def test_the_tasks_of_a_backward_pass_do_not_leak_out_of_it(use_reentrant):
    model = in_training("llama", "mtl_lora")
    checkpoint(model, use_reentrant)
    with lc.on_task(model, "a"):
        loss = model(input_ids=FIRST).logits.square().sum()
    # A part of the model, called without the whole, has nothing that would set the tasks anew.
    backbone = model.eval().base_model.model.model
    with lc.on_task(model, "b"), torch.no_grad():
        expected = backbone(input_ids=FIRST).last_hidden_state
        with torch.enable_grad():
            loss.backward()
        assert torch.equal(backbone(input_ids=FIRST).last_hidden_state, expected)
    with pytest.raises(ValueError, match="needs the task"):
        backbone(input_ids=FIRST)


def test_unloading_takes_the_hook_off_again():
    model = in_training("llama", "mtl_lora")
    checkpoint(model, False)
    two_tasks_one_backward(model)
    functions = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    assert any(isinstance(function, TaskCheckpoint) for function in functions)
    base = model.unload()
    functions = [vars(module).get("_gradient_checkpointing_func") for module in base.modules()]
    assert any(functions)
    assert not any(isinstance(function, TaskCheckpoint) for function in functions)


# Penalties


def penalised(model: PeftModel, task_loss: float = 1.0) -> dict[str, Tensor]:
    model.zero_grad()
    loss = task_loss * model(input_ids=FIRST).logits.square().sum()
    (loss + lc.penalty(model)).backward()
    return gradients(model)


@pytest.mark.parametrize("method", ["hydralora", "mosld"])
@pytest.mark.parametrize("task_loss", [0.0, 1.0])
def test_the_gradient_of_a_penalty_survives_checkpointing(architecture, method, task_loss):
    plain = in_training(architecture, method, balance=0.5)
    expected = penalised(plain, task_loss)
    assert any(float(expected[name].abs().max()) > 1e-4 for name in expected if "router" in name)
    model = in_training(architecture, method, balance=0.5)
    checkpoint(model, use_reentrant=False)
    assert_same(penalised(model, task_loss), expected)
    assert close(lc.penalty(model), lc.penalty(plain))


def test_a_recompute_records_nothing(architecture):
    model = in_training(architecture, "hydralora", balance=0.5)
    checkpoint(model, use_reentrant=False)
    loss = model(input_ids=FIRST).logits.square().sum()
    routers = [layer.lorachord_adapter["default"].router for layer in layers(model).values()]
    recorded = [router.recorded for router in routers]
    assert all(value is not None for value in recorded)
    loss.backward()
    assert all(router.recorded is value for router, value in zip(routers, recorded, strict=True))


def test_a_penalty_is_of_the_last_forward_and_of_training_alone():
    model = in_training("llama", "hydralora", balance=0.5)
    model(input_ids=FIRST)
    first = lc.penalty(model)
    model(input_ids=FIRST[:1])
    second = lc.penalty(model)
    assert differ(first, second, 1e-4)
    model(input_ids=FIRST)
    torch.testing.assert_close(lc.penalty(model), first)
    model.eval()
    logits(model)
    assert lc.penalty(model) == 0


@pytest.mark.filterwarnings("ignore:The method of adapter")
def test_a_penalty_under_reentrant_checkpointing_is_refused_in_words(architecture):
    model = in_training(architecture, "hydralora", balance=0.5)
    checkpoint(model, use_reentrant=True)
    with pytest.raises(ValueError, match=r"penalty of adapter default would lose its graph.*use_reentrant=False"):
        model(input_ids=FIRST)
    logits(model.eval())
    checkpoint(model.train(), use_reentrant=False)
    penalised(model)


def test_no_penalty_is_no_reason_to_refuse_reentrant_checkpointing(architecture):
    expected = penalised(in_training(architecture, "hydralora", balance=0.0))
    model = in_training(architecture, "hydralora", balance=0.0)
    checkpoint(model, use_reentrant=True)
    assert_same(penalised(model), expected)


def test_the_name_of_an_adapter_with_a_penalty_is_free_for_one_without():
    model = tiny("llama")
    model.add_adapter(lc.LorachordConfig.build("hydralora", r=2, balance=0.5))
    model.delete_adapter("default")
    model.add_adapter(lc.LorachordConfig.build("lora", r=2))
    checkpoint(model.train(), use_reentrant=True)
    backward(model)


def test_a_penalty_that_was_recorded_without_a_graph_is_refused():
    model = in_training("llama", "hydralora", balance=0.5)
    logits(model)
    assert model.training
    with pytest.raises(ValueError, match="recorded without a graph"):
        lc.penalty(model)
    with torch.no_grad():
        assert lc.penalty(model) > 0


# MoSLD's mask


def masked(architecture: str) -> PeftModel:
    return in_training(architecture, "mosld", weight_dropout=0.3, balance=0.0)


def masks(model: nn.Module) -> list[Tensor]:
    return [layer.lorachord_adapter["default"].mask.clone() for layer in layers(model).values()]


def backward(model: nn.Module, ids: Tensor = FIRST) -> dict[str, Tensor]:
    model(input_ids=ids).logits.square().sum().backward()
    return gradients(model)


def test_a_mask_drops_entries_of_the_shared_factor():
    model = masked("llama")
    trained = logits(model)
    assert differ(trained, logits(model.eval()))
    values = torch.cat([mask.flatten() for mask in masks(model)])
    assert values.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert float((values == 0).float().mean()) == pytest.approx(0.3, abs=0.06)


@reentrant
def test_a_recompute_uses_the_mask_of_its_forward(architecture, use_reentrant):
    expected = backward(masked(architecture))
    model = masked(architecture)
    checkpoint(model, use_reentrant)
    assert_same(backward(model), expected)


@reentrant
def test_one_mask_serves_a_whole_accumulation_window(architecture, use_reentrant):
    model = masked(architecture)
    checkpoint(model, use_reentrant)
    backward(model)
    first = masks(model)
    backward(model, SECOND)
    assert all(torch.equal(mask, before) for mask, before in zip(masks(model), first, strict=True))


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=False),
    "adamw-foreach": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=True),
    "adamw-fused": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, foreach=False),
    "sgd-foreach": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, foreach=True),
    "sgd-fused": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, fused=True),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_step_draws_new_masks(optimiser):
    model = masked("llama")
    optimizer = OPTIMISERS[optimiser]([parameter for parameter in model.parameters() if parameter.requires_grad])
    seen = []
    for _ in range(3):
        backward(model)
        seen.append(torch.cat([mask.flatten() for mask in masks(model)]))
        optimizer.step()
        optimizer.zero_grad()
    for index in (0, 1):
        changed = (seen[index] != seen[index + 1]).float().mean()
        # Two independent masks that keep 0.7 differ in 2 * 0.7 * 0.3 of their entries.
        assert changed == pytest.approx(0.42, abs=0.1)


def test_layers_have_masks_of_their_own():
    model = masked("llama")
    logits(model)
    first, second = (
        layer.lorachord_adapter["default"].mask for name, layer in layers(model).items() if name.endswith("q_proj")
    )
    assert not torch.equal(first, second)


def test_masks_neither_use_nor_disturb_the_random_numbers_of_others():
    model = masked("llama")
    before = torch.get_rng_state()
    logits(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_of_the_run_decides_the_masks():
    def drawn(seed: int) -> Tensor:
        model = masked("llama")
        torch.manual_seed(seed)
        logits(model)
        return torch.cat([mask.flatten() for mask in masks(model)])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
