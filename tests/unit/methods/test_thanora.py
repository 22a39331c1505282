import pytest
import torch
from torch import Tensor

import lorachord as lc
from lorachord.core.tasks import TaskNames
from lorachord.families.covariance import Covariance, Exact
from lorachord.methods.thanora import ThanoRA, directions, share_ranks
from tests.reference import thanora
from tests.tiny_models import perturb, tiny

LAYER = lc.LayerSpec("layer", index=0, num_layers=1, d_in=12, d_out=9)


def made(num_tasks: int = 3, **options: object) -> ThanoRA:
    tasks = TaskNames(tuple(f"task {index}" for index in range(num_tasks)))
    return ThanoRA(LAYER, ThanoRA.Config.from_dict(options), tasks).double()


@pytest.mark.parametrize("r", [4, 5, 7, 16, 31])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0])
def test_ranks_are_those_of_the_reference(r: int, temperature: float) -> None:
    for entropies in ([0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.45, 0.5], [0.61, 0.6, 0.59, 0.6]):
        ranks = share_ranks(r, entropies, temperature)
        expected, cooperative = thanora.ranks(entropies, r, temperature)
        assert list(ranks) == expected
        assert sum(ranks) + cooperative == r
        assert min(ranks) >= 1


def test_richer_inputs_get_more_ranks_and_equal_ones_the_same() -> None:
    assert share_ranks(20, [0.9, 0.5, 0.5], 0.1) == (13, 1, 1)
    assert share_ranks(16, [0.7] * 3, 0.1) == (4, 4, 4)


def test_too_few_ranks_name_the_smallest() -> None:
    with pytest.raises(ValueError, match=r"r = 7 is too small, the smallest is 8"):
        made(8, r=7)
    assert made(8, r=8).ranks == (1,) * 8
    with pytest.raises(ValueError, match="a block for each task: name them"):
        made(0)
    with pytest.raises(ValueError, match=r"layer has the ranks \[1, 2\]: give one for each of 3 tasks"):
        made(3, r=8, ranks=(1, 2))
    with pytest.raises(ValueError, match="at most r = 8"):
        made(3, r=8, ranks=(3, 3, 3))


def measured(dtype: torch.dtype = torch.float64, d_in: int = 12, num_tasks: int = 4) -> list[Covariance]:
    """Inputs that share their leading directions, as those of tasks on one model do."""
    torch.manual_seed(0)
    shared = torch.linspace(0.1, 2, d_in, dtype=torch.float64)
    found: list[Covariance] = []
    for _ in range(num_tasks):
        own = Exact(d_in)
        own.add((torch.randn(60, d_in, dtype=torch.float64) * shared).to(dtype))
        found.append(own)
    return found


def started(adapter: ThanoRA, weight: Tensor, inputs: list[Covariance]) -> ThanoRA:
    """The adapter at the start that its calibration finds."""
    _, start = ThanoRA.from_inputs(adapter.config, weight, inputs)
    adapter.begin(start)
    return adapter


