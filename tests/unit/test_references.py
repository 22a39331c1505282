"""The naive references against cases computed by hand, and against identities between the methods."""

import math

import pytest
import torch
from torch import Tensor

from tests.reference import hydralora, lora, malora, mixlora, mode, moelora, mor1e
from tests.unit.exact import close, of, randn

LN2, LN3 = math.log(2), math.log(3)
ROUTER = [[LN3, 0.0], [0.0, 0.0], [-5.0, 0.0]]
"""On x = (1, 2): the first two of three experts, with gates 3/4 and 1/4 of the two."""


def test_mode_by_hand() -> None:
    # a_i . x is 1 and 2. The first slot's gates are 1/2 and 1/2, the second's 3/4 and 1/4:
    # 1 + 1 (2/2 + 6/2) + 2 (3/4 4 + 1/4 8) = 1 + 4 + 10. With one router for both slots: 1 + 4 + 2 (4/2 + 8/2).
    x, weight, A, B = of([[1, 2]]), of([[1, 0]]), of([[1, 0], [0, 1]]), [of([[2, 4]]), of([[6, 8]])]
    even, uneven = of([[0, 0], [0, 0]]), of([[LN3, 0], [0, 0]])
    close(mode.forward(x, weight, A=A, B=B, routers=[even, uneven]), [[15.0]])
    close(mode.forward(x, weight, A=A, B=B, routers=[even]), [[17.0]])
    close(mode.forward(x, weight, A=A, B=B, routers=[even], s=0.5), [[9.0]])


def test_mode_with_one_expert_is_lora() -> None:
    x, weight, A, B = randn(5, 6), randn(4, 6), randn(3, 6), randn(4, 3)
    wanted = lora.forward(x, weight, A=A, B=B, r=3, alpha=3)
    close(mode.forward(x, weight, A=A, B=[B], routers=[randn(1, 6) for _ in range(3)]), wanted)


def test_mode_with_one_router_is_a_mixture_of_whole_loras_with_one_a() -> None:
    x, weight, A, B, router = randn(5, 6), randn(4, 6), randn(4, 6), [randn(4, 4) for _ in range(3)], randn(3, 6)
    wanted = hydralora.forward(x, weight, A=A, B=B, router=router, r=4, alpha=4)
    close(mode.forward(x, weight, A=A, B=B, routers=[router]), wanted)


def test_mode_gives_a_router_p_neighbouring_slots() -> None:
    x, weight, A, B, routers = randn(5, 6), randn(4, 6), randn(4, 6), [randn(4, 4) for _ in range(3)], randn(2, 3, 6)
    for B_e in B:
        B_e[:, 2:] = 0
    routers.requires_grad_()
    mode.forward(x, weight, A=A, B=B, routers=list(routers)).square().sum().backward()
    assert routers.grad is not None
    assert routers.grad[0].abs().min() > 0
    assert routers.grad[1].abs().max() == 0


def test_moelora_by_hand() -> None:
    # s = 2; the experts give 1 * 3 and 2 * 2; 10 + 2 (3/4 3 + 1/4 4).
    A, B = [of([[1, 1]]), of([[0, 1]]), of([[9, 9]])], [of([[1]]), of([[2]]), of([[9]])]
    found = moelora.forward(of([[1, 2]]), of([[0, 5]]), A=A, B=B, router=of(ROUTER), k=2, r=1, alpha=2)
    close(found, [[16.5]])


@pytest.mark.parametrize("reference", [moelora, malora])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_loss_is_1_at_balance_and_e_over_k_at_worst(reference: object, k: int) -> None:
    # Token n is nearest to expert n, then n - 1, and so on around: every expert is as often chosen and as probable.
    tokens = of([[100.0 * (-((expert - n) % 4)) for expert in range(4)] for n in range(4)])
    close(reference.balance_loss(tokens, router=torch.eye(4).double(), k=k), 1.0)
    # All tokens choose the same: f of the first k is 1 / k each, and their P sum to 1.
    first = of([[500.0] * k + [0.0] * (4 - k)] * 3)
    close(reference.balance_loss(first, router=torch.eye(4).double(), k=k), 4 / k)


def test_balance_loss_by_hand_of_the_tokens_that_count() -> None:
    # The second token counts for nothing. f = (1/2, 1/2, 0), P_0 + P_1 = 4 / (4 + e^-5): 3/2 of that.
    found = moelora.balance_loss(of([[1, 2], [-9, 7]]), router=of(ROUTER), k=2, mask=torch.tensor([True, False]))
    close(found, 1.5 * 4 / (4 + math.exp(-5)))


