import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from lorachord.core.context import NO_CONTEXT, Context
from lorachord.families import router as families_router
from lorachord.families.router import Router, RouterConfig, router_losses, share
from tests.reference import hydralora, mosld

ONE = torch.ones(3, 5, 1, dtype=torch.float64)
"""With h = 1 a router returns its gates."""


def make_router(top_k: int | None = None, **settings: float) -> Router:
    router = Router(6, 4, RouterConfig(**settings), top_k=top_k).double()
    nn.init.normal_(router.weight)
    return router


def make_grouped(groups: int = 3, num_experts: int = 4, **settings: float) -> tuple[Router, list[Router]]:
    """A router of several groups, and the routers of one group each that it stands for."""
    grouped = Router(6, num_experts, RouterConfig(**settings), groups=groups).double()
    nn.init.normal_(grouped.weight)
    singles = []
    for group in range(groups):
        single = Router(6, num_experts, RouterConfig(**settings)).double()
        single.weight.data.copy_(grouped.weight.detach()[group::groups])
        singles.append(single)
    return grouped, singles


def rows() -> Tensor:
    return torch.randn(3, 5, 6, dtype=torch.float64)


def mix(router: Router, h: Tensor, x: Tensor, ctx: Context = NO_CONTEXT) -> Tensor:
    return router.gate(h, x @ router.weight.T, ctx).mixed_BLS


def penalty(*routers: Router) -> Tensor:
    found = router_losses(routers)
    assert found.keys() <= {"balance", "z"}
    return torch.stack([*found.values()]).sum()


@pytest.mark.parametrize("top_k", [None, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_balance_loss_equals_the_naive_one(top_k: int | None, masked: bool) -> None:
    router, x = make_router(top_k, balance=0.5), rows()
    mask = torch.rand(3, 5) > 0.3 if masked else None
    mix(router, ONE, x, Context(token_mask_BL=mask))
    flat_x, flat = x.reshape(15, 6), None if mask is None else mask.reshape(15)
    weight = router.weight
    naive = (
        hydralora.balance_loss(flat_x, router=weight, mask=flat)
        if top_k is None
        else mosld.balance_loss(flat_x, router=weight, k=top_k, mask=flat)
    )
    torch.testing.assert_close(penalty(router), 0.5 * naive)
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight)[0] for loss in (penalty(router), 0.5 * naive)))


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_z_loss_is_the_mean_of_logsumexp_squared(top_k: int | None, masked: bool, balance: float) -> None:
    router, x = make_router(top_k, balance=balance, z=0.3), rows()
    mask = torch.rand(3, 5) > 0.3 if masked else torch.ones(3, 5, dtype=torch.bool)
    ctx = Context(token_mask_BL=mask if masked else None)
    mix(router, ONE, x, ctx)
    found = penalty(router)
    expected = 0.3 * (x @ router.weight.T).logsumexp(-1).square()[mask].mean()
    if balance:
        without = copy.deepcopy(router)
        without.config = RouterConfig(balance=balance)
        without.weight = router.weight
        mix(without, ONE, x, ctx)
        expected = expected + penalty(without)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, router.weight)[0] for loss in (found, expected)))


@pytest.mark.parametrize("top_k", [2, 4])
def test_balance_loss_is_1_at_balance_and_e_over_k_at_worst(top_k: int) -> None:
    router = make_router(top_k, balance=1.0)
    # Row n prefers experts n, n + 1, ... by so little that all have one probability.
    spread = torch.tensor([[(expert - row) % 4 < top_k for expert in range(4)] for row in range(4)]).double()
    router.gate(ONE[:1, :4], 1e-9 * spread.view(1, 4, 4), NO_CONTEXT)
    assert float(penalty(router).detach()) == pytest.approx(1)
    first = (torch.arange(4) < top_k).double().expand(1, 4, 4)
    router.gate(ONE[:1, :4], 50 * first, NO_CONTEXT)
    assert float(penalty(router).detach()) == pytest.approx(4 / top_k)


