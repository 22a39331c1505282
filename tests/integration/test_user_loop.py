"""Surgery and balance in loops of one's own: with clipping, accelerate, a gradient scaler and compiled models."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import lorachord as lc
from lorachord.surgery.operation import Operation
from lorachord.surgery.surgeon import Surgeon
from tests.tiny_models import perturb, tiny, token_ids

TASKS = ["a", "b"]
BATCHES = [["a", "a", "b", "b"], ["a", "b", "b", "b"], ["a", "a", "a", "b"]]


def adapted(architecture: str = "llama", method: str = "lora", **options: Any) -> Any:
    base = tiny(architecture, num_hidden_layers=1)
    if architecture == "bert":
        base = lc.add_heads(base, dict.fromkeys(TASKS, 2))
    model = lc.attach(base, method, tasks=TASKS, r=4, **options)
    perturb(model, 0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def trainable(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def task_losses(model: Any, tasks: list[str], seed: int) -> dict[str, Tensor]:
    with lc.on_task(model, tasks):
        logits = model(input_ids=token_ids(seed=seed)).logits.float()
    of = {task: [row for row, own in enumerate(tasks) if own == task] for task in TASKS}
    # Of opposite signs, so that there are conflicts.
    return {task: sign * logits[of[task]].logsumexp(-1).mean() for task, sign in zip(TASKS, (1, -1), strict=True)}


def loss_of(model: Any, tasks: list[str], seed: int) -> Tensor:
    return torch.stack(list(task_losses(model, tasks, seed).values())).mean()


def batches() -> Iterator[tuple[int, list[str]]]:
    return enumerate(BATCHES, 1)


def test_accelerate_with_accumulation_and_clipping_steps_as_the_loop_by_hand() -> None:
    by_hand, model = adapted(), adapted()
    surgeon, optimizer = Surgeon(by_hand), torch.optim.SGD(trainable(by_hand), lr=0.5)
    for _ in range(2):
        for seed, tasks in batches():
            (loss_of(by_hand, tasks, seed) / 3).backward()
        assert surgeon.operate().moved > 0
        assert torch.nn.utils.clip_grad_norm_(trainable(by_hand), 0.01) > 0.01
        optimizer.step()
        optimizer.zero_grad()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    surgeon, optimizer = Surgeon(model), torch.optim.SGD(trainable(model), lr=0.5)
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(2):
        for seed, tasks in batches():
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, tasks, seed))
                if accelerator.sync_gradients:
                    surgeon.operate()
                    accelerator.clip_grad_norm_(trainable(model), 0.01)
                optimizer.step()
                optimizer.zero_grad()
    for found, expected in zip(trainable(model), trainable(by_hand), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def scaled_step(
    model: Any, surgeon: Surgeon, optimizer: Any, scaler: torch.amp.GradScaler, factor: float = 1.0
) -> Operation:
    """The one right order: `operate` writes the gradients that `unscale_` divides and looks through."""
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = loss_of(model, BATCHES[0], 1)
    scaler.scale(loss * factor).backward()
    operation = surgeon.operate(scale=scaler.get_scale())
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(trainable(model), 0.01)
    scaler.step(optimizer)
    scaler.update()
    return operation


@pytest.mark.parametrize("rule", ["ortho_lora", "significant", "upgrad"])
def test_a_scaled_loss_steps_as_one_that_is_not(rule: str) -> None:
    models, remembered = [adapted() for _ in range(2)], []
    for model, scale in zip(models, (1.0, 2.0**12), strict=True):
        surgeon, optimizer = Surgeon(model, rule, granularity="role"), torch.optim.SGD(trainable(model), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(3):
            scaled_step(model, surgeon, optimizer, scaler)
        remembered.append(surgeon.rule.state())
    for found, expected in zip(*map(trainable, models), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-6)
    assert remembered[0].keys() == remembered[1].keys()
    for name, value in remembered[0].items():
        torch.testing.assert_close(remembered[1][name], value, rtol=0.02, atol=float(0.02 * value.abs().max()))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["ortho_lora", "sum", "significant", "upgrad", "gradvac", "nash_mtl"])
def test_a_step_that_is_not_finite_is_skipped_and_not_remembered(rule: str, factor: float) -> None:
    model = adapted()
    surgeon = Surgeon(model, rule, granularity="global")
    optimizer, scaler = torch.optim.SGD(trainable(model), lr=0.5), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaled_step(model, surgeon, optimizer, scaler)
    before = [p.detach().clone() for p in trainable(model)]
    remembered = {name: value.clone() for name, value in surgeon.rule.state().items()}

    scaled_step(model, surgeon, optimizer, scaler, factor)
    assert scaler.get_scale() == 4.0
    assert all(torch.equal(p, old) for p, old in zip(trainable(model), before, strict=True))
    assert all(torch.equal(value, remembered[name]) for name, value in surgeon.rule.state().items())

    operation = scaled_step(model, surgeon, optimizer, scaler)
    assert operation.weights_NT.isfinite().all()
    assert scaler.get_scale() == 4.0
    assert not all(torch.equal(p, old) for p, old in zip(trainable(model), before, strict=True))


@pytest.mark.parametrize("name", ["running_scale", "uncertainty"])
def test_balance_clipping_and_surgery_go_together(name: str) -> None:
    model = adapted()
    balance, surgeon = lc.make_balance(name, TASKS), Surgeon(model)
    optimizer = torch.optim.SGD([*trainable(model), *balance.parameters()], lr=0.5)
    for seed, tasks in batches():
        losses = {task: loss.abs() for task, loss in task_losses(model, tasks, seed).items()}
        balance(losses).backward()
        surgeon.operate()
        torch.nn.utils.clip_grad_norm_(trainable(model), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    expected = torch.tensor([1 / float(losses[task].detach()) for task in TASKS])
    if name == "running_scale":
        torch.testing.assert_close(balance.weights_T, expected, rtol=0.2, atol=0)
    else:
        assert (balance.weights_T < 1).all()


def one_pass_gradients(model: Any, run: Any, rule: str) -> list[dict[str, Tensor]]:
    surgeon, found = Surgeon(model, rule), []
    for seed, tasks in batches():
        with lc.on_task(model, tasks):
            logits = run(input_ids=token_ids(seed=seed)).logits
        (logits.logsumexp(-1).mean() + lc.penalty(model)).backward()
        surgeon.operate()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    return found


@pytest.mark.parametrize(
    ("architecture", "method", "rule"),
    [
        ("llama", "lora", "ortho_lora"),
        pytest.param("bert", "lora", "significant", marks=pytest.mark.slow),
        pytest.param("llama", "multilora", "ortho_lora", marks=pytest.mark.slow),
        pytest.param("llama", "mosld", "ortho_lora", marks=pytest.mark.slow),
        pytest.param("bert", "mtl_lora", "ortho_lora", marks=pytest.mark.slow),
        pytest.param("llama", "hydralora", "ortho_lora", marks=pytest.mark.slow),
    ],
)
# Naming torchao's enums costs torch.compile a warning.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_models_give_the_gradients_of_uncompiled_ones(architecture: str, method: str, rule: str) -> None:
    torch._dynamo.reset()
    plain, compiled = adapted(architecture, method), adapted(architecture, method)
    expected = one_pass_gradients(plain, plain, rule)
    found = one_pass_gradients(compiled, torch.compile(compiled, backend="aot_eager"), rule)
    for own, wanted in zip(found, expected, strict=True):
        assert own.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(own[name], value, rtol=1e-6, atol=1e-6)