SWAP = of([[0, 1], [1, 0]])
"""Experts I and this one, on tokens (1, 0) -> expert 0 and (0, 1) -> both, give (1, 0); (0, 1) and (1, 0)."""


def test_contrastive_loss_by_hand() -> None:
    # The first output is orthogonal to its positive and equal to the negative: log(1 + e^2). The second is orthogonal
    # to both: log 2. The third has no positive. B is large, so that the 1e-6 below |q| does not show.
    tokens, experts = torch.eye(2).double(), [[0], [0, 1]]
    arguments = dict(A=[torch.eye(2).double()] * 2, B=[1e4 * torch.eye(2).double(), 1e4 * SWAP], tau=0.5)
    wanted = (math.log(1 + math.exp(2)) + LN2) / 2
    close(moelora.contrastive_loss([tokens], chosen=[experts], **arguments), wanted)
    # A second sequence, of equal outputs of one expert, has loss 0; a third, of one output, is left out.
    equal, lone = of([[1, 0], [1, 0]]), of([[1, 0]])
    sequences, chosen = [tokens, equal, lone], [experts, [[0], [0]], [[0]]]
    close(moelora.contrastive_loss(sequences, chosen=chosen, **arguments), wanted / 2)
    close(moelora.contrastive_loss([lone], chosen=[[[0]]], **arguments), 0.0)


def test_contrastive_loss_at_b_zero_is_log_2_with_a_finite_gradient() -> None:
    B = [torch.zeros(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = moelora.contrastive_loss([randn(2, 2)], A=[randn(2, 2)] * 2, B=B, chosen=[[[0], [0, 1]]], tau=0.1)
    close(loss.detach(), LN2)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, B))


def test_malora_by_hand() -> None:
    # S_A x = 3; the experts give (1, 1) (3, 0) = 3 and (5, 1) (0, 6) = 6; s = 4 / 2; 10 + 2 (3/4 3 + 1/4 6).
    P, B = [of([[1], [0]]), of([[0], [2]]), of([[9], [9]])], [of([[1, 1]]), of([[5, 1]]), of([[9, 9]])]
    arguments = dict(S_A=of([[1, 1]]), P=P, B=B, router=of(ROUTER), k=2, alpha=4)
    close(malora.forward(of([[1, 2]]), of([[0, 5]]), **arguments), [[17.5]])


def test_malora_is_moelora_with_the_products_of_p_and_s_a() -> None:
    x, weight, S_A, router = randn(5, 6), randn(4, 6), randn(3, 6), randn(4, 6)
    P, B = [randn(2, 3) for _ in range(4)], [randn(4, 2) for _ in range(4)]
    wanted = moelora.forward(x, weight, A=[P_e @ S_A for P_e in P], B=B, router=router, k=2, r=2, alpha=5)
    close(malora.forward(x, weight, S_A=S_A, P=P, B=B, router=router, k=2, alpha=5), wanted)


def test_malora_saves_what_is_stated_for_llama2_7b() -> None:
    attention = [(4096, 4096)] * 4
    all_seven = [*attention, (4096, 11008), (4096, 11008), (11008, 4096)]
    for shapes, percent, with_routers in [(attention, 43.7, 41.1), (all_seven, 39.8, 37.7)]:
        routers = sum(8 * d_in for d_in, _ in shapes)
        own = sum(malora.num_parameters(d_in=i, d_out=o, E=8, d=8, rb=8) for i, o in shapes)
        full = sum(malora.num_parameters_of_moe_lora(d_in=i, d_out=o, E=8, r=8) for i, o in shapes)
        assert 100 * (full - own) / (full - routers) == pytest.approx(percent, abs=0.05)
        assert 100 * (full - own) / full == pytest.approx(with_routers, abs=0.05)
        wide = sum(malora.num_parameters(d_in=i, d_out=o, E=8, d=8, rb=16) for i, o in shapes)
        assert wide > full


def test_mor1e_by_hand() -> None:
    # w = 3/4, each of 4 gates 1/4, cosines (1, 0, -1, 3/5): R = 4 3/4 1/4 + 4 1/4 c = (7/4, 3/4; -1/4, 27/20).
    # R^T (1, 2) = (5/4, 69/20), summed by B to 47/10, times 3/4, and W0 x = 1.
    arguments = dict(A=torch.eye(2).double(), B=of([[1, 1]]), router=torch.zeros(4, 2).double())
    centroids = of([[2, 0], [0, 3], [-1, 0], [3, 4]])
    opened = of(LN3 / 100)
    prompt = dict(embeddings=of([[7, 0]]), centroids=centroids)
    x, weight = of([[1, 2]]), of([[1, 0]])
    close(mor1e.forward(x, weight, g=opened, omega=opened, **prompt, **arguments), [[1 + 3.525]])
    # The factors of the two parts: 8 doubles the 3/4 of every entry, which adds 3/4 (3/4 3 2); 0 leaves the router's.
    close(mor1e.forward(x, weight, g=opened, omega=opened, router_factor=8, **prompt, **arguments), [[4.525 + 3.375]])
    close(mor1e.forward(x, weight, g=opened, omega=opened, cosine_factor=0, **prompt, **arguments), [[1 + 3.375]])


