"""Concrete: masks, their samples and their gradients, and the order in which masks and coefficients step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorachord.core.config import LayerSpec
from lorachord.fusion import Concrete, TaskVectors, merge_vectors
from lorachord.fusion.adapt import rounds
from lorachord.fusion.arithmetic import task_arithmetic
from lorachord.fusion.concrete import Draw, MaskedCombination, masked
from lorachord.fusion.factors import dense
from lorachord.fusion.predictions import Inputs
from lorachord.fusion.task_vectors import held
from lorachord.fusion.updates import layer_spec
from tests.unit.fusion.helpers import average_entropy, data, near, toy, two


def test_a_constant_mask_changes_nothing():
    delta, logits = torch.randn(4, 3), torch.full((4, 3), 0.7)
    assert near(masked(delta, logits), delta)
    assert near(masked(delta, logits, torch.full((4, 3), 0.2)), delta)


def test_a_mask_by_hand():
    found = masked(torch.ones(1, 2), torch.tensor([[0.0, 0.5]]), torch.tensor([[0.5, 0.2]]))
    mask = [0.5, 1 / (1 + 2.718281828 ** (-(0.5 + torch.tensor(0.2).logit().item()) / 0.5))]
    assert found[0].tolist() == pytest.approx([value / (sum(mask) / 2) for value in mask], rel=1e-5)


def test_a_mask_is_the_same_in_the_recomputation_and_another_at_the_next_step():
    vectors = toy()
    draw = Draw(0)
    layer = layer_spec("linear", vectors.layers["linear"])
    adapter = MaskedCombination(layer, 0, vectors.layers["linear"], nn.Parameter(torch.ones(2)), draw)
    x = torch.randn(7, 5, requires_grad=True)

    def zero(x: Tensor) -> Tensor:
        return x.new_zeros(7, 6)

    with torch.no_grad():
        adapter.logits.normal_()
    y = adapter(x, zero)
    assert torch.equal(y, adapter(x, zero))
    noise = draw.noise(0, adapter.logits)
    delta = masked(dense(vectors.layers["linear"].combine(torch.ones(2))), adapter.logits, noise)
    expected = torch.autograd.grad((x @ delta.t()).square().sum(), [adapter.logits, x])
    found = torch.autograd.grad(y.square().sum(), [adapter.logits, x])
    assert all(near(left, right, 1e-5) for left, right in zip(found, expected, strict=True))
    draw.step = 1
    assert not torch.equal(y, adapter(x, zero))


def test_no_dense_update_is_kept_for_the_backward_pass():
    vectors = toy((2, 2), (96, 64))
    layer = vectors.layers["linear"]
    adapter = MaskedCombination(LayerSpec("linear", 0, 1, 64, 96), 0, layer, nn.Parameter(torch.ones(2)), Draw(0))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = adapter(torch.randn(3, 64, requires_grad=True), lambda x: x.new_zeros(3, 96))
        held = [tensor for tensor in kept if tensor.numel() >= 64 * 96 and tensor is not adapter.logits]
    assert not held
    y.sum().backward()
    assert torch.count_nonzero(adapter.logits.grad)


@pytest.mark.parametrize("schedule", ["bilevel", "turns"])
@pytest.mark.parametrize("granularity", ["fixed", "layer", "task"])
def test_concrete_lowers_the_entropy(granularity: str, schedule: str, tmp_path: Path):
    vectors = two(tmp_path)
    batches = data(vectors)
    method = Concrete(granularity=granularity, schedule=schedule, steps=15, learning_rate=0.05)
    merged = merge_vectors(vectors, method, batches)
    assert average_entropy(merged, batches) < average_entropy(task_arithmetic(vectors, 0.3), batches)
    moved = any(values != pytest.approx((0.3, 0.3)) for values in merged.coefficients.values())
    assert moved == (granularity != "fixed")
    assert not merged.low_rank
    assert merged.as_lora(2).peft_config["default"].r == 2


class Linear(nn.Module):
    """Logits of one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(5, 6).double().requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"logits": self.linear(x)})


def in_one_layer(batches: int = 2) -> tuple[TaskVectors, dict[str, list[Inputs]]]:
    """Two dense task vectors of `Linear`, and batches of both tasks, all different."""
    generator = torch.Generator().manual_seed(3)
    deltas = 0.3 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    vectors = TaskVectors(Linear(), ("a", "b"), {"linear": held(deltas)}, {})
    rows = torch.randn(2, batches, 4, 5, generator=generator, dtype=torch.float64)
    made = {
        task: [Inputs({"x": x}, "classes", (1,) * 4, 6) for x in own]
        for task, own in zip(vectors.tasks, rows, strict=True)
    }
    return vectors, made


