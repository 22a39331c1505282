"""Rules against known answers, against loops over vectors, and in what they promise."""

import pytest
import torch
from torch import Tensor

from lorachord.surgery.rules import OrthoLora, Rule, Sum, TorchJD

FIRST = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)
SECOND = torch.tensor([[1.0, 0, 0], [-1, 2, 0], [0, -1, 1]], dtype=torch.float64)
KNOWN = {
    "upgrad": ([0.2924, 1.9006, 1.9006], None),
    "mgda": ([0, 1, 1], [0.1667, 0.1667, 0.3333]),
    "cagrad": ([0.3468, 1.1633, 1.1633], [0.1540, 0.2564, 0.4103]),
    "imtl_g": ([0.0767, 1, 1], None),
    "nash_mtl": ([0.0766, 0.9985, 0.9985], None),
    "aligned_mtl": ([0.2133, 0.9673, 0.9673], None),
}


def combine(rule: Rule, gradients_TP: Tensor, step: int = 0) -> Tensor:
    return rule.weights((gradients_TP @ gradients_TP.t())[None], step)[0] @ gradients_TP


def projected_by_vectors(gradients_TP: Tensor, orders: list[list[int]]) -> Tensor:
    """PCGrad as its paper writes it."""
    total = torch.zeros_like(gradients_TP[0])
    for i, others in enumerate(orders):
        v = gradients_TP[i].clone()
        for j in others:
            dot = v @ gradients_TP[j]
            if dot < 0:
                v = v - dot / (gradients_TP[j] @ gradients_TP[j]) * gradients_TP[j]
        total = total + v
    return total


@pytest.mark.parametrize("name", KNOWN)
def test_the_zoo_gives_the_known_answers(name: str) -> None:
    # To the zoo's own regularisation of what it solves.
    for gradients, known in zip((FIRST, SECOND), KNOWN[name], strict=True):
        if known is not None:
            found = combine(TorchJD(name, "own"), gradients)
            torch.testing.assert_close(found, torch.tensor(known, dtype=torch.float64), rtol=0, atol=6e-4)
            torch.testing.assert_close(combine(TorchJD(name), gradients), found * len(gradients), rtol=1e-3, atol=1e-4)


def test_ortho_lora_gives_the_known_answers_of_pcgrad() -> None:
    known = torch.tensor([0.5848, 3.8012, 3.8012], dtype=torch.float64)
    torch.testing.assert_close(combine(OrthoLora(), FIRST), known, rtol=0, atol=1e-4)
    torch.testing.assert_close(combine(OrthoLora(reduction="mean"), FIRST), known / 2, rtol=0, atol=1e-4)
    known = torch.tensor([0.4, 1, 2.2], dtype=torch.float64)
    torch.testing.assert_close(combine(OrthoLora(order="fixed"), SECOND), known)


@pytest.mark.parametrize("order", ["random", "fixed"])
def test_many_factors_at_once_are_what_each_is_alone(order: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients_NTP = torch.randn(20, 5, 8, generator=generator, dtype=torch.float64)
    gradients_NTP[3, 2] = 0
    gradients_NTP[4] = 0
    rule = OrthoLora(order=order)
    weights_NT = rule.weights(gradients_NTP @ gradients_NTP.mT, 7)
    for weights_T, gradients_TP in zip(weights_NT, gradients_NTP, strict=True):
        wanted = projected_by_vectors(gradients_TP, rule.orders(5, 7))
        torch.testing.assert_close(weights_T @ gradients_TP, wanted, rtol=1e-10, atol=1e-10)


def test_two_tasks_have_a_closed_form() -> None:
    one, other = FIRST
    dot = one @ other
    wanted = one + other - dot / (other @ other) * other - dot / (one @ one) * one
    torch.testing.assert_close(combine(OrthoLora(), FIRST), wanted)
    assert combine(OrthoLora(), FIRST) @ one >= -1e-9


def test_without_conflict_the_weights_are_exactly_one() -> None:
    gradients_TP = torch.rand(4, 9)
    gramian = (gradients_TP @ gradients_TP.t())[None]
    assert torch.equal(OrthoLora().weights(gramian, 0), Sum().weights(gramian, 0))


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6])
def test_the_scale_of_all_gradients_does_not_change_the_weights(scale: float) -> None:
    expected = OrthoLora().weights((FIRST @ FIRST.t())[None], 0)
    torch.testing.assert_close(OrthoLora().weights(scale**2 * (FIRST @ FIRST.t())[None], 0), expected)


def test_zero_gradients_get_finite_weights() -> None:
    assert OrthoLora().weights(torch.zeros(3, 4, 4), 0).isfinite().all()


def test_under_a_fixed_order_tasks_can_be_renamed() -> None:
    # A permutation of the tasks that keeps, for each, the order of its others: the first two of three change places in
    # the index, so the orders are given by hand.
    class Reversed(OrthoLora):  # type: ignore[misc]
        def orders(self, num_tasks: int, step: int) -> list[list[int]]:
            fixed = [[j for j in range(num_tasks) if j != i] for i in range(num_tasks)]
            return [[num_tasks - 1 - j for j in others] for others in reversed(fixed)]

    torch.testing.assert_close(combine(Reversed(), SECOND.flip(0)), combine(OrthoLora(order="fixed"), SECOND))


def test_random_orders_differ_by_step_and_seed_and_repeat() -> None:
    orders = [OrthoLora(seed=seed).orders(6, step) for seed in (0, 1) for step in range(20)]
    assert orders == [OrthoLora(seed=seed).orders(6, step) for seed in (0, 1) for step in range(20)]
    assert len({str(order) for order in orders}) == len(orders)
    assert all(i not in others and len(others) == 5 for i, others in enumerate(orders[0]))


def test_what_is_unknown_is_named_with_what_is_near() -> None:
    with pytest.raises(ValueError, match=r"no order 'randon'. Did you mean 'random'"):
        OrthoLora(order="randon")
    with pytest.raises(ValueError, match=r"no rule 'upgrd'. Did you mean 'upgrad'"):
        TorchJD("upgrd")
    with pytest.raises(ValueError, match=r"cagrad: .*unexpected keyword argument 'd'"):
        TorchJD("cagrad", d=1)