def test_groups_are_routers_of_their_own_with_their_losses_meaned() -> None:
    grouped, singles = make_grouped(balance=0.5, z=0.3)
    x, h = rows(), torch.randn(3, 5, 6, dtype=torch.float64)
    ctx = Context(token_mask_BL=torch.rand(3, 5) > 0.3)
    # Slots 0 and 1 of h are the first group's.
    found = mix(grouped, h, x, ctx).unflatten(-1, (4, 6))
    apart = [mix(single, h[..., 2 * g : 2 * g + 2], x, ctx).unflatten(-1, (4, 2)) for g, single in enumerate(singles)]
    torch.testing.assert_close(found, torch.cat(apart, dim=-1))
    torch.testing.assert_close(penalty(grouped), torch.stack([penalty(single) for single in singles]).mean())
    assert grouped.load is not None
    torch.testing.assert_close(grouped.load, torch.stack([single.load for single in singles]))


def test_an_output_that_is_not_used_gets_a_gradient_of_zero() -> None:
    router = Router(6, 4, RouterConfig(balance=0.5), top_k=2, own_blocks=True)
    h = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    found = router.gate(h, logits, NO_CONTEXT, torch.tensor([[0, 3]]))
    assert found.sampled_BMR is not None
    grad_h, grad_logits = torch.autograd.grad(found.sampled_BMR.sum(), [h, logits])
    assert not grad_logits.any()
    assert torch.equal(grad_h.flatten(0, 1).sum(1).nonzero().flatten(), torch.tensor([0, 3]))


def test_both_gradients_lie_side_by_side_for_the_product_that_they_go_back_through() -> None:
    router, h = make_router(2, balance=0.5), torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    logits = (rows() @ router.weight.T).detach().requires_grad_()
    grad_h, grad_logits = torch.autograd.grad(router.gate(h, logits, NO_CONTEXT).mixed_BLS.sin().sum(), [h, logits])
    assert grad_h.stride(2) == grad_logits.stride(2) == 15
    assert grad_logits.data_ptr() == grad_h.data_ptr() + grad_h.numel() * grad_h.element_size()