def entropy_of(vectors: TaskVectors, batches: dict[str, Inputs], lambdas: Tensor, mask: Tensor) -> Tensor:
    """By dense weights and a loop over rows."""
    deltas = torch.stack([vectors.delta("linear", task) for task in range(2)])
    linear = vectors.base.linear
    weight = linear.weight + torch.tensordot(lambdas, deltas, 1) * mask / mask.mean()
    total = lambdas.new_zeros(())
    for own in batches.values():
        for x in own.tensors["x"]:
            log = (weight @ x + linear.bias).log_softmax(-1)
            total = total - (log.exp() * log).sum() / 4 / len(batches)
    return total


def test_concrete_adamerging_is_bilevel():
    vectors, batches = in_one_layer()
    steps, rate = 4, 0.03
    found = merge_vectors(vectors, Concrete(steps=steps, learning_rate=rate, seed=7), batches)

    logits = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    lambdas = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)
    inner, outer = torch.optim.Adam([lambdas], lr=1.0), torch.optim.Adam([logits], lr=rate)
    order, losses, inside = rounds(batches, 2 * steps, 7), [], []
    for step in range(steps):
        noise = Draw(7, step).noise(0, logits).clamp(1e-6, 1 - 1e-6)
        with torch.no_grad():
            lambdas.fill_(0.3)
        held_mask = ((noise.logit() + logits) / 0.5).sigmoid().detach()
        loss = entropy_of(vectors, next(order), lambdas, held_mask)
        (lambdas.grad,) = torch.autograd.grad(loss, lambdas)
        inner.step()
        inside.append(lambdas.detach().clone())
        mask = ((noise.logit() + logits) / 0.5).sigmoid()
        second = entropy_of(vectors, next(order), lambdas.detach(), mask)
        (logits.grad,) = torch.autograd.grad(second, logits)
        outer.step()
        losses += [loss.item(), second.item()]
    # The inner steps have the size of their rate, and leave [0, 1].
    assert any(value.min() < 0 or value.max() > 1 for value in inside)
    assert not near(inside[0], inside[-1], 1e-3)

    fixed = (logits / 0.5).sigmoid().detach()
    lambdas = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([lambdas], lr=rate)
    for one in rounds(batches, steps, 7):
        loss = entropy_of(vectors, one, lambdas, fixed)
        (lambdas.grad,) = torch.autograd.grad(loss, lambdas)
        optimizer.step()
        with torch.no_grad():
            lambdas.clamp_(0, 1)
        losses.append(loss.item())

    assert found.notes["entropy"] == pytest.approx(losses, abs=1e-6)
    assert found.coefficients["linear"] == pytest.approx(lambdas.tolist(), abs=1e-6)
    assert near(found.masks["linear"], fixed)
    deltas = torch.stack([vectors.delta("linear", task) for task in range(2)])
    expected = torch.tensordot(lambdas, deltas, 1) * fixed / fixed.mean()
    assert near(dense(found.layers["linear"]).double(), expected)


def test_concrete_in_turns_steps_from_where_it_is():
    vectors, batches = in_one_layer()
    found = merge_vectors(vectors, Concrete(schedule="turns", steps=3, learning_rate=0.03, seed=7), batches)
    logits = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    lambdas = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)
    turns = [(each, torch.optim.Adam([each], lr=0.03)) for each in (logits, lambdas)]
    for step, one in enumerate(rounds(batches, 6, 7)):
        noise = Draw(7, step).noise(0, logits).clamp(1e-6, 1 - 1e-6)
        trained, optimizer = turns[step % 2]
        loss = entropy_of(vectors, one, lambdas, ((noise.logit() + logits) / 0.5).sigmoid())
        (trained.grad,) = torch.autograd.grad(loss, trained)
        optimizer.step()
    assert found.coefficients["linear"] == pytest.approx(lambdas.tolist(), abs=1e-6)
    assert near(found.masks["linear"], (logits / 0.5).sigmoid())


@pytest.mark.parametrize("granularity", ["fixed", "layer"])
def test_concrete_keeps_its_mask(granularity: str, tmp_path: Path):
    vectors = two(tmp_path)
    method = Concrete(granularity=granularity, steps=8, learning_rate=0.3)
    merged = merge_vectors(vectors, method, data(vectors))
    assert merged.masks.keys() == merged.notes["mask_density"].keys() == vectors.layers.keys()
    for name, mask in merged.masks.items():
        weights = torch.tensor(merged.coefficients[name])
        plain = sum(weights[task] * vectors.delta(name, task) for task in range(2))
        assert merged.notes["mask_density"][name] == pytest.approx(float(mask.mean()))
        assert near(dense(merged.layers[name]), plain * mask / mask.mean(), 1e-5)
    assert len(set(merged.notes["mask_density"].values())) > 1
    assert merged.truncated().masks.keys() == merged.masks.keys()