def test_the_start_is_that_of_the_reference_up_to_sign() -> None:
    inputs, ranks, weight = measured(num_tasks=3), [4, 1, 2], torch.randn(9, 12, dtype=torch.float64)
    adapter = started(made(3, r=8, ranks=tuple(ranks)), weight, inputs)
    expected = thanora.svd_blocks(weight, [own.matrix() for own in inputs], ranks, s=32 / 8)
    expected_down, expected_up = torch.cat([A for A, _ in expected]), torch.cat([B for _, B in expected], dim=1)
    sign = (adapter.down_start * expected_down).sum(1).sign()
    torch.testing.assert_close(adapter.down_start * sign[:, None], expected_down, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(adapter.up_start * sign, expected_up, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("d_out", "d_in"), [(9, 12), (40, 33)])
@pytest.mark.parametrize("alpha", [8.0, 32.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_takes_each_direction_of_the_outputs_once(
    d_out: int, d_in: int, alpha: float, dtype: torch.dtype
) -> None:
    layer = lc.LayerSpec("layer", index=0, num_layers=1, d_in=d_in, d_out=d_out)
    config = ThanoRA.Config.from_dict({"r": 8, "alpha": alpha})
    weight = torch.randn(d_out, d_in, dtype=dtype)
    adapter = ThanoRA(layer, config, TaskNames(tuple("abcd"))).to(dtype)
    started(adapter, weight, measured(dtype, d_in))
    down, up = adapter.down_start, adapter.up_start
    product = adapter.scale * up @ down
    basis = up / up.norm(dim=0)
    close = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(basis.T @ basis, torch.eye(adapter.own, dtype=dtype), **close)
    torch.testing.assert_close(product, basis @ basis.T @ weight, **close)
    torch.testing.assert_close(basis.T @ (weight - product), torch.zeros(adapter.own, d_in, dtype=dtype), **close)
    torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), **close)
    right = torch.linalg.svd(weight).Vh
    for x in (*torch.randn(50, d_in, dtype=dtype), *right[: min(d_out, d_in)]):
        assert (product @ x).norm() <= 1.001 * (weight @ x).norm()


def test_a_start_of_as_many_ranks_as_the_narrow_side_is_the_weight() -> None:
    weight = torch.randn(9, 12, dtype=torch.float64)
    adapter = started(made(3, r=11, ranks=(3, 4, 2)), weight, measured(num_tasks=3))
    torch.testing.assert_close(adapter.scale * adapter.up_start @ adapter.down_start, weight)


def test_directions_that_the_weight_lacks_start_as_the_cooperative_block_does() -> None:
    weight = torch.randn(9, 2, dtype=torch.float64) @ torch.randn(2, 12, dtype=torch.float64)
    adapter = started(made(3, r=8, ranks=(1, 2, 3)), weight, measured(num_tasks=3))
    torch.testing.assert_close(adapter.scale * adapter.up_start @ adapter.down_start, weight)
    lacking = (adapter.up_start == 0).all(0)
    assert lacking.tolist() == [False, False, True, True, True, True]
    assert adapter.down.ne(0).any(1).all()
    assert adapter.down.isfinite().all()
    update = adapter.up_weight() @ adapter.down_weight()
    assert not update.any()


def test_more_ranks_than_directions_are_refused() -> None:
    config = ThanoRA.Config.from_dict({"r": 14})
    with pytest.raises(ValueError, match=r"add up to 11, .*weight \(9, 12\), which has 9: take a smaller r"):
        ThanoRA.check(config, LAYER, 3)
    ThanoRA.check(ThanoRA.Config.from_dict({"r": 12}), LAYER, 3)
    ThanoRA.check(ThanoRA.Config.from_dict({"r": 14, "init": "kaiming"}), LAYER, 3)
    with pytest.raises(ValueError, match="add up to 10"):
        ThanoRA.check(ThanoRA.Config.from_dict({"r": 14, "ranks": (5, 3, 2)}), LAYER, 3)


def test_the_start_neither_looks_at_nor_moves_the_random_state() -> None:
    inputs, weight, found = measured(torch.float32), torch.randn(9, 12), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(directions(weight, inputs, [2, 1, 1, 2]))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


@pytest.mark.parametrize("init", ["svd", "kaiming"])
@pytest.mark.parametrize("side", ["a", "b", "both"])
def test_the_penalty_is_that_of_the_reference_with_its_gradients(side: str, init: str) -> None:
    adapter = made(3, r=11, ranks=(4, 1, 3), side=side, init=init, spr=0.7)
    perturb(adapter, scale=0.4)

    def grads(value: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(value, [adapter.down, adapter.up], allow_unused=True, materialize_grads=True)
        return list(found)

    ours = adapter.penalty()["subspace"]
    expected = thanora.spr(adapter.down, adapter.up, [4, 1, 3], {"a": "A", "b": "B"}.get(side, side), 0.7)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(grads(3 * ours), grads(3 * expected))
    # The cooperative block is not its business.
    for gradient in (grads(adapter.penalty()["subspace"])[0][8:], grads(adapter.penalty()["subspace"])[1][:, 8:]):
        assert not gradient.any()


def test_the_penalty_is_finite_where_b_is_zero_and_no_smaller_where_factors_shrink() -> None:
    adapter = made(4, r=9, init="kaiming", side="both").train()
    adapter.penalty()["subspace"].backward()
    assert adapter.up.grad.isfinite().all()
    perturb(adapter, scale=2.0)
    before = adapter.penalty()["subspace"]
    with torch.no_grad():
        adapter.down *= 0.1
        adapter.up *= 0.1
    torch.testing.assert_close(adapter.penalty()["subspace"], before, rtol=1e-3, atol=0)
    assert made(4, r=9, spr=0.0).penalty() is None


def test_the_penalty_is_taken_in_float32_under_autocast() -> None:
    adapter = made(3, r=9, side="both").float()
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter.penalty()["subspace"]
    assert torch.equal(found, adapter.penalty()["subspace"])


def test_small_steps_from_a_large_start_survive_bfloat16() -> None:
    adapter = made(3, r=8).float()
    adapter.begin({"down": 10 * torch.randn(adapter.own, 12), "up": 10 * torch.randn(9, adapter.own)})
    perturb(adapter, scale=1e-3)
    x = torch.randn(20, 12)

    def zero(x: Tensor) -> Tensor:
        return x.new_zeros(20, 9)

    wide = adapter(x, zero)
    narrow = adapter(x.bfloat16(), zero).float()
    # Factors rounded as they are would differ by more than the whole update.
    assert (narrow - wide).norm() < 0.02 * wide.norm()


def test_it_has_as_many_parameters_as_a_lora_of_its_rank() -> None:
    layers = lc.target_layers(tiny("llama"))
    target = lc.count_parameters("lora", layers, options={"r": 7}).total
    assert lc.fit_rank("thanora", layers, target, num_tasks=5) == lc.Fit(7, lc.Count(target, 0, 0), target)
    with pytest.raises(ValueError, match="at rank 5 "):
        lc.fit_rank("thanora", layers, target // 4, num_tasks=5)
