"""Ortho-LoRA on vectors: by hand and against the rule on Gramians; known answers of rules from their definitions."""

import itertools

import pytest
import torch
from torch import Tensor

from lorachord.surgery.rules import OrthoLora
from tests.reference.ortho_lora import FIRST, KNOWN_FIRST, KNOWN_SECOND, SECOND, combined, index_orders
from tests.unit.exact import close, of, randn

PROBLEMS = [(FIRST, KNOWN_FIRST), (SECOND, KNOWN_SECOND)]


def test_by_hand() -> None:
    # v_1 = (1, 0) + 1/2 (-1, 1) = (1/2, 1/2) and v_2 = (-1, 1) + 1 (1, 0) = (0, 1).
    close(combined(list(of([[1, 0], [-1, 1]])), [[1], [0]]), [0.5, 1.5])
    # In index order v_1 turns aside from the second to (4/5, 2/5, 0), and so meets the third: (4/5, 1/5, 1/5).
    gradients = list(of([[1, 0, 0], [-1, 2, 0], [0, -1, 1]]))
    close(combined(gradients, [[1, 2], [0, 2], [0, 1]]), [0.4, 1.0, 2.2])
    # In the other order it meets the third as (1, 0, 0), at a right angle, and stays (4/5, 2/5, 0).
    close(combined(gradients, [[2, 1], [0, 2], [0, 1]]), [0.4, 1.2, 2.0])


def test_without_conflict_it_is_the_sum() -> None:
    gradients = list(torch.rand(4, 9, dtype=torch.float64))
    assert torch.equal(combined(gradients, index_orders(4)), sum(gradients, torch.zeros(9, dtype=torch.float64)))


def test_the_known_answers_of_means_and_projections() -> None:
    for gradients, known in PROBLEMS:
        close(of(gradients).mean(0), known["mean"], atol=5e-5)
    close(combined(list(of(FIRST)), index_orders(2)), KNOWN_FIRST["pcgrad_sum"], atol=5e-5)
    close(combined(list(of(SECOND)), index_orders(3)), KNOWN_SECOND["pcgrad_sum_in_index_order"], atol=5e-5)
    # Of two tasks, UPGrad is PCGrad.
    close(of(KNOWN_FIRST["pcgrad_sum"]) / 2, KNOWN_FIRST["upgrad_mean"], atol=5e-5)


@pytest.mark.parametrize(("gradients", "known"), PROBLEMS)
def test_the_known_answer_of_mgda_is_the_shortest_convex_combination(gradients: object, known: dict) -> None:
    J_TP = of(gradients)
    steps = [of(w) / 60 for w in itertools.product(range(61), repeat=len(J_TP)) if sum(w) == 60]
    shortest = min((w @ J_TP for w in steps), key=lambda v: float(v @ v))
    close(shortest, known["mgda"], atol=5e-5)


@pytest.mark.parametrize(("gradients", "known"), PROBLEMS)
def test_the_known_answer_of_cagrad_is_best_for_the_worst_task_near_the_mean(gradients: object, known: dict) -> None:
    J_TP, d = of(gradients), of(known["cagrad_0.4"])
    mean = J_TP.mean(0)
    close((d - mean).norm() / mean.norm(), 0.4, atol=5e-4)
    # The step from the mean is a combination, with weights of one sign, of the worst tasks' gradients alone.
    w_T = torch.linalg.lstsq(J_TP.T, (d - mean)[:, None]).solution[:, 0]
    gain_T = J_TP @ d
    worst_T = gain_T < gain_T.min() + 5e-4
    assert w_T[worst_T].min() > 0.01
    close(w_T[~worst_T], [0.0] * int((~worst_T).sum()), atol=2e-4)


def test_the_known_answers_of_imtl_g_nash_and_aligned_are_what_these_ask_for() -> None:
    J_TP = of(FIRST)
    # IMTL-G: equal projections on all tasks' directions, weights that sum to 1.
    d = of(KNOWN_FIRST["imtl_g"])
    shares_T = J_TP @ d / J_TP.norm(dim=1)
    close(shares_T[0] - shares_T[1], 0.0, atol=5e-4)
    close(torch.linalg.lstsq(J_TP.T, d[:, None]).solution.sum(), 1.0, atol=5e-4)
    # Nash-MTL: weights that are the inverses of the tasks' gains.
    d = of(KNOWN_FIRST["nash_mtl"])
    close(torch.linalg.lstsq(J_TP.T, d[:, None]).solution[:, 0] * (J_TP @ d), [1.0, 1.0], atol=1e-3)
    # Aligned-MTL: all singular values become the smallest.
    U, S, Vh = torch.linalg.svd(J_TP, full_matrices=False)
    close((S.min() * U @ Vh).mean(0), KNOWN_FIRST["aligned_mtl_mean"], atol=5e-5)


def adversarial() -> dict[str, Tensor]:
    """Sets of gradients (N, T, P), N factors each."""
    one_N1P = randn(20, 1, 7)
    zeros = randn(20, 4, 7)
    zeros[:10, 1] = 0
    zeros[5:15, 3] = 0
    zeros[19] = 0
    scales = of([1, 1e-12, 1e-3, 1e6, 1])
    return {
        "random": randn(50, 4, 7),
        "eight tasks": randn(50, 8, 5),
        "more tasks than numbers": randn(50, 8, 2),
        "one task": randn(50, 1, 7),
        "zeros": zeros,
        "all zero": torch.zeros(2, 3, 7, dtype=torch.float64),
        "opposite": torch.cat([one_N1P, -one_N1P, randn(20, 2, 7)], dim=1),
        "opposite alone": torch.cat([one_N1P, -one_N1P], dim=1),
        "nearly opposite": torch.cat([one_N1P, -one_N1P + 1e-9 * randn(20, 1, 7), randn(20, 1, 7)], dim=1),
        "duplicated": torch.cat([one_N1P, one_N1P, -one_N1P + randn(20, 1, 7), -one_N1P], dim=1),
        "tiny": 1e-12 * randn(50, 4, 7),
        "of all scales": randn(50, 5, 7) * scales[:, None],
    }


@pytest.mark.parametrize("case", adversarial())
@pytest.mark.parametrize("order", ["fixed", "random"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_rule_on_gramians_is_the_loop_on_vectors(case: str, order: str, reduction: str) -> None:
    gradients_NTP = adversarial()[case]
    num_tasks = gradients_NTP.shape[1]
    rule = OrthoLora(order=order, reduction=reduction, seed=3)
    for step in (0, 1, 17):
        orders = index_orders(num_tasks) if order == "fixed" else rule.orders(num_tasks, step)
        weights_NT = rule.weights(gradients_NTP @ gradients_NTP.mT, step)
        for weights_T, gradients_TP in zip(weights_NT, gradients_NTP, strict=True):
            wanted = combined(list(gradients_TP), orders) / (num_tasks if reduction == "mean" else 1)
            # Where gradients cancel, what is left is rounding in units of the longest.
            atol = 1e-12 * float(gradients_TP.norm(dim=1).max())
            torch.testing.assert_close(weights_T @ gradients_TP, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("num_tasks", [1, 2, 8])
def test_random_orders_are_of_the_others_and_fixed_ones_by_index(num_tasks: int) -> None:
    assert OrthoLora(order="fixed").orders(num_tasks, 5) == index_orders(num_tasks)
    for others, wanted in zip(OrthoLora(seed=3).orders(num_tasks, 5), index_orders(num_tasks), strict=True):
        assert sorted(others) == wanted
