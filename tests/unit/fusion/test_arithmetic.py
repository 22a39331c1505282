"""Arithmetic on task vectors: small cases by hand, PEFT where it is right, mergekit, and what is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils import merge_utils
from torch import Tensor

from lorachord.fusion.arithmetic import average, dare, disjoint_mean, elect, task_arithmetic, ties, trim, weighted_sum
from lorachord.fusion.factors import LowRank, dense, norm, truncate
from lorachord.fusion.load import load_task_vectors
from tests.tiny_models import tiny
from tests.unit.fusion.helpers import as_dense, near, peft_lora, toy, toy_dense, two

DELTAS = torch.tensor([[[4.0, -1.0, 0.5, 3.0]], [[-3.0, -2.0, 0.1, 6.0]], [[2.0, 5.0, -0.2, -1.0]]])


def test_trim_keeps_the_largest_entries():
    assert trim(torch.tensor([1.0, -5.0, 3.0, 0.5]), 0.5).tolist() == [0.0, -5.0, 3.0, 0.0]


def test_ties_by_hand():
    # Half of each is kept: (4, 3), (-3, 6), (2, 5); signs of the sums: +, +, ., +; means of those that agree.
    assert ties(toy_dense(DELTAS), density=0.5).layers["linear"].tolist() == [[3.0, 5.0, 0.0, 4.5]]


def test_elected_entries_have_the_sign_of_the_sum():
    kept = elect(torch.tensor([[3.0, -1.0, 1.0], [-1.0, -2.0, -1.0]]))
    assert kept.tolist() == [[3.0, -1.0, 1.0], [0.0, -2.0, 0.0]]
    assert disjoint_mean(torch.tensor([[3.0, 0.0], [1.0, 0.0]])).tolist() == [2.0, 0.0]


def test_average_and_arithmetic_are_exact_on_factors_of_different_ranks():
    vectors = toy((1, 4, 2))
    total = sum(vectors.delta("linear", task) for task in range(3))
    assert near(dense(average(vectors).layers["linear"]), total / 3)
    assert near(dense(task_arithmetic(vectors, -0.7).layers["linear"]), -0.7 * total)
    assert isinstance(average(vectors).layers["linear"], LowRank)


def test_identical_vectors_are_a_fixed_point_of_weights_that_sum_to_1():
    delta = toy().delta("linear", 0)
    vectors = toy_dense(torch.stack([delta, delta]))
    for merged in (weighted_sum(vectors, [0.25, 0.75]), average(vectors), ties(vectors, density=1.0)):
        assert near(dense(merged.layers["linear"]), delta)


def test_weights_need_one_for_each_task():
    with pytest.raises(ValueError, match="3 weights for 2 tasks"):
        weighted_sum(toy(), [1.0, 1.0, 1.0])


def test_dare_is_seeded_and_right_in_expectation():
    vectors = toy()
    one, again, other = (dare(vectors, 1.0, 0.5, seed).layers["linear"] for seed in (0, 0, 1))
    assert torch.equal(dense(one), dense(again))
    assert not torch.equal(dense(one), dense(other))
    mean = torch.stack([dense(dare(vectors, 1.0, 0.5, seed).layers["linear"]) for seed in range(4000)]).mean(0)
    assert near(mean, dense(task_arithmetic(vectors, 1.0).layers["linear"]), 0.05)
    assert near(dense(dare(vectors, 1.0, 1.0).layers["linear"]), dense(task_arithmetic(vectors, 1.0).layers["linear"]))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_truncation_of_factors_is_the_best_of_its_rank(rank: int):
    update = toy((5,), (8, 7)).layers["linear"].combine(torch.ones(1))
    found, error = truncate(update, rank)
    u, s, vh = torch.linalg.svd(update.dense())
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert near(found.dense(), best, 1e-5)
    assert found.rank == rank
    assert error == pytest.approx(float((update.dense() - found.dense()).norm() / update.dense().norm()), rel=1e-4)
    assert near(truncate(update.dense(), rank)[0].dense(), best, 1e-5)
    assert norm(update) == pytest.approx(float(update.dense().norm()), rel=1e-5)


def test_the_error_of_a_truncated_result_is_that_of_the_whole_update(tmp_path: Path):
    merged = average(two(tmp_path))
    cut = merged.truncated(1)
    exact = torch.cat([dense(merged.layers[name]).flatten() for name in merged.layers])
    found = torch.cat([dense(cut.layers[name]).flatten() for name in merged.layers])
    assert cut.error == pytest.approx(float((exact - found).norm() / exact.norm()), rel=1e-4)
    assert merged.truncated().error == 0
    with pytest.raises(ValueError, match="rank is 0"):
        merged.truncated(0)


def loaded(folder: Path) -> PeftModel:
    model = PeftModel.from_pretrained(tiny("llama"), str(folder / "a"), adapter_name="a")
    model.load_adapter(str(folder / "b"), "b")
    return model


def peft_deltas(model: PeftModel, kind: str, weight: float, **options: object) -> dict[str, Tensor]:
    model.base_model.add_weighted_adapter(["a", "b"], [weight, weight], "fused", combination_type=kind, **options)
    return {
        name: module.get_delta_weight("fused")
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def test_arithmetic_is_pefts_cat(tmp_path: Path):
    # PEFT's `cat` is exact for plain scales; its `linear` mixes factors of different adapters and is not.
    vectors = two(tmp_path, "llama", lora_alpha=3)
    ours = task_arithmetic(vectors, 0.4).layers
    exact, mixed = (peft_deltas(loaded(tmp_path), kind, 0.4) for kind in ("cat", "linear"))
    assert ours.keys() == exact.keys()
    assert all(near(dense(ours[name]), exact[name]) for name in ours)
    assert not any(near(dense(ours[name]), mixed[name], 1e-2) for name in ours)


def seeded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*arguments: Any) -> Tensor:
        torch.manual_seed(7)
        return function(*arguments)

    return call


@pytest.mark.parametrize("kind", ["svd", "ties_svd", "dare_linear_svd", "dare_ties_svd"])
def test_dense_methods_are_pefts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vectors = two(tmp_path, "llama", lora_alpha=3, target_modules=["q_proj"], layers_to_transform=[0])
    density = {} if kind == "svd" else {"density": 0.5}
    # PEFT initialises a new adapter before it draws.
    for name in ("dare_linear", "dare_ties"):
        monkeypatch.setattr(f"peft.tuners.lora.model.{name}", seeded(getattr(merge_utils, name)))
    theirs = peft_deltas(loaded(tmp_path), kind, 0.4, svd_rank=16, **density)
    ours = {
        "svd": lambda: task_arithmetic(vectors, 0.4),
        "ties_svd": lambda: ties(vectors, 0.4, 0.5),
        "dare_linear_svd": lambda: dare(vectors, 0.4, 0.5, seed=7),
        "dare_ties_svd": lambda: dare(vectors, 0.4, 0.5, seed=7, elect_signs=True),
    }[kind]()
    for name, found in theirs.items():
        assert near(dense(ours.layers[name]), found, 1e-5)


def test_rslora_and_rank_patterns_are_exact_where_pefts_are_not(tmp_path: Path):
    models = [peft_lora(tmp_path / "a", "llama", 1), peft_lora(tmp_path / "b", "llama", 2, use_rslora=True, r=4)]
    expected = {}
    for model in models:
        for name, module in model.base_model.model.named_modules():
            if hasattr(module, "get_delta_weight"):
                expected[name] = expected.get(name, 0) + module.get_delta_weight("default").detach()
    vectors = load_task_vectors(tiny("llama"), {task: tmp_path / task for task in "ab"})
    ours = task_arithmetic(vectors, 1.0).layers
    assert all(near(dense(ours[name]), expected[name]) for name in expected)


def test_ties_is_mergekits():
    mergekit = pytest.importorskip("mergekit.merge_methods.generalized_task_arithmetic", reason="no mergekit here")
    sparsify = pytest.importorskip("mergekit.sparsify", reason="no mergekit here")
    vectors = as_dense(toy((2, 3, 2), (7, 9)))
    deltas = torch.stack([vectors.delta("linear", task) for task in range(3)])
    trimmed = torch.stack([sparsify.sparsify(delta, 0.4, sparsify.SparsificationMethod.magnitude) for delta in deltas])
    mask = mergekit.get_mask(trimmed, method="sum", mask_dtype=trimmed.dtype)
    expected = (trimmed * mask).sum(0) / mask.mul(trimmed != 0).sum(0).clamp_min(1)
    assert near(dense(ties(vectors, 1.0, 0.4).layers["linear"]), expected)
