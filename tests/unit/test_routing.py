import pytest
import torch

from lorachord.core.context import NO_CONTEXT, Context
from lorachord.core.routing import Router, balance_loss
from tests.reference import hydralora, mosld


def make_router(top_k: int | None, balance: float = 0.5) -> Router:
    router = Router(6, 4, top_k=top_k, balance=balance).double()
    torch.nn.init.normal_(router.weight)
    return router


@pytest.mark.parametrize("top_k", [None, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_balance_loss_equals_the_naive_one(top_k: int | None, masked: bool) -> None:
    router, x = make_router(top_k), torch.randn(3, 5, 6, dtype=torch.float64)
    mask = torch.rand(3, 5) > 0.3 if masked else None
    router(x, Context(token_mask_BL=mask))
    rows, flat = x.reshape(15, 6), None if mask is None else mask.reshape(15)
    weight = router.weight
    naive = (
        hydralora.balance_loss(rows, router=weight, mask=flat)
        if top_k is None
        else mosld.balance_loss(rows, router=weight, k=top_k, mask=flat)
    )
    found = router.penalty()
    assert found is not None
    torch.testing.assert_close(found, 0.5 * naive)
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight)[0] for loss in (found, 0.5 * naive)))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_loss_is_1_at_balance_and_e_over_k_at_worst(top_k: int) -> None:
    even = torch.full((1, 4, 4), 0.25)
    spread = torch.tensor([[(row + step) % 4 for step in range(top_k)] for row in range(4)])[None]
    assert float(balance_loss(even, spread, None)) == pytest.approx(1)
    first = torch.arange(top_k).expand(1, 4, top_k)
    collapsed = torch.zeros(1, 4, 4).scatter(-1, first, 1 / top_k)
    assert float(balance_loss(collapsed, first, None)) == pytest.approx(4 / top_k)


def test_a_mask_of_other_rows_is_ignored() -> None:
    probs = torch.softmax(torch.randn(2, 1, 4), -1)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    assert torch.equal(balance_loss(probs, None, mask), balance_loss(probs, None, None))


@pytest.mark.parametrize("top_k", [None, 2])
def test_gates_sum_to_1_and_top_k_keeps_k(top_k: int | None) -> None:
    gates = make_router(top_k)(torch.randn(3, 5, 6, dtype=torch.float64), NO_CONTEXT)
    torch.testing.assert_close(gates.sum(-1), torch.ones(3, 5, dtype=torch.float64))
    assert set((gates > 0).sum(-1).unique().tolist()) == {top_k or 4}


def test_nothing_is_recorded_in_eval_in_a_recompute_or_at_weight_0() -> None:
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    router = make_router(2)
    router(x, NO_CONTEXT)
    first = router.recorded
    assert first is not None
    router(torch.randn_like(x), Context(recording=False))
    assert router.recorded is first
    router.eval()(x, NO_CONTEXT)
    assert router.penalty() is None
    unweighted = make_router(2, balance=0.0)
    unweighted(x, NO_CONTEXT)
    assert unweighted.penalty() is None
