"""Rules against known answers, against loops over vectors, and in what they promise."""

import sys

import pytest
import torch
from torch import Tensor

from lorachord.surgery.rules import GPL_RULES, OrthoLora, Rule, Sum, TorchJD, zoo_names
from tests.reference import ortho_lora

FIRST, SECOND = (torch.tensor(rows, dtype=torch.float64) for rows in (ortho_lora.FIRST, ortho_lora.SECOND))
KNOWN = {
    "upgrad": ("upgrad_mean", None),
    "mgda": ("mgda", "mgda"),
    "cagrad": ("cagrad_0.4", "cagrad_0.4"),
    "imtl_g": ("imtl_g", None),
    "nash_mtl": ("nash_mtl", None),
    "aligned_mtl": ("aligned_mtl_mean", None),
}
"""By the rule: the names of its known answers for the two sets of gradients."""


def combine(rule: Rule, gradients_TP: Tensor, step: int = 0) -> Tensor:
    return rule.weights((gradients_TP @ gradients_TP.t())[None], step)[0] @ gradients_TP


@pytest.mark.parametrize("name", KNOWN)
def test_the_zoo_gives_the_known_answers(name: str) -> None:
    # To the zoo's own regularisation of what it solves.
    answers = zip((FIRST, SECOND), (ortho_lora.KNOWN_FIRST, ortho_lora.KNOWN_SECOND), KNOWN[name], strict=True)
    for gradients, known, own in answers:
        if own is not None:
            found = combine(TorchJD(name, "own"), gradients)
            torch.testing.assert_close(found, torch.tensor(known[own], dtype=torch.float64), rtol=0, atol=6e-4)
            torch.testing.assert_close(combine(TorchJD(name), gradients), found * len(gradients), rtol=1e-3, atol=1e-4)


def test_ortho_lora_gives_the_known_answers_of_pcgrad() -> None:
    known = torch.tensor(ortho_lora.KNOWN_FIRST["pcgrad_sum"], dtype=torch.float64)
    torch.testing.assert_close(combine(OrthoLora(), FIRST), known, rtol=0, atol=1e-4)
    torch.testing.assert_close(combine(OrthoLora(reduction="mean"), FIRST), known / 2, rtol=0, atol=1e-4)
    known = torch.tensor(ortho_lora.KNOWN_SECOND["pcgrad_sum_in_index_order"], dtype=torch.float64)
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
        wanted = ortho_lora.combined(list(gradients_TP), rule.orders(5, 7))
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


@pytest.mark.parametrize("name", zoo_names())
def test_without_solvers_under_the_gpl_the_rules_that_need_them_name_their_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("quadprog", "qpsolvers", "ecos"):
        monkeypatch.setitem(sys.modules, package, None)
    if name in GPL_RULES:
        with pytest.raises(ValueError, match=rf"{name} is TorchJD's: pip install 'lorachord\[surgery-gpl\]'"):
            TorchJD(name)
    else:
        assert combine(TorchJD(name), FIRST).isfinite().all()


def test_without_torchjd_a_rule_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ValueError, match=r"mgda is TorchJD's: pip install 'lorachord\[surgery\]'"):
        TorchJD("mgda")


@pytest.mark.parametrize("name", zoo_names())
def test_the_zoo_leaves_a_step_that_is_not_finite_to_the_plain_sum(name: str) -> None:
    gramians_NTT = torch.eye(3).repeat(2, 1, 1)
    gramians_NTT[1, 0, 0] = torch.nan
    assert torch.equal(TorchJD(name).weights(gramians_NTT, step=0), torch.ones(2, 3))


@pytest.mark.parametrize("name", zoo_names())
def test_the_zoo_remembers_tasks_by_their_numbers(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gradients_TP = torch.randn(4, 9, generator=generator, dtype=torch.float64)

    def weigh(rule: Rule, present: tuple[int, ...], step: int) -> Tensor:
        some_TP = gradients_TP[list(present)] + 0.1 * step
        return rule.weights((some_TP @ some_TP.t())[None], step, present)

    steps = [(0, 1, 2), (1, 2), (0, 1, 2), (0, 1), (1, 2)]
    together = TorchJD(name)
    found = [weigh(together, present, step) for step, present in enumerate(steps)]
    for wanted in set(steps):
        alone = TorchJD(name)
        for step, present in enumerate(steps):
            if present == wanted:
                assert torch.equal(weigh(alone, present, step), found[step])


def test_what_the_zoo_draws_depends_on_the_step_alone() -> None:
    gramian = (SECOND @ SECOND.t())[None]
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        rule, before = TorchJD("gradvac"), torch.get_rng_state()
        found.append(torch.cat([rule.weights(gramian, step) for step in range(5)]))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*found)
    other = TorchJD("gradvac")
    assert not torch.equal(torch.cat([other.weights(gramian, step) for step in range(7, 12)]), found[0])
