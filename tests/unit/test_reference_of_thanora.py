"""The naive reference of ThanoRA against cases computed by hand."""

import math

import pytest
import torch

from tests.reference import thanora
from tests.unit.exact import close, of, randn

LN2, LN3 = math.log(2), math.log(3)


def test_spectral_entropy_by_hand() -> None:
    close(thanora.spectral_entropy(5 * torch.eye(3).double()), 1.0)
    close(thanora.spectral_entropy(of([[1, 2], [2, 4], [-1, -2]])), 0.0)
    # Eigenvalues 3/2 and 1/2: -(3/4 log2 3/4 + 1/4 log2 1/4) = 2 - 3/4 log2 3.
    close(thanora.spectral_entropy(of([[3**0.5, 0], [0, 1]])), 2 - 0.75 * math.log2(3))
    # Fewer samples than inputs: of 5 eigenvalues 2 can differ from 0.
    close(thanora.spectral_entropy(of([[3**0.5, 0, 0, 0, 0], [0, 0, 0, 1, 0]])), 2 - 0.75 * math.log2(3))


@pytest.mark.parametrize(
    ("entropies", "r", "wanted"),
    [
        ([0.5, 0.5], 8, ([3, 3], 2)),
        ([0.5, 0.5], 7, ([3, 2], 2)),  # 3 over one each, 1.5 and 1.5: a tie
        ([0.1 * LN3, 0], 8, ([4, 2], 2)),  # 4 over one each, 3 and 1
        ([0.1 * LN2, 0, 0], 7, ([2, 2, 2], 1)),  # 3 over one each: 1.5, .75, .75
        ([0, 0.1 * LN3], 2, ([1, 1], 0)),
    ],
)
def test_ranks_by_hand(entropies: list[float], r: int, wanted: tuple[list[int], int]) -> None:
    assert thanora.ranks(entropies, r, tau=0.1) == wanted


def test_ranks_use_up_r_and_leave_no_task_without_one() -> None:
    for r in range(4, 40):
        r_t, r_c = thanora.ranks([0.9, 0.1, 0.5, 0.5], r, tau=0.1)
        assert sum(r_t) + r_c == r
        assert min(r_t) >= 1
        assert r_t[0] >= r_t[2] >= r_t[3] >= r_t[1]
    with pytest.raises(ValueError, match="the smallest r is 4"):
        thanora.ranks([0.9, 0.1, 0.5, 0.5], 3, tau=0.1)


def test_svd_blocks_by_hand() -> None:
    # Damped by .01 * 5/2: C' = diag(1.025, 4.025), W0 C' = diag(3.075, 8.05), so the second direction comes first. The
    # other task's leading direction is the second as well (1.05 * 2 * 4 > 3), but it is taken: n = 2 and 3, s = 2.
    C = of([[1, 0], [0, 4]])
    (A, B), (other_A, other_B) = thanora.svd_blocks(of([[3, 0], [0, 2]]), [C, C], [1, 1], 2.0)
    close(A.abs(), [[0, 1]])
    close(B.abs(), [[0], [1]])
    close(B @ A, [[0, 0], [0, 1]])
    close(other_A.abs(), [[1.5**0.5, 0]])
    close(other_B.abs(), [[1.5**0.5], [0]])


def test_svd_blocks_of_full_rank_give_the_weight_and_thanora_starts_at_it() -> None:
    weight, X = randn(4, 6), randn(50, 6)
    (first, second) = thanora.svd_blocks(weight, [torch.eye(6).double(), X.T @ X / 50], [2, 2], 2.0)
    U, S, Vh = torch.linalg.svd(weight)
    close(2.0 * first[1] @ first[0], U[:, :2] @ torch.diag(S[:2]) @ Vh[:2])
    close(2.0 * (first[1] @ first[0] + second[1] @ second[0]), weight)
    A, B, x = [first[0], second[0]], [first[1], second[1]], randn(5, 6)
    cooperative = dict(A=[*A, randn(2, 6)], B=[*B, torch.zeros(4, 2).double()])
    close(thanora.forward(x, weight, **cooperative, A0=A, B0=B, s=2.0), x @ weight.T)


def test_thanora_by_hand() -> None:
    # 1 + 1/2 (2 3 + 5 2 - 1 4): blocks B_t A_t x of 2 * 3 and 5 * 2, less the frozen 1 * 4.
    arguments = dict(A=[of([[1, 1]]), of([[0, 1]])], B=[of([[2]]), of([[5]])], A0=[of([[2, 1]])], B0=[of([[1]])])
    close(thanora.forward(of([[1, 2]]), of([[1, 0]]), **arguments, s=0.5), [[7.0]])


def test_spr_by_hand() -> None:
    # Rows (1, 0) and (0, 1) of the first task, (3, 4) / 5 of the second: 9/25 + 16/25. Columns (1, 0) and 0 of the
    # first, (1, sqrt 3) / 2 of the second: 1/4 + 0. The last row and column are the cooperative block's.
    A = 1e4 * of([[1, 0], [0, 1], [3, 4], [1, 1]])
    B = 1e4 * of([[2, 0, 1, 7], [0, 0, 3**0.5, 7]])
    close(thanora.spr(A, B, [2, 1], "A", 0.01), 0.01)
    close(thanora.spr(A, B, [2, 1], "B", 0.01), 0.0025)
    close(thanora.spr(A, B, [2, 1], "both", 0.01), 0.0125)
    # Three tasks have three pairs: 0, 9/25, 16/25.
    close(thanora.spr(A, B, [1, 1, 1], "A", 1.0), 1.0)
    close(thanora.spr(A, B, [1, 2], "A", 1.0), 9 / 25)


def test_spr_is_zero_of_orthogonal_blocks_and_has_a_finite_gradient_at_zero() -> None:
    A = torch.linalg.qr(randn(6, 6)).Q[:5]
    # Within a task nothing is asked for.
    A[1] = A[0]
    B = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    close(thanora.spr(A, B.detach(), [2, 3], "A", 1.0), 0.0)
    assert float(thanora.spr(A, B.detach(), [1, 4], "A", 1.0)) > 0.9
    (grad,) = torch.autograd.grad(thanora.spr(A, B, [2, 3], "B", 1.0), B)
    assert grad.isfinite().all()


def test_spr_is_half_the_off_block_part_of_one_gram() -> None:
    A, r_t = randn(7, 6), [2, 3, 2]
    unit = A / torch.sqrt((A * A).sum(1, keepdim=True) + 1e-6)
    task = torch.repeat_interleave(torch.arange(3), torch.tensor(r_t))
    off_block = (unit @ unit.T).square()[task[:, None] != task[None, :]].sum()
    close(thanora.spr(A, randn(4, 7), r_t, "A", 1.0), off_block / 2)