def test_mor1e_starts_at_the_frozen_layer_and_has_at_most_the_smaller_rank() -> None:
    x, weight, g = randn(9, 6), torch.zeros(8, 6).double(), of(0.0)
    arguments = dict(A=randn(2, 6), router=randn(6, 6), g=g, omega=g, centroids=randn(6, 5))
    one_prompt = randn(1, 5).expand(9, 5)
    assert mor1e.forward(x, weight, B=torch.zeros(8, 3).double(), embeddings=one_prompt, **arguments).abs().max() == 0
    arguments["router"] = torch.zeros(6, 6).double()
    update = mor1e.forward(x, weight, B=randn(8, 3), embeddings=one_prompt, **arguments)
    assert torch.linalg.matrix_rank(update) == 2


# hbar = (1, 0): p_A = (1, 2, 4) / 7, so s_A = (2, 1). p_B = 1/3 + (3, 1, 1) / 5 + (1, 1, 2) / 4 = (71, 47, 62) / 60, so
# s_B = (0, 2). q_1 : q_2 = 4 71 : 2 62, so c = (71, 31) / 51. s = 2 3 / 2 = 3.
MIXLORA = dict(
    a=of([[5, 5], [0, 1], [1, 0]]),
    b=of([[2], [7], [-1]]),
    W_A=of([[0, 9], [LN2, 9], [2 * LN2, 9]]),
    W_B=torch.zeros(3, 2).double(),
    W_AB=of([[[LN3, 0, 0], [9, -9, 9]], [[-9, 9, 9], [0, 0, LN2]]]),
)


def test_mixlora_by_hand() -> None:
    # For x = (1, 0): c_1 1 2; for (3, -1): c_1 3 2 + c_2 (-1) (-1); times s; W0 x is the second component.
    x, prompt = of([[[1, 0], [3, -1]]]), torch.tensor([[True, False]])
    found = mixlora.forward(x, of([[0, 1]]), prompt_mask=prompt, selection="scored", **MIXLORA)
    close(found, [[[142 / 17], [457 / 17 - 1]]])
    found = mixlora.forward(x, of([[0, 1]]), prompt_mask=prompt, selection="frozen_hash", **MIXLORA)
    close(found, [[[6.0], [20.0]]])
    found = mixlora.forward(x, of([[0, 1]]), prompt_mask=prompt, selection="frozen_hash", alpha=2, **MIXLORA)
    close(found, [[[2.0], [6.0]]])


def test_mixlora_averages_the_prompt_of_each_sample() -> None:
    weight, both = of([[0, 1]]), of([[[1, 0], [3, -1]], [[4, -3], [-2, 3]]])
    found = mixlora.forward(
        both, weight, prompt_mask=torch.tensor([[True, False], [True, True]]), selection="scored", **MIXLORA
    )
    # The second prompt's mean is (1, 0) too, so for its first token: 3 (71/51 4 2 + 31/51 (-3) (-1)) - 3.
    close(found[:, 0], [[142 / 17], [661 / 17 - 3]])


def test_mixlora_scored_teaches_every_router_and_frozen_hash_none() -> None:
    def gradients(selection: str) -> list[Tensor]:
        pools = dict(a=randn(5, 6), b=randn(5, 4), W_A=randn(5, 6), W_B=randn(5, 6), W_AB=randn(2, 6, 5))
        leaves = {name: value.requires_grad_() for name, value in pools.items()}
        prompt = torch.tensor([[True, True, False]] * 3)
        y = mixlora.forward(randn(3, 3, 6), randn(4, 6), prompt_mask=prompt, selection=selection, **leaves)
        routers = [leaves[name] for name in ("W_A", "W_B", "W_AB")]
        return torch.autograd.grad(y.square().sum(), routers, allow_unused=True, materialize_grads=True)

    assert all(grad.abs().max() > 0 for grad in gradients("scored"))
    assert all(grad.abs().max() == 0 for grad in gradients("frozen_hash"))
