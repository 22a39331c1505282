"""The penalty `align` on whole models: its value, its gradients, and the methods and passes that it is refused in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import lorachord as lc
from lorachord.tuner.layer import LorachordLinear
from tests.integration.helpers import METHODS
from tests.reference import align as reference
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b", "c"]
ORDER = ["a", "a", "b", "c"]
FLOOR = 1e-6


def aligned(method: str = "lora", align: Any = 0.3, moved: bool = True, **options: Any) -> PeftModel:
    settings = {"r": 3, **METHODS[method], "tasks": TASKS, **options}
    model = lc.attach(tiny("llama").double(), method, align=align, **settings).train()
    if moved:
        perturb(model, 0.2)
    return model


def by_hand(model: PeftModel, tasks: list[str], mask: Tensor | None = None, floor: float = FLOOR) -> Tensor:
    """The reference on what each layer gets in a pass over the tokens."""
    seen: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LorachordLinear)}
    handles = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: seen.__setitem__(name, args[0]))
        for name, layer in layers.items()
    ]
    penalty = run(model, tasks, mask)
    for handle in handles:
        handle.remove()
    mask = torch.ones(len(tasks), 7) if mask is None else mask
    rows = [TASKS.index(task) if count else -1 for task, own in zip(tasks, mask, strict=True) for count in own]
    downs = [layer.active()[0].down_weight() for layer in layers.values()]
    hidden = [(x.flatten(0, 1) @ down.T, rows) for x, down in zip(seen.values(), downs, strict=True)]
    expected = reference.penalty(hidden, weight=0.3, floor=floor)
    torch.testing.assert_close(penalty, expected, rtol=1e-9, atol=1e-12)
    return expected


def run(model: PeftModel, tasks: list[str], mask: Tensor | None = None) -> Tensor:
    """The penalty after a pass over the tokens."""
    with lc.on_task(model, tasks):
        model(input_ids=token_ids(num_samples=len(tasks)), attention_mask=mask)
    return lc.penalties(model)["align"]


@pytest.mark.parametrize("method", ["lora", "multilora", "thanora", "mtl_lora", "allot"])
def test_it_is_the_mean_over_layers_and_pairs_of_the_symmetric_divergence(method: str) -> None:
    assert by_hand(aligned(method), ORDER) > 0.01


def test_its_gradients_are_those_of_the_reference() -> None:
    model = aligned()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = [model.get_parameter(name) for name in names]
    found = torch.autograd.grad(run(model, ORDER), parameters, allow_unused=True)
    expected = torch.autograd.grad(by_hand(model, ORDER), parameters, allow_unused=True)
    for name, ours, theirs in zip(names, found, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12, msg=lambda text, name=name: name + text)


def test_padding_is_no_row() -> None:
    mask = torch.ones(4, 7)
    mask[0, 3:] = mask[2, 1:] = 0
    # b has one row, and says nothing.
    with_padding = by_hand(aligned(), ORDER, mask)
    assert not torch.isclose(with_padding, run(aligned(), ORDER))


def test_a_task_with_fewer_than_two_rows_says_nothing() -> None:
    mask = torch.ones(3, 7)
    mask[2, 1:] = 0
    found = run(aligned(), ["a", "b", "c"], mask)
    expected = run(aligned(), ["a", "b"])
    torch.testing.assert_close(found, expected)


def test_of_one_task_it_is_zero_and_its_gradient_too() -> None:
    model = aligned()
    penalty = run(model, ["a", "a"])
    assert penalty == 0
    penalty.backward()
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


def test_at_the_start_it_acts_on_a_alone() -> None:
    model = aligned("lora", moved=False, target_modules=["down_proj"], layers_to_transform=[1])
    (layer,) = (one for one in model.modules() if isinstance(one, LorachordLinear))
    adapter = layer.active()[0]
    assert not adapter.up.any()
    run(model, ORDER).backward()
    assert adapter.up.grad is None
    assert bool(adapter.down.grad.abs().sum(1).gt(0).all())


def test_no_variance_counts_as_smaller_than_the_floor() -> None:
    model = aligned(align={"weight": 0.3, "floor": 1.0})
    high = by_hand(model, ORDER, floor=1.0)
    assert high < run(aligned(), ORDER)


def test_a_step_along_its_gradient_brings_the_tasks_together() -> None:
    model = aligned()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = run(model, ORDER)
    for _ in range(40):
        optimizer.zero_grad()
        run(model, ORDER).backward()
        optimizer.step()
    assert run(model, ORDER) < 0.5 * before


def test_it_is_computed_in_float32_under_autocast() -> None:
    model = lc.attach(tiny("llama"), "lora", tasks=TASKS, r=3, align=0.3).train()
    wide = run(model, ORDER)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run(model, ORDER)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_checkpointing_leaves_its_gradients_as_they_are(method: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = aligned(method)
        if checkpointing:
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        run(model, ORDER).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() <= found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_reentrant_checkpointing_is_refused() -> None:
    model = aligned()
    model.enable_input_require_grads()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=False"):
        run(model, ORDER)


def test_surgery_gives_it_to_a_by_task() -> None:
    model = aligned()
    run(model, ORDER).backward()
    joint = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model = aligned()
    surgeon = lc.Surgeon(model, "sum")
    run(model, ORDER).backward()
    surgeon.operate()
    for name, gradient in joint.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-12)


def test_a_saved_adapter_keeps_it(tmp_path: Path) -> None:
    model = aligned()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama").double(), tmp_path, is_trainable=True).train()
    assert loaded.active_peft_config.align == {"weight": 0.3, "floor": 1e-6}
    torch.testing.assert_close(run(loaded, ORDER), run(model, ORDER))


def test_without_weight_there_is_none() -> None:
    model = aligned(align=0.0)
    with lc.on_task(model, ORDER):
        model(input_ids=token_ids())
    assert lc.penalties(model) == {}


def test_a_pass_without_tasks_is_refused_in_training_alone() -> None:
    model = aligned()
    with pytest.raises(ValueError, match="`align` needs the task of each sample"):
        model(input_ids=token_ids())
    model.eval()(input_ids=token_ids())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("hydralora", {}, "hydralora routes by its input"),
        ("comol", {}, "comol routes by its input"),
        ("lora", {"tasks": None}, "name them"),
        ("lora", {"align": {"wieght": 0.1}}, "Did you mean 'weight'"),
        ("lora", {"align": -1.0}, "at least 0"),
        ("lora", {"align": {"floor": 0.0}}, "above 0"),
        ("lora", {"align": "much"}, "a number"),
    ],
)
def test_nonsense_is_refused_with_what_would_do(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lc.attach(tiny("llama"), method, **{"tasks": TASKS, "align": 0.1, **settings})