def test_losses_of_many_routers_add_up_with_one_exchange_for_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged: list[torch.Size] = []

    def across_two_ranks(counts: Tensor) -> tuple[Tensor, int]:
        # The other has the same rows: then the losses are those of one.
        exchanged.append(counts.shape)
        return 2 * counts, 2

    routers = [make_router(2, balance=0.5, z=0.3), make_router(balance=0.5), make_router(2, balance=0.5, z=0.3)]
    routers += [make_router(2), make_router(2, balance=0.5, z=0.3)]
    for router in routers:
        # Not of as many rows each.
        mix(router, ONE, rows(), Context(token_mask_BL=torch.rand(3, 5) > 0.3))
    alone = torch.stack([penalty(router) for router in routers if router_losses([router])])
    assert len(alone) == 4
    monkeypatch.setattr(families_router, "across_ranks", across_two_ranks)
    together = penalty(*routers)
    assert exchanged == [(3, 4, 1), (1, 4, 1)]
    torch.testing.assert_close(together, alone.sum())
    weights = [router.weight for router in routers if router.config.balance]
    for one, other in zip(
        *(torch.autograd.grad(losses.sum(), weights, retain_graph=True) for losses in (together, alone)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_samples_are_the_rows_with_their_choices_and_gradients() -> None:
    router = Router(6, 4, RouterConfig(balance=0.5), top_k=2, own_blocks=True)
    h = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    rows_BM = torch.tensor([[0, 3], [6, 9], [14, 10]])
    found, plain = (router.gate(h, logits, NO_CONTEXT, rows_BM=asked) for asked in (rows_BM, None))
    assert (plain.sampled_BMR, plain.choices_EGN) == (None, None)
    assert found.sampled_BMR is not None
    assert found.choices_EGN is not None
    expected = h.flatten(0, 1)[rows_BM]
    assert torch.equal(found.sampled_BMR, expected)
    flat = logits.flatten(0, 1)
    chosen = torch.zeros_like(flat).scatter_(1, flat.topk(2).indices, 1.0)[rows_BM.flatten()]
    assert torch.equal(found.choices_EGN.squeeze(1), chosen.t())
    weights = [torch.randn_like(part) for part in (found.mixed_BLS, expected)]
    losses = [
        sum((weight * part).sum() for weight, part in zip(weights, parts, strict=True))
        for parts in ((found.mixed_BLS, found.sampled_BMR), (plain.mixed_BLS, expected))
    ]
    for one, other in zip(*(torch.autograd.grad(loss, [h, logits]) for loss in losses), strict=True):
        torch.testing.assert_close(one, other)


def test_collapsed_groups_do_not_look_balanced_together() -> None:
    grouped, _ = make_grouped(groups=2, num_experts=2, balance=1.0)
    # Each group is collapsed, on another expert.
    logits = torch.tensor([50.0, -50.0, -50.0, 50.0], dtype=torch.float64).expand(3, 5, 4)
    grouped.gate(torch.ones(3, 5, 2, dtype=torch.float64), logits, NO_CONTEXT)
    assert float(penalty(grouped).detach()) == pytest.approx(2)


@pytest.mark.parametrize("top_k", [None, 2])
def test_own_blocks_are_gated_each_by_its_expert(top_k: int | None) -> None:
    shared = make_router(top_k)
    own = Router(6, 4, RouterConfig(), top_k=top_k, own_blocks=True).double()
    own.weight.data.copy_(shared.weight.detach())
    x, h = rows(), torch.randn(3, 5, 8, dtype=torch.float64)
    gates = mix(shared, ONE, x)
    torch.testing.assert_close(mix(own, h, x).unflatten(-1, (4, 2)), gates.unsqueeze(-1) * h.unflatten(-1, (4, 2)))


def test_a_mask_of_other_rows_is_ignored() -> None:
    router, x = make_router(2, balance=0.5), rows()
    losses = []
    for mask in (None, torch.zeros(3, 9, dtype=torch.bool)):
        mix(router, ONE, x, Context(token_mask_BL=mask))
        losses.append(penalty(router))
    assert torch.equal(*losses)


def test_a_batch_of_padding_alone_has_no_loss_and_no_nan() -> None:
    router = make_router(2, balance=0.5, z=0.5)
    mix(router, ONE, rows(), Context(token_mask_BL=torch.zeros(3, 5, dtype=torch.bool)))
    (grad,) = torch.autograd.grad(penalty(router), router.weight)
    assert float(penalty(router).detach()) == 0
    assert not grad.any()
    assert router.load is not None
    assert not router.load.any()


@pytest.mark.parametrize("top_k", [None, 2])
def test_gates_sum_to_1_and_top_k_keeps_k(top_k: int | None) -> None:
    gates = mix(make_router(top_k), ONE, rows())
    torch.testing.assert_close(gates.sum(-1), ONE[..., 0])
    assert set((gates > 0).sum(-1).unique().tolist()) == {top_k or 4}


def test_an_expert_that_no_row_chose_gets_a_gradient_of_exactly_zero() -> None:
    router = make_router(2)
    gates = mix(router, ONE, rows()[:, :1].expand(3, 5, 6))
    (gates * torch.randn_like(gates)).sum().backward()
    unused = (gates == 0).flatten(0, 1).all(0)
    assert unused.any()
    assert not router.weight.grad[unused].any()
    assert router.weight.grad[~unused].all()


@pytest.mark.parametrize(
    ("groups", "own_blocks", "top_k"),
    [(1, False, None), (1, False, 2), (1, True, 2), (1, True, None), (2, False, None)],
)
@pytest.mark.parametrize("losses", [{}, {"balance": 0.5}, {"z": 0.3}, {"balance": 0.5, "z": 0.3}])
@pytest.mark.parametrize("rows_last", [False, True])
def test_has_the_derivatives_of_its_formula(
    groups: int, own_blocks: bool, top_k: int | None, losses: dict[str, float], rows_last: bool
) -> None:
    router = Router(6, 4, RouterConfig(**losses), top_k=top_k, groups=groups, own_blocks=own_blocks).double()
    nn.init.normal_(router.weight)
    x = rows()[:2].requires_grad_()
    h = torch.randn(2, 5, 8, dtype=torch.float64)
    h = (h.movedim(-1, 0).contiguous().movedim(0, -1) if rows_last else h).requires_grad_()
    ctx = Context(token_mask_BL=torch.rand(2, 5) > 0.2)

    def function(h: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        probe = copy.deepcopy(router)
        del probe.weight
        probe.weight = weight
        return mix(probe, h, x, ctx), *router_losses([probe]).values()

    assert gradcheck(function, (h, x, router.weight), fast_mode=True)


def test_nothing_is_recorded_in_eval_in_a_recompute_or_at_weight_0() -> None:
    x = rows()
    router = make_router(2, balance=0.5)
    mix(router, ONE, x)
    first, last, total = router.recorded, router.last, router.total
    assert first is not None
    mix(router, ONE, rows(), Context(recording=False))
    assert (router.recorded is first, router.last is last, router.total is total) == (True, True, True)
    mix(router.eval(), ONE, x)
    assert router_losses([router]) == {}
    unweighted = make_router(2)
    mix(unweighted, ONE, x)
    assert router_losses([unweighted]) == {}


def test_noise_is_of_training_alone_and_of_its_standard_deviation() -> None:
    router = make_router(noise=0.5)
    logits = torch.zeros(50, 50, 4, dtype=torch.float64)
    noise = router.noisy(logits)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert router.eval().noisy(logits) is logits
    assert make_router().noisy(logits) is logits


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recompute_draws_the_same_noise(reentrant: bool) -> None:
    router, x, h = make_router(2, noise=0.5), rows(), torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        y = checkpoint(lambda h: mix(router, h, x), h, use_reentrant=reentrant) if checkpointing else mix(router, h, x)
        # What is drawn between the forward pass and the recompute does not matter.
        torch.rand(7)
        y.square().sum().backward()
        found.append((y.detach(), h.grad, router.weight.grad))
        h.grad = router.weight.grad = None
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)


def test_the_load_counts_choices_without_padding() -> None:
    router, x = make_router(2), rows()
    mask = torch.rand(3, 5) > 0.3
    gates = mix(router, ONE, x, Context(token_mask_BL=mask))
    counts = (gates[mask] > 0).double().sum(0)
    assert router.load is not None
    torch.testing.assert_close(router.load, counts / counts.sum())
    assert not router.load.requires_grad


def test_the_load_of_a_dense_router_is_the_mean_of_its_gates() -> None:
    router = make_router()
    gates = mix(router, ONE, rows())
    assert router.load is not None
    torch.testing.assert_close(router.load, gates.detach().mean((0, 1)))


def test_loads_add_up_until_they_are_forgotten() -> None:
    router, one, other = make_router(2), rows(), rows()
    counts = sum((mix(router, ONE, x) > 0).double().sum((0, 1)) for x in (one, other))
    assert router.total is not None
    torch.testing.assert_close(share(router.total), counts / 60)
    router.forget_load()
    assert (router.load, router.total) == (None, None)


def test_loads_are_exact_under_autocast() -> None:
    router = Router(6, 4, RouterConfig(balance=0.5), top_k=2)
    router.reset()
    # More rows than bfloat16 can count.
    x, h = torch.randn(1, 1001, 6), torch.ones(1, 1001, 1)
    with torch.autocast("cpu", torch.bfloat16):
        mix(router, h, x, Context(token_mask_BL=torch.ones(1, 1001, dtype=torch.bool)))
    assert router.last is not None
    assert float(router.last.sum()) == 2002


def test_nothing_that_is_recorded_is_saved_and_copies_are_free_of_the_graph() -> None:
    router = make_router(2, balance=0.5)
    mix(router, ONE, rows())
    assert router.state_dict().keys() == {"weight"}
    twin = copy.deepcopy(router)
    assert router_losses([twin]) == {}
    assert penalty(router).requires_grad
