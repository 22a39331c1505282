import copy

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lorachord.core.context import NO_CONTEXT, Context
from lorachord.core.routing import Router, balance_loss
from tests.reference import hydralora, mosld

ONE = torch.ones(3, 5, 1, dtype=torch.float64)
"""With h = 1 a router returns its gates."""


def make_router(top_k: int | None, balance: float = 0.5) -> Router:
    router = Router(6, 4, top_k=top_k, balance=balance).double()
    torch.nn.init.normal_(router.weight)
    return router


def rows() -> Tensor:
    return torch.randn(3, 5, 6, dtype=torch.float64)


def mix(router: Router, h: Tensor, x: Tensor, ctx: Context) -> Tensor:
    return router.mix(h, x @ router.weight.T, ctx)


@pytest.mark.parametrize("top_k", [None, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_balance_loss_equals_the_naive_one(top_k: int | None, masked: bool) -> None:
    router, x = make_router(top_k), rows()
    mask = torch.rand(3, 5) > 0.3 if masked else None
    mix(router, ONE, x, Context(token_mask_BL=mask))
    flat_x, flat = x.reshape(15, 6), None if mask is None else mask.reshape(15)
    weight = router.weight
    naive = (
        hydralora.balance_loss(flat_x, router=weight, mask=flat)
        if top_k is None
        else mosld.balance_loss(flat_x, router=weight, k=top_k, mask=flat)
    )
    found = router.penalty()
    assert found is not None
    torch.testing.assert_close(found, 0.5 * naive)
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight)[0] for loss in (found, 0.5 * naive)))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_loss_is_1_at_balance_and_e_over_k_at_worst(top_k: int) -> None:
    even = torch.full((4, 4), 0.25)
    spread = torch.tensor([[(row - expert) % 4 < top_k for row in range(4)] for expert in range(4)]).float()
    assert float(balance_loss(even, spread, None)[0]) == pytest.approx(1)
    first = (torch.arange(4) < top_k).float().unsqueeze(1).expand(4, 4)
    assert float(balance_loss(first / top_k, first, None)[0]) == pytest.approx(4 / top_k)


def test_a_mask_of_other_rows_is_ignored() -> None:
    router, x = make_router(2), rows()
    losses = []
    for mask in (None, torch.zeros(3, 9, dtype=torch.bool)):
        mix(router, ONE, x, Context(token_mask_BL=mask))
        losses.append(router.penalty())
    assert torch.equal(*losses)


@pytest.mark.parametrize("top_k", [None, 2])
def test_gates_sum_to_1_and_top_k_keeps_k(top_k: int | None) -> None:
    gates = mix(make_router(top_k), ONE, rows(), NO_CONTEXT)
    torch.testing.assert_close(gates.sum(-1), ONE[..., 0])
    assert set((gates > 0).sum(-1).unique().tolist()) == {top_k or 4}


def test_an_expert_that_no_row_chose_gets_a_gradient_of_exactly_zero() -> None:
    router = make_router(2, balance=0.0)
    gates = mix(router, ONE, rows()[:, :1].expand(3, 5, 6), NO_CONTEXT)
    (gates * torch.randn_like(gates)).sum().backward()
    unused = (gates == 0).flatten(0, 1).all(0)
    assert unused.any()
    assert not router.weight.grad[unused].any()
    assert router.weight.grad[~unused].all()


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("balance", [0.0, 0.5])
@pytest.mark.parametrize("rows_last", [False, True])
def test_has_the_derivatives_of_its_formula(top_k: int | None, balance: float, rows_last: bool) -> None:
    router, x = make_router(top_k, balance), rows().requires_grad_()
    h = torch.randn(3, 5, 7, dtype=torch.float64)
    h = (h.movedim(-1, 0).contiguous().movedim(0, -1) if rows_last else h).requires_grad_()

    def function(h: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        probe = copy.deepcopy(router)
        del probe.weight
        probe.weight = weight
        mixed, loss = mix(probe, h, x, NO_CONTEXT), probe.penalty()
        return (mixed,) if loss is None else (mixed, loss)

    assert gradcheck(function, (h, x, router.weight))


def test_nothing_is_recorded_in_eval_in_a_recompute_or_at_weight_0() -> None:
    x = rows()
    router = make_router(2)
    mix(router, ONE, x, NO_CONTEXT)
    first = router.recorded
    assert first is not None
    mix(router, ONE, rows(), Context(recording=False))
    assert router.recorded is first
    mix(router.eval(), ONE, x, NO_CONTEXT)
    assert router.penalty() is None
    unweighted = make_router(2, balance=0.0)
    mix(unweighted, ONE, x, NO_CONTEXT)
    assert unweighted.penalty() is None
