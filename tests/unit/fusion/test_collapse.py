"""Collapse is the least-squares solution, at every rank; noise has the power that it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorachord as lc
from lorachord.fusion import Collapse, TaskVectors, merge_vectors, with_noise
from lorachord.fusion.collapse import actual_changes, collapsed, input_covariances
from lorachord.fusion.disentanglement import single
from lorachord.fusion.factors import LowRank, dense
from lorachord.fusion.load import load_task_vectors
from lorachord.fusion.load_routed import load_routed_task_vectors
from lorachord.fusion.task_vectors import Stacked
from tests.tiny_models import perturb, tiny
from tests.unit.fusion.helpers import answers, as_dense, data, inputs, near, peft_lora, toy, two


def covariances(num: int, d_in: int = 5, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(40, d_in, generator=generator, dtype=torch.float64) for _ in range(num)]
    scales = torch.logspace(-1, 1, d_in, dtype=torch.float64)
    return [(x * scales.roll(index)).t() @ (x * scales.roll(index)) / 40 for index, x in enumerate(rows)]


def loss_of(update: Tensor, vectors: TaskVectors, own: list[Tensor]) -> Tensor:
    offs = [update - vectors.delta("linear", task).double() for task in range(len(own))]
    return sum(((off @ one) * off).sum() for off, one in zip(offs, own, strict=True))


@pytest.mark.parametrize("stacked", [True, False])
def test_no_update_is_nearer(stacked: bool):
    vectors, own = toy((2, 3, 1)), covariances(3)
    found, loss = collapsed((vectors if stacked else as_dense(vectors)).layers["linear"], own)
    update = dense(found).double().requires_grad_()
    assert isinstance(found, LowRank) == stacked
    total = loss_of(update, vectors, own)
    (gradient,) = torch.autograd.grad(total, update)
    assert float(gradient.norm()) < 1e-3 * total.item()
    assert loss == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_no_update_of_its_rank_is_nearer(stacked: bool, rank: int):
    vectors, own = toy((2, 3, 1)), covariances(3)
    found, loss = collapsed((vectors if stacked else as_dense(vectors)).layers["linear"], own, rank)
    assert isinstance(found, LowRank)
    assert found.rank == rank
    # Eckart and Young in the metric: the solution without a limit on the rank, whitened and cut.
    root = torch.linalg.cholesky(sum(own))
    whole = dense(collapsed(as_dense(vectors).layers["linear"], own)[0]).double()
    u, s, vh = torch.linalg.svd(whole @ root)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank] @ torch.linalg.inv(root)
    assert near(found.dense(), best.float(), 1e-4)
    assert loss == pytest.approx(float(loss_of(best, vectors, own)), rel=1e-4)


def test_identical_adapters_are_a_fixed_point(tmp_path: Path):
    peft_lora(tmp_path / "a", "llama")
    vectors = load_task_vectors(tiny("llama"), {"a": tmp_path / "a", "b": tmp_path / "a"})
    merged = merge_vectors(vectors, Collapse(measure=False), data(vectors, "tokens"))
    assert all(near(dense(merged.layers[name]), vectors.delta(name, 0), 1e-5) for name in vectors.layers)
    assert all(loss < 1e-8 for loss in merged.notes["predicted_loss"].values())


def test_inputs_are_measured_under_the_tasks_own_update(tmp_path: Path):
    vectors = two(tmp_path, "llama")
    batches = data(vectors, "tokens", batches=2)
    found = {layer.name: own for group, own in input_covariances(vectors, batches) for layer in group}
    assert found.keys() == vectors.layers.keys()
    name = list(vectors.layers)[-1]
    for index, task in enumerate(vectors.tasks):
        seen: list[Tensor] = []
        with single(vectors, index).model() as model:
            handle = model.get_submodule(name).register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
            for batch in batches[task]:
                model(**batch.tensors)
            handle.remove()
        rows = torch.cat([x.flatten(0, -2) for x in seen])
        damped = found[name][index].damped(torch.eye(rows.shape[1]))
        expected = rows.t() @ rows / len(rows)
        assert near(damped, expected + 0.01 * expected.diagonal().mean() * torch.eye(len(expected)), 1e-5)


def test_a_smaller_rank_costs_more_and_the_report_says_how_well_it_was_foretold(tmp_path: Path):
    vectors = two(tmp_path)
    batches = data(vectors)
    whole, cut = (merge_vectors(vectors, Collapse(rank=rank), batches) for rank in (0, 1))
    totals = [sum(merged.notes["predicted_loss"].values()) for merged in (whole, cut)]
    assert totals[0] < totals[1]
    assert -1 <= whole.notes["rank_correlation"] <= 1
    assert whole.notes["actual_change"].keys() == vectors.layers.keys()
    assert whole.low_rank
    assert cut.truncated().layers.keys() == vectors.layers.keys()


def test_a_layer_that_takes_what_it_has_changes_nothing(tmp_path: Path):
    peft_lora(tmp_path / "a")
    vectors = load_task_vectors(tiny("bert"), {"a": tmp_path / "a", "b": tmp_path / "a"})
    changes = actual_changes(single(vectors, 0), data(vectors))
    assert changes.keys() == vectors.layers.keys()
    assert all(abs(value) < 1e-6 for value in changes.values())


def test_an_adapter_with_weights_by_task_becomes_one_plain_lora(tmp_path: Path):
    model = lc.attach(tiny("llama"), "mtl_lora", r=2, num_ups=2, tasks=["a", "b"])
    perturb(model, 0.1)
    model.eval().save_pretrained(tmp_path / "joint")
    vectors = load_task_vectors(tiny("llama"), dict.fromkeys("ab", tmp_path / "joint"))
    fused = lc.fuse(vectors, Collapse(measure=False), data=data(vectors, "tokens"))
    assert fused.peft_config["default"].r == 4
    assert torch.isfinite(answers(fused)).all()


@pytest.mark.parametrize("kind", ["gaussian", "leading"])
@pytest.mark.parametrize("decibels", [-10.0, 0.0, 20.0])
def test_noise_has_the_power_that_it_says(kind: str, decibels: float):
    vectors = toy((3, 3), (60, 50))
    noisy = with_noise(vectors, decibels, kind)
    for task in range(2):
        clean = vectors.delta("linear", task)
        ratio = clean.square().sum() / (noisy.delta("linear", task) - clean).square().sum()
        assert 10 * float(ratio.log10()) == pytest.approx(decibels, abs=0.01 if kind == "leading" else 0.3)


def test_leading_noise_keeps_the_rank_and_lies_in_the_leading_directions():
    vectors = toy((4, 3), (12, 10))
    noisy = with_noise(vectors, 0.0, "leading").layers["linear"]
    assert isinstance(noisy, Stacked)
    assert noisy.ranks == (4, 3)
    clean = vectors.delta("linear", 0)
    difference = noisy.delta(0) - clean
    u, s, vh = torch.linalg.svd(clean)
    size = 1 + int((s.square().cumsum(0) < 0.5 * s.square().sum()).sum())
    inside = u[:, :size] @ (u[:, :size].t() @ difference @ vh[:size].t()) @ vh[:size]
    assert size < 4
    assert near(inside, difference, 1e-4)


def test_noise_is_seeded_and_does_not_depend_on_the_order_of_reading(tmp_path: Path):
    vectors = two(tmp_path)
    names = list(vectors.layers)
    one, other = with_noise(vectors, 5.0), with_noise(vectors, 5.0)
    forwards = {name: one.delta(name, 0) for name in names}
    assert all(torch.equal(other.delta(name, 0), forwards[name]) for name in reversed(names))
    assert not torch.equal(with_noise(vectors, 5.0, seed=1).delta(names[0], 0), forwards[names[0]])


def test_an_unknown_noise_is_refused():
    with pytest.raises(ValueError, match=r"no noise 'gausian'. Did you mean 'gaussian'"):
        with_noise(toy(), 0.0, "gausian")
    with pytest.raises(ValueError, match=r"no noise 'worst'.*leading"):
        with_noise(toy(), 0.0, "worst")


def test_a_router_that_knows_the_task_is_averaged_apart_for_each(tmp_path: Path):
    model = lc.attach(tiny("llama"), "hydralora", r=2, num_experts=2)
    perturb(model, 0.2)
    model.eval().save_pretrained(tmp_path / "a")
    batches: dict[str, Any] = {task: [inputs(seed, "tokens")] for seed, task in enumerate("ab")}
    vectors = load_routed_task_vectors(tiny("llama"), tmp_path / "a", batches)
    name = next(iter(vectors.layers))
    assert not near(vectors.delta(name, 0), vectors.delta(name, 1), 1e-5)
    with pytest.raises(ValueError, match="at least two"):
        load_routed_task_vectors(tiny("llama"), tmp_path / "a", {"a": batches["a"]})
