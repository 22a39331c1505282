import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from lorachord.kernels.contrast import contrastive_loss, gram_of, spread_sequences, spread_tokens
from lorachord.kernels.linear import rows_linear
from tests.reference import moelora

B, L, E, K, R, D, O = 3, 6, 4, 2, 2, 5, 7  # noqa: E741


def parts() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inputs (B, L, D), A's, B's, the experts of each token (B, L, K), and True for the tokens that count."""
    x = torch.randn(B, L, D, dtype=torch.float64)
    down, up = torch.randn(E * R, D, dtype=torch.float64), torch.randn(O, E * R, dtype=torch.float64)
    chosen = torch.rand(B, L, E).topk(K).indices
    # The second sequence has padding, and in the third one token is left, which has no positive.
    valid = torch.ones(B, L, dtype=torch.bool)
    valid[1, 4:] = valid[2, 1:] = False
    return x, down.requires_grad_(), up.requires_grad_(), chosen, valid


def ours(x: Tensor, down: Tensor, up: Tensor, chosen: Tensor, valid: Tensor, tau: float = 0.1) -> Tensor:
    own = torch.nn.functional.one_hot(chosen, E) * valid[:, :, None, None]
    gram = (up.T @ up).expand(1, 1, -1, -1)
    return contrastive_loss((x @ down.T).unsqueeze(0), gram, own.to(x).unsqueeze(0), tau)


def test_equals_the_naive_loss_and_its_gradients() -> None:
    x, down, up, chosen, valid = parts()
    naive = moelora.contrastive_loss(
        [row[kept] for row, kept in zip(x, valid, strict=True)],
        A=list(down.split(R)),
        B=list(up.split(R, dim=1)),
        chosen=[row[kept].tolist() for row, kept in zip(chosen, valid, strict=True)],
        tau=0.1,
    )
    found = ours(x, down, up, chosen, valid)
    torch.testing.assert_close(found, naive)
    gradients = (torch.autograd.grad(loss, (down, up)) for loss in (found, naive))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_has_the_derivatives_of_its_formula_also_with_a_gram_for_each_sequence() -> None:
    chosen = torch.rand(2, 4, E).topk(K).indices
    own = torch.nn.functional.one_hot(chosen, E).double() * (torch.rand(2, 4, 1, 1) > 0.2)

    def function(h: Tensor, up: Tensor) -> Tensor:
        return contrastive_loss(h.unsqueeze(0), (up.mT @ up).unsqueeze(0), own.unsqueeze(0), 0.5)

    h = torch.randn(2, 4, E * R, dtype=torch.float64, requires_grad=True)
    for grams in (1, 2):
        up = torch.randn(grams, O, E * R, dtype=torch.float64, requires_grad=True)
        assert gradcheck(function, (h, up))


def test_is_finite_where_b_is_zero_and_there_is_little_difference() -> None:
    x, down, up, chosen, valid = parts()
    for scale, tau in ((0.0, 0.1), (1.0, 0.025), (1e6, 0.025)):
        inputs = [(x / 100).float(), down.detach().float(), (scale * up.detach()).float()]
        leaves = [leaf.requires_grad_() for leaf in inputs]
        found = ours(*leaves, chosen, valid, tau)
        assert found.isfinite()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(found, leaves))


def test_without_a_term_it_is_zero() -> None:
    x, down, up, chosen, valid = parts()
    found = ours(x, down, up, chosen, torch.zeros_like(valid))
    assert not found.any()
    assert not any(grad.any() for grad in torch.autograd.grad(found, (down, up)))


def test_experts_that_differ_have_a_smaller_loss() -> None:
    x, down, _, chosen, valid = parts()
    apart = torch.block_diag(*[torch.ones(1, R, dtype=torch.float64)] * E)
    together = torch.ones(E, E * R, dtype=torch.float64)
    losses = [ours(x.abs(), down.abs(), up, chosen, valid) for up in (apart, together)]
    assert losses[0] < losses[1] / 10


def test_layers_add_up() -> None:
    layers = [parts()[:4] for _ in range(3)]
    valid = torch.rand(B, L) > 0.2
    alone = sum(ours(*layer, valid) for layer in layers)
    own = torch.stack([torch.nn.functional.one_hot(chosen, E).double() for _, _, _, chosen in layers])
    h = torch.stack([x @ down.T for x, down, _, _ in layers])
    grams = torch.stack([(up.T @ up).unsqueeze(0) for _, _, up, _ in layers])
    together = contrastive_loss(h, grams, own * valid[..., None, None], 0.1)
    torch.testing.assert_close(together, alone)
    leaves = [leaf for _, down, up, _ in layers for leaf in (down, up)]
    for one, other in zip(*(torch.autograd.grad(loss, leaves) for loss in (together, alone)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("max_sequences", [3, 4, 9])
@pytest.mark.parametrize("limit", [1, 3, 4, 8])
def test_tokens_are_spread_evenly_over_those_that_count(limit: int, max_sequences: int) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    picked, rows, valid = spread_tokens(mask, limit, max_sequences)
    assert picked.tolist() == spread_sequences(4, max_sequences)
    assert rows.shape == valid.shape == (min(max_sequences, 4), min(limit, 6))
    for row, found, kept in zip(picked.tolist(), rows, valid, strict=True):
        counted = mask[row].nonzero().flatten().tolist()
        num = min(limit, len(counted))
        wanted = counted if len(counted) <= limit else [counted[n * len(counted) // num] for n in range(num)]
        assert (found[kept] - 6 * row).tolist() == wanted


@pytest.mark.parametrize(("num_sequences", "limit"), [(5, 8), (8, 8), (16, 8), (64, 8), (96, 24)])
@pytest.mark.parametrize("num_tasks", [2, 3, 4])
def test_sequences_are_of_all_tasks_in_turn_or_in_a_row(num_sequences: int, limit: int, num_tasks: int) -> None:
    picked = spread_sequences(num_sequences, limit)
    assert picked == sorted(set(picked) & {*range(num_sequences)})
    assert len(picked) == min(num_sequences, limit)
    assert {n % num_tasks for n in picked} == {n * num_tasks // num_sequences for n in picked} == {*range(num_tasks)}


@pytest.mark.parametrize("outputs", [O, 2 * O])
def test_a_gram_has_its_value_and_gradient(outputs: int) -> None:
    up = torch.randn(outputs, E * R, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(E * R, E * R, dtype=torch.float64)
    weight = weight + weight.mT
    found, wanted = gram_of(up), up.T @ up
    torch.testing.assert_close(found, wanted)
    (one,), (other,) = (torch.autograd.grad(gram, up, weight) for gram in (found, wanted))
    torch.testing.assert_close(one, other)
    # Autograd adds it to that of a product with B: quickly where both are laid out alike.
    (product,) = torch.autograd.grad(rows_linear(torch.ones(3, E * R).double(), up).sum(), up)
    assert one.stride() == product.stride()
